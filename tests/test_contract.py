"""Every module found on a shelf keeps the protocol of its shelf, whatever it is."""

import dataclasses
import importlib
import inspect
import json

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.find import SHELVES, find, names
from outskirts.methods import methods
from outskirts.models import Classifier
from outskirts.recipe import labelled
from outskirts.scored import fit_score
from outskirts.types import Observer, Outputs, Score
from texts import classifier_for
from texts import settings as needed

torch.manual_seed(0)
N, K, D = 240, 4, 8
LABELS = torch.arange(N) % K
NET = torch.nn.Sequential(
    torch.nn.AdaptiveAvgPool2d(2), torch.nn.Conv2d(3, D, 2), torch.nn.Flatten(), torch.nn.Linear(D, K)
)
CLASSIFIER = Classifier(NET, classes=list("abcd"), size=(8, 8)).frozen()
MADE = {name: find("scores", name)() for name in names("scores")}
SEEN = [score.observes for score in MADE.values() if isinstance(score, Observer)]


def made_up():
    return Outputs(torch.randn(N, K), torch.randn(N, D), LABELS, {key: torch.randn(N) for key in SEEN})


TRAIN, VAL, OUTLIERS, TEST = (made_up() for _ in range(4))


def fitted(name, **settings):
    score = find("scores", name)(**needed(name), **settings)
    return fit_score(score, TRAIN, val=VAL, outliers=OUTLIERS, classifier=classifier_for(name, CLASSIFIER))


@pytest.mark.parametrize("shelf", SHELVES)
def test_every_module_defines_its_entry_and_says_what_it_is(shelf):
    for name in names(shelf):
        assert find(shelf, name) is not None
        assert importlib.import_module(f"outskirts.{shelf}.{name}").__doc__, f"{shelf}/{name}.py has no docstring"


@pytest.mark.parametrize("name", names("scores"))
class TestScore:
    def test_settings_are_fields_that_a_file_can_hold(self, name):
        cls = find("scores", name)
        assert dataclasses.is_dataclass(cls)
        settings = dataclasses.asdict(cls())  # every setting has a default
        assert json.loads(json.dumps(settings)) == settings
        assert not [f for f in settings if f.endswith("_")]

    def test_facts_are_told_before_fit(self, name):
        score = find("scores", name)()
        assert isinstance(score, Score)
        assert isinstance(score.differentiable, bool)
        assert isinstance(score.transductive, bool)

    def test_fit_has_the_protocol_s_signature(self, name):
        ours, protocol = (inspect.signature(c.fit).parameters for c in (find("scores", name), Score))
        extra = {"classifier"} & ours.keys()  # those who ask for it get it
        assert all(ours[p].kind is inspect.Parameter.KEYWORD_ONLY and ours[p].default is None for p in extra)
        assert {p: v.kind for p, v in ours.items() if p not in extra} == {p: v.kind for p, v in protocol.items()}

    def test_fit_returns_self_and_leaves_settings_alone(self, name):
        score = find("scores", name)(**needed(name))
        before = dataclasses.asdict(score)
        given = {"val": VAL, "outliers": OUTLIERS, "classifier": classifier_for(name, CLASSIFIER)}
        assert fit_score(score, TRAIN, **given) is score
        assert dataclasses.asdict(score) == before

    def test_learned_state_ends_in_an_underscore_and_is_tensors_or_numbers(self, name):
        score = fitted(name)
        learned = {k: v for k, v in vars(score).items() if k not in dataclasses.asdict(score)}
        assert all(k.endswith("_") for k in learned), learned.keys()
        assert all(isinstance(v, torch.Tensor | bool | int | float | str) for v in learned.values())

    def test_one_finite_number_per_image(self, name):
        s = fitted(name)(TEST)
        assert s.shape == (N,)
        assert s.dtype in (torch.float32, torch.float64)
        assert s.isfinite().all()

    def test_scoring_is_repeatable_and_does_not_change_what_was_learned(self, name):
        score = fitted(name)
        before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(score).items()}
        assert torch.equal(score(TEST), score(TEST))
        for k, v in vars(score).items():
            assert torch.equal(v, before[k]) if isinstance(v, torch.Tensor) else v == before[k]

    @pytest.mark.parametrize("size", [1, 7, N])
    def test_an_image_does_not_depend_on_its_batch(self, name, size):
        score = fitted(name)
        split = torch.cat([score(TEST[i : i + size]) for i in range(0, N, size)])
        torch.testing.assert_close(split, score(TEST), atol=1e-6, rtol=1e-6)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(score(TEST[order]), score(TEST)[order], atol=1e-6, rtol=1e-6)

    def test_differentiable_is_true(self, name):
        score = fitted(name)
        if not score.differentiable:
            pytest.skip("says it is not")
        logits, features = (x.clone().requires_grad_() for x in (TEST.logits, TEST.features))
        grads = torch.autograd.grad(score(Outputs(logits, features)).sum(), (logits, features), allow_unused=True)
        moved = [g for g in grads if g is not None]
        assert moved
        assert all(g.isfinite().all() for g in moved)
        assert any(g.abs().sum() > 0 for g in moved)

    def test_unfitted_use_is_one_line_or_needs_no_fit(self, name):
        try:
            find("scores", name)()(TEST)
        except OutskirtsError as e:
            assert "\n" not in str(e)  # noqa: PT017 -- either outcome keeps the contract


@pytest.mark.parametrize("name", names("synth"))
class TestSynthesizer:
    REQUIRES = frozenset({"source", "label", "prompt", "embedding", "classifier"})

    def test_facts_and_methods(self, name):
        cls = find("synth", name)
        assert dataclasses.is_dataclass(cls)
        assert isinstance(cls.requires, frozenset)
        assert cls.requires <= self.REQUIRES
        assert list(inspect.signature(cls.fit).parameters)[:3] == ["self", "images", "classifier"]
        requests = inspect.signature(cls.requests).parameters
        assert list(requests)[:2] == ["self", "n"]
        assert requests["seed"].kind is inspect.Parameter.KEYWORD_ONLY
        assert callable(cls.__call__)

    def test_settings_have_defaults_and_public_names(self, name):
        settings = [f for f in dataclasses.fields(find("synth", name)) if f.init]
        assert not [f.name for f in settings if f.name.startswith("_") or f.name.endswith("_")]


@pytest.mark.parametrize("name", names("recipes"))
def test_recipe_is_a_frozen_dataclass_of_plain_values(name):
    recipe = find("recipes", name)()
    assert dataclasses.is_dataclass(recipe)
    assert recipe.__dataclass_params__.frozen
    assert recipe.about
    assert isinstance(recipe.stages, tuple)
    json.dumps(dataclasses.asdict(recipe), allow_nan=False, default=dict)
    shelf = [labelled(s).name for s in (*recipe.scores, *recipe.plain_scores)]
    assert all(s in names("scores") or "." in s for s in shelf)
    assert all(m.synth is None or m.synth in names("synth") for m in methods(recipe))
