import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from outskirts.errors import OutskirtsError
from outskirts.find import find, names
from outskirts.methods import methods
from outskirts.override import override
from outskirts.recipe import ClassifierSettings, Recipe, TrainSettings, labelled
from outskirts.settings import as_plain, fits, from_plain
from outskirts.shelf import recipe_text
from outskirts.synthesis import build

TINY = Recipe(
    "tiny", synth="noise", near=("digits[7-9]",), far=("photos", "letters=folder:a=b"), score_with={"knn": {"k": 5}}
)


def test_json_there_and_back():
    assert from_plain(json.loads(json.dumps(as_plain(TINY))), Recipe) == TINY


@pytest.mark.parametrize("name", names("recipes"))
def test_a_shipped_recipe_comes_back_from_its_run_folder(name):
    """Equal, and with options that its synthesizers and scores take: those are tuples too, which JSON does not have."""
    recipe = find("recipes", name)()
    back = from_plain(json.loads(json.dumps(as_plain(recipe))), Recipe)
    assert back == recipe
    for m in methods(back):
        if m.synth:
            build(m.synth, {}, dict(m.options))()
    for label, score in map(labelled, (*back.scores, *back.plain_scores)):
        find("scores", score)(**back.score_with.get(label, {}))


def test_a_list_inside_a_method_comes_back_as_its_synthesizer_takes_it():
    recipe = Recipe("a", methods={"mine": {"synth": "good", "with": {"guidance": ("feature",)}}})
    back = from_plain(json.loads(json.dumps(as_plain(recipe))), Recipe)
    assert back.methods["mine"]["with"] == {"guidance": ("feature",)}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("seeds=0-3", "seeds", (0, 1, 2, 3)),
        ("seeds=4, 7", "seeds", (4, 7)),
        ("near=digits[7,8],fives=digits[5]", "near", ("digits[7,8]", "fives=digits[5]")),
        ("far=", "far", ()),
        ("size=32,24", "size", (32, 24)),
        ("size=none", "size", None),
        ("n_outliers=10", "n_outliers", 10),
        ("n_outliers=none", "n_outliers", None),
        ("floor=false", "floor", False),
        ("classes=0-4", "classes", "0-4"),
        ("id=folder:x=y", "id", "folder:x=y"),
        ("train.lr=1e-3", "train", TrainSettings(lr=1e-3)),
        ("train.lam=1", "train", TrainSettings(lam=1.0)),
        ("train.loss=mixoe", "train", TrainSettings(loss="mixoe")),
        ("fit_classifier.arch=resnet18", "fit_classifier", ClassifierSettings(arch="resnet18")),
        ("synth.kind=uniform", "synth_with", {"kind": "uniform"}),
        ("score.knn.k=20", "score_with", {"knn": {"k": 20}}),
    ],
)
def test_override_reads_a_value_of_the_field_s_type(text, field, value):
    changed = override(TINY, [text])
    assert getattr(changed, field) == value
    assert dataclasses.replace(changed, **{field: getattr(TINY, field)}) == TINY  # and nothing else


def test_a_loss_s_own_fields_come_after_it_and_go_with_it():
    margins = override(TINY, ["train.m_in=-20", "train.loss=energy_margin"])  # in any order
    assert margins.train == dataclasses.replace(TINY.train, loss="energy_margin", m_in=-20.0)
    assert override(margins, ["train.loss=energy_margin"]) == margins
    assert override(margins, ["train.loss=mixoe", "train.mix=mixup"]).train.m_in is None
    with pytest.raises(OutskirtsError, match=r"train\.mix is 'mixup', which only loss=mixoe reads"):
        override(TINY, ["train.mix=mixup"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("train.epoch=3", "no recipe field 'train.epoch', did you mean 'train.epochs'"),
        ("train=3", "no recipe field 'train'"),
        ("epochs", "cannot read 'epochs'; write FIELD=VALUE"),
        ("train.epochs=three", "train.epochs is 'three'; it must be a whole number"),
        ("train.epochs=0", "train.epochs is 0; it must be above 0"),
        ("floor=1", "floor is '1'; it must be true or false"),
        ("size=32,0", "size is (32, 0); height and width must be above 0"),
        ("seeds=0,-1", "seeds is (0, -1); each must be at least 0"),
        ("size=32", "size is '32'; it must be 2 values"),
        ("fit_classifier.arch=vgg", "must be one of resnet18, resnet_small, resnet_tiny"),
        ("seeds=", "seeds is ()"),
        ("seeds=1,1", "none of them twice"),
        ("stages=synth,sift", "stages holds 'sift'; accepted: classifier, diffusion"),
        ("synth=godo", "no 'godo' in synth, did you mean 'good'"),
        ("synth.kin=uniform", "'noise' has no field 'kin', did you mean 'kind'"),
        ("synth.kind=blue", "synth.kind is 'blue'; it must be one of gaussian, uniform"),
        ("score.kn.k=3", "no score 'kn' in this recipe, did you mean 'knn'"),
        ("near=photos", "test set 'photos' needs another label"),
    ],
)
def test_override_refuses_in_one_line_that_names_the_field(text, error):
    with pytest.raises(OutskirtsError) as e:
        override(TINY, [text])
    assert error in str(e.value)
    assert "\n" not in str(e.value)


def test_scores_of_the_plain_classifier_alone_have_fields_too():
    plain = override(TINY, ["score.near.k=7", "plain_scores=near=knn,vim"])  # in any order
    assert plain.score_with == {"knn": {"k": 5}, "near": {"k": 7}}
    assert "score.near.k=7" in recipe_text(plain)
    assert override(plain, ["scores=energy"]).score_with == {"near": {"k": 7}}
    assert override(plain, ["plain_scores="]).score_with == TINY.score_with
    with pytest.raises(OutskirtsError, match="no 'vin' in scores, did you mean 'vim'"):
        override(plain, ["plain_scores=vin"])


def test_another_synthesizer_starts_from_its_own_defaults_whatever_the_order():
    changed = override(dataclasses.replace(TINY, synth_with={"kind": "uniform"}), ["synth.steps=7", "synth=good"])
    assert (changed.synth, changed.synth_with) == ("good", {"steps": 7})


def test_labels():
    assert labelled("hard ones=digits[classes=7-9]") == ("hard ones", "digits[classes=7-9]")
    assert labelled("folder:a=b") == ("folder:a=b", "folder:a=b")  # a label has no colon


def test_python_values_are_checked_like_texts():
    with pytest.raises(OutskirtsError, match="epochs is True; it must be a whole number"):
        TrainSettings(epochs=True)


@pytest.mark.parametrize(
    ("value", "hint", "ok"),
    [
        (1, float, True),
        (True, int, False),
        (1.0, int, False),
        ((1, 2), tuple[int, int], True),
        ((1, 2, 3), tuple[int, int], False),
        ((), tuple[int, ...], True),
        ([1], tuple[int, ...], False),
        (None, str | None, True),
        ("c", Literal["a", "b"], False),
        ({}, Mapping[str, Any], True),
    ],
)
def test_fits(value, hint, ok):
    assert fits(value, hint) is ok


def test_importing_a_recipe_loads_nothing_heavy():
    code = "import sys, outskirts.recipe, outskirts.override, outskirts.recipes.quickstart as q; q.recipe(); print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )
