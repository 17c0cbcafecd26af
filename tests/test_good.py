"""GOOD on tiny random components: grid, independence of the batch, strength, conditions, failures."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from outskirts.cli import main
from outskirts.errors import OutskirtsError
from outskirts.models import Classifier
from outskirts.synth._strength import _first_crossing, _interpolate
from outskirts.synth.good import Synthesizer
from tiny import tiny_pixel, tiny_stable_diffusion
from tones import CLASSES, tones, untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_pixel(tmp_path_factory.mktemp("pixel"), classes=CLASSES))


@pytest.fixture(scope="module")
def data():
    return tones(60)


@pytest.fixture(scope="module")
def classifier():
    return untrained()


@pytest.fixture(scope="module")
def good(folder, data, classifier):
    return Synthesizer(folder, steps=4, k=5, probe=4, batch_size=8).fit(data, classifier)


def same(a, b):
    """Equal pixels, up to the one grey level that another batch's rounding may cost."""
    return (a.image.int() - b.image.int()).abs().max() <= 1


def test_the_whole_grid(good):
    requests = good.requests()
    assert len(requests) == 3 * (25 * 5 + 7 * 15)
    image = [r for r in requests if r.dials["target"] == "image"]
    assert len({(r.dials["rho"], r.dials["mu"]) for r in image}) == 25
    feature = [r for r in requests if r.dials["target"] == "feature"]
    assert all(r.dials["rho"] == r.dials["mu"] for r in feature)
    assert len(feature) == 3 * 7 * 15
    assert {r.label for r in requests} == {0, 1, 2}
    assert len({r.seed for r in requests}) == len(requests)


def test_fewer_requests_are_even_over_classes_and_mixed_over_targets(good):
    requests = good.requests(90, seed=3)
    assert [sum(r.label == y for r in requests) for y in range(3)] == [30, 30, 30]
    share = sum(r.dials["target"] == "image" for r in requests) / 90
    assert 0.3 < share < 0.8
    assert requests[:40] == good.requests(40, seed=3)
    assert requests != good.requests(90, seed=4)


def test_an_outlier_depends_on_its_request_alone(good):
    requests = good.requests(6, seed=1)
    together = list(good(requests))
    assert all(same(a, b) for a, b in zip(together, reversed(list(good(requests[::-1]))), strict=True))
    assert all(same(a, b) for a, b in zip(together, (next(iter(good([r]))) for r in requests), strict=True))
    assert not same(together[0], together[3])


def test_without_smoothing_an_outlier_is_its_own_too(folder, data, classifier):
    """The draws of a sample that is not smoothed do not depend on neighbours that are."""
    good = Synthesizer(folder, steps=4, k=5, probe=2, sigma_feature=0.0, batch_size=8).fit(data, classifier)
    requests = good.requests(8, seed=1)
    assert {r.dials["target"] for r in requests} == {"image", "feature"}
    together = list(good(requests))
    assert all(same(a, b) for a, b in zip(together, (next(iter(good([r]))) for r in requests), strict=True))


def test_the_sum_of_both_targets_may_aim_at_a_band(folder, data, classifier):
    good = Synthesizer(folder, steps=2, k=5, probe=2, guidance=("both",), band_width=0.5).fit(data, classifier)
    assert len(list(good(good.requests(2)))) == 2


def test_unguided_samples_beyond_the_aim_are_told(folder, data, classifier, caplog):
    """An untrained diffusion model makes noise: its samples are outside without any guidance."""
    state = (
        Synthesizer(folder, steps=4, probe=4, guidance=("image",), quantile=0.01).fit(data, classifier).state["image"]
    )
    assert state["already"] == (state["curve"][0]["median"] >= state["target"])
    assert state["already"] == ("already lie beyond" in caplog.text)


def test_notes_are_what_the_classifier_says_of_the_stored_image(good, classifier):
    outlier = next(iter(good(good.requests(1))))
    logits = classifier(outlier.image[None].float() / 255).logits
    assert outlier.notes["energy"] == pytest.approx(-logits.logsumexp(-1).item(), abs=1e-4)
    assert outlier.notes["confidence"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)


def test_strength_is_in_units_of_the_classifier(folder, data, classifier):
    """Logits ten times as large push ten times as hard: the unit found is smaller, and lands at the same quantile."""
    loud = Classifier(
        Times10(classifier.net), classes=CLASSES, size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, layer="net.fc"
    ).frozen()
    options = {"steps": 4, "probe": 6, "guidance": ("image",)}
    a, b = (Synthesizer(folder, **options).fit(data, c).state["image"] for c in (classifier, loud))
    assert a["reached"]
    assert b["reached"]
    assert b["unit"] < a["unit"]
    assert a["curve"][0].keys() == {"strength", "median"}


