"""`random:` models, and the whole SynOOD chain with them: outliers by in-painting, training, bench, report, CLIP tuned on the same outliers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from outskirts import random_components
from outskirts.cli import main
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.load_diffusion import load_diffusion
from outskirts.plan import plan
from outskirts.recipe import TrainSettings
from outskirts.recipes import synood_mechanics
from outskirts.run import run
from outskirts.stamp import folder_hashes, short_hash
from outskirts.store import Store

WORDS = [
    "anvil",
    "basket",
    "candle",
    "dune",
    "easel",
    "fjord",
    "glacier",
    "hammock",
    "inkwell",
    "jigsaw",
    "kettle",
    "lantern",
]


@pytest.mark.parametrize("name", ["inpaint", "text2img", "clip"])
def test_weights_and_configuration_are_the_same_wherever_they_are_made(name):
    first, second = (random_components._made.__wrapped__(name) for _ in range(2))
    assert first != second
    assert folder_hashes(first) == folder_hashes(second)


def test_a_name_is_made_once_and_says_that_it_has_learned_nothing(caplog):
    random_components._made.cache_clear()
    assert load_diffusion("random:inpaint", image_size=32).shape == (4, 16, 16)
    assert load_diffusion("random:text2img").shape == (4, 8, 8)
    load_diffusion("random:text2img")
    assert [r.message.partition(":")[2] for r in caplog.records] == [
        f"{name} has random weights: mechanics only, numbers that come out of it mean nothing"
        for name in ("inpaint", "text2img")
    ]


def test_an_unknown_name_is_one_line():
    with pytest.raises(
        OutskirtsError, match=r"no model 'random:inpant', did you mean 'inpaint'; known: random:inp"
    ) as e:
        load_diffusion("random:inpant")
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the recipe, cut down to four outliers of two passes of one step."""
    r = synood_mechanics.recipe()
    few = {"steps": 2, "passes": 2, "tolerance": 0.0, "image_size": 16}
    small = replace(
        r,
        classes="0-2",
        size=(16, 16),
        far=(),
        fit_classifier=replace(r.fit_classifier, epochs=1),
        synth_with={**r.synth_with, **few},
        n_outliers=4,
        train=TrainSettings(epochs=1, steps=2, batch_size=32, outlier_batch_size=4, augment="none"),
        floor=False,
        seeds=(0,),
        scores=("energy",),
        score_with={},
        threads=1,
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("mechanics") / "run"
    lines = list(plan(small, folder))
    run(small, folder, progress=False)
    return small, folder, lines


def test_the_recipe_goes_from_digits_to_a_report(made):
    recipe, folder, lines = made
    assert any("3-synth" in line and "synood, 4 outliers" in line for line in lines)
    assert "Random weights, mechanics only" in (folder / "7-report" / "report.html").read_text()
    assert json.loads((folder / "3-synth" / "fit.json").read_text())["diffusion"] == "random:inpaint"
    done = json.loads((folder / "3-synth" / "done.json").read_text())
    weights = folder_hashes(Path(random_components.place("random:inpaint")))
    assert done["read"]["images"]["diffusion"] == short_hash(weights)  # by content, as of any folder
    rows = Store(folder / "3-synth" / "store").rows().to_pylist()
    assert len(rows) == 4
    for row in rows:
        said = row["prompt"].removeprefix("A photo only remain ").removesuffix(".").split(", ")
        assert len(said) == 4
        assert set(said) <= set(recipe.synth_with["vocabulary"])
        energies = json.loads(row["notes"])["energies"]
        assert len(energies) == 2
        assert energies[0] != energies[1]  # the noise moved
    pixels = Store(folder / "3-synth" / "store").images()[1].pixels
    assert pixels.shape == (4, 3, 16, 16)
    assert len({p.numpy().tobytes() for p in pixels}) == 4


def test_its_outliers_tune_clip_into_a_detector_like_any_other(made, tmp_path):
    _, folder, _ = made
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    out, given = tmp_path / "clip", ["--words", tmp_path / "words.txt", "--outliers", folder]
    args = ["clip-tune", "digits[0-2]", out, "--clip", "random:clip", *given, "--near", "digits[3]"]
    done = CliRunner().invoke(
        main, [*map(str, args), "share=1", "groups=3", "epochs=1", "label_epochs=1", "seeds=0", "-q"]
    )
    assert done.exit_code == 0, done.output
    saved = Detector.load(out / "detector")
    assert saved.classifier.net.name == "random:clip"
    assert saved.classifier.classes == ("0", "1", "2")
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    scored = CliRunner().invoke(main, ["score", str(out / "detector"), str(tmp_path), "--format", "jsonl"])
    assert scored.exit_code == 0, scored.output
    lines = [json.loads(line) for line in scored.output.splitlines()]
    expected = saved.score(images / 255).tolist()
    assert [line["score"] for line in lines] == pytest.approx(expected, abs=1e-3)
    assert [line["is_ood"] for line in lines] == [s > saved.threshold.value for s in expected]