class Times10(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 10 * self.net(x)


def test_probe_finds_the_first_crossing():
    curve = [(0.1, -9.0), (0.2, -8.0), (0.4, -4.0), (0.8, -6.0), (1.6, -3.0)]  # it falls back: adversarial saturation
    low, high = _first_crossing(curve, -5.0)
    assert (low, high) == (0.2, 0.4)
    assert 0.2 < _interpolate(dict(curve), low, high, -5.0) < 0.4
    assert _first_crossing(curve, 0.0) == (1.6, None)
    assert _first_crossing(curve, -10.0) == (None, 0.1)


def test_state_is_not_searched_again(good, folder, data, classifier):
    again = Synthesizer(folder, steps=4, k=5).fit(data, classifier, state=good.state)
    assert again.state == good.state
    assert same(next(iter(again(again.requests(1)))), next(iter(good(good.requests(1)))))


def test_literal_strength_and_direction(folder, data, classifier):
    options = {"steps": 6, "strength": "literal", "guidance": ("image",), "image_grid": (0.5,), "sigma_image": 0.0}
    energies = {}
    for toward in ("ood", "id"):
        good = Synthesizer(folder, toward=toward, **options).fit(data, classifier)
        assert good.state["image"]["unit"] == 1.0
        energies[toward] = [o.notes["energy"] for o in good(good.requests(8))]
    assert sum(energies["ood"]) > sum(energies["id"])


def test_band_aims_at_the_quantile_from_both_sides(good):
    requests = [replace(r, dials={"target": "image", "rho": 1.0, "mu": 1.0}) for r in good.requests(4)]
    aim = good.state["image"]["target"]
    banded = replace(good, band_width=0.5)
    banded.__dict__.update({k: v for k, v in good.__dict__.items() if k not in banded.__dict__})
    x0 = torch.randn(4, *good.model.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    energy = good.energy(good.classifier(good.model.decode(x0)))
    (up,) = torch.autograd.grad(energy.sum(), x0, retain_graph=True)
    (pull,) = torch.autograd.grad(banded.target(requests)(x0).sum(), x0)
    expected = up * ((aim - energy) / 0.25)[:, None, None, None]
    torch.testing.assert_close(pull, expected, atol=1e-4, rtol=1e-3)


def test_mixed_targets_in_one_batch(good):
    kinds = ("image", "feature", "both")
    requests = [replace(r, dials=r.dials | {"target": k}) for r, k in zip(good.requests(3), kinds, strict=True)]
    x0 = torch.randn(3, *good.model.shape, generator=torch.Generator().manual_seed(0))
    outputs = good.classifier(good.model.decode(x0))
    e, d = good.energy(outputs), good.state["knn_scale"] * good.knn(outputs)
    torch.testing.assert_close(good.target(requests)(x0), torch.stack([e[0], d[1], e[2] + d[2]]))
    torch.testing.assert_close(
        good.target(requests)(x0.repeat(2, 1, 1, 1)), torch.stack([e[0], d[1], e[2] + d[2]]).repeat(2)
    )


def test_what_is_not_finite_is_a_named_failure(good, monkeypatch):
    requests = good.requests(3)
    x0 = good.sample(requests, good.strengths(requests))
    x0[1, 0, 0, 0] = float("nan")
    monkeypatch.setattr(good, "sample", lambda *args: x0)
    outliers = list(good(requests))
    assert [o.image is None for o in outliers] == [False, True, False]
    assert "finite" in outliers[1].notes["failed"]


def test_stable_diffusion_end_to_end(tmp_path, data, classifier):
    sd = str(tiny_stable_diffusion(tmp_path))
    good = Synthesizer(sd, steps=2, guidance_scale=2.0, probe=2, k=5, prompts={"b": "the bee"}).fit(data, classifier)
    requests = good.requests(3)
    assert [r.prompt for r in requests] == ["A high-quality image of the a", "the bee", "A high-quality image of the c"]
    outliers = list(good(requests))
    assert all(o.image.shape == (3, 16, 16) for o in outliers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": ("pixel",)}, "accepted: some of image, feature, both"),
        ({"k": 61}, "k must be 1 to 60"),
        ({"batch_size": 0}, "batch_size"),
        ({"probe": 0}, "probe"),
        ({"quantile": 1.5}, "quantile"),
        ({"sigma_image": -1.0}, "sigma_image"),
        ({"image_grid": ()}, "image_grid"),
        ({"image_grid": (float("nan"), 1.0)}, "image_grid"),
        ({"toward": "id", "band_width": 1.0}, "give one of them"),
        ({"prompts": {"zebra": "x"}}, "no classes of the data"),
        ({"tiny_vae": "x"}, "pixel model"),
        ({"diffusion": "nowhere"}, "no diffusion model 'nowhere'"),
    ],
)
def test_wrong_options_are_one_line(folder, data, classifier, options, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        Synthesizer(**({"diffusion": folder, "k": 5, "steps": 2} | options)).fit(data, classifier)
    assert "\n" not in str(e.value)


def test_a_diffusion_model_of_other_classes_is_refused(folder, data, classifier):
    other = SimpleNamespace(**{k: getattr(data, k) for k in ("labels", "batches", "name")}, classes=["x", "b", "c"])
    with pytest.raises(OutskirtsError, match="knows no class 'x'"):
        Synthesizer(folder, k=5, steps=2).fit(other, classifier)


def test_killed_good_continues_with_the_same_outliers(tmp_path):
    """A real process on the shipped digit model, killed with SIGKILL amid synthesis; the same command ends as an unbroken run."""
    few = ["n_outliers=40", "synth.batch_size=4", "synth.steps=6", "synth.probe=2", "floor=false", "threads=1"]

    def command(out, classifier):
        verb = ["synth", "quickstart", "-q", "-o", str(out), f"classifier={classifier}", "fit_classifier.epochs=1"]
        return [*verb, *few]

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert CliRunner().invoke(main, command(whole, "fit")).exit_code == 0
    resume = command(torn, whole / "1-classifier")
    with subprocess.Popen(
        [sys.executable, "-m", "outskirts", *resume],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(torn.glob("3-synth/store/shard-*"))) < 3:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert len(list(torn.glob("3-synth/store/shard-*.parquet"))) < 10
    assert CliRunner().invoke(main, resume).exit_code == 0
    ends = [{p.name: p.read_bytes() for p in run.glob("3-synth/store/shard-*.parquet")} for run in (whole, torn)]
    assert len(ends[0]) == 10
    assert ends[0] == ends[1]
