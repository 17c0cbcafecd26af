"""ID images through the codec and back: what comes out, where it joins a training, and who is refused."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from outskirts.cli import main
from outskirts.data import Images, load
from outskirts.errors import OutskirtsError
from outskirts.load_diffusion import load_diffusion
from outskirts.pairs import both
from outskirts.plan import plan
from outskirts.recipe import TrainSettings
from outskirts.run import run
from outskirts.store import Store
from outskirts.synth.roundtrip import Synthesizer
from outskirts.train import train
from own.tiny import recipe
from tiny import tiny_pixel, tiny_stable_diffusion

CODEC = {"codec": "patch-pca", "patch": 4, "codec_components": 2}
CLASSES = ["0", "1", "2"]


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    return str(tiny_pixel(tmp_path_factory.mktemp("coded"), classes=CLASSES, **CODEC))


@pytest.fixture(scope="module")
def digits():
    return load("digits[0-2]").take(20)


@pytest.mark.parametrize("kind", ["patch codec", "VAE"])
def test_images_come_out_as_the_codec_leaves_them(kind, coded, digits, tmp_path):
    folder = coded if kind == "patch codec" else str(tiny_stable_diffusion(tmp_path))
    synthesizer = Synthesizer(folder).fit(digits)
    outliers = list(synthesizer(synthesizer.requests()))
    assert [o.request.source for o in outliers] == [o.request.id for o in outliers] == list(range(20))
    assert [o.request.label for o in outliers] == digits.labels.tolist()
    model = load_diffusion(folder)
    images = digits.resized(model.image_size).pixels.float() / 255
    with torch.no_grad():
        expected = torch.cat([model.decode(model.encode(part)) for part in images.split(4)])
    made = torch.stack([o.image for o in outliers]).float() / 255
    assert (made - expected.clamp(0, 1)).abs().max() < 0.51 / 255 + 1e-5
    assert (made - images).abs().max() > 2 / 255  # something was lost
    assert {r.source for r in synthesizer.requests(60, seed=1)} == set(range(20))


def test_pixels_and_lossless_codecs_are_refused(digits, tmp_path):
    whole = tiny_pixel(tmp_path, classes=CLASSES, **{**CODEC, "patch": 2, "codec_components": 12})
    for name in ("digits", str(whole)):
        with pytest.raises(OutskirtsError, match="no lossy codec") as e:
            Synthesizer(name).fit(digits)
        assert "\n" not in str(e.value)


def test_both_keep_rows_and_labels_and_want_classes(digits):
    other = replace(digits, pixels=255 - digits.pixels, name="decoded").take(7)
    joined = both(digits, other)
    assert joined.classes == digits.classes
    assert joined.labels.tolist() == [*digits.labels.tolist(), *digits.labels[:7].tolist()]
    assert torch.equal(joined.pixels[:20], digits.pixels)
    assert torch.equal(joined.pixels[20:], other.pixels)
    unknown = replace(other, labels=torch.full((7,), -1), classes=[])
    for wrong, message in ((None, "got none"), (other.take(0), "got none"), (unknown, "need labels from 0 to 2")):
        with pytest.raises(OutskirtsError, match=message) as e:
            both(digits, wrong)
        assert "\n" not in str(e.value)


def test_half_of_an_epoch_is_reconstructed_and_its_steps_are_as_many(digits, tmp_path, monkeypatch):
    """Reconstructions are black here and everything else is not, so that the network can be asked what it was shown."""
    from outskirts import train as module
    from outskirts.models import Classifier
    from outskirts.nets import small_resnet

    seen = []
    original = module.augment
    monkeypatch.setattr(module, "augment", lambda images, *a: seen.append(images[:5]) or original(images, *a))
    black = Images("black", CLASSES, digits.labels, torch.zeros(20, 3, 8, 8, dtype=torch.uint8))
    classifier = Classifier(small_resnet("resnet_tiny", 3), classes=CLASSES, size=(8, 8), source="resnet_tiny")
    settings = TrainSettings(
        vae_roundtrip=True, epochs=10, batch_size=5, outlier_batch_size=5, lr=1e-4, augment="none", loss="oe_uniform"
    )
    outliers = load("digits[5]").take(8)
    options = {"device": "cpu", "progress": False}
    with pytest.raises(OutskirtsError, match="got none"):
        train(classifier, digits, outliers, digits, outliers, tmp_path, settings, **options)
    train(classifier, digits, outliers, digits, outliers, tmp_path, settings, roundtrip=black, **options)
    assert len(seen) == 10 * (20 // 5)
    share = torch.cat([(x.flatten(1).amax(1) == 0).float() for x in seen]).mean().item()
    assert 0.35 < share < 0.65  # 200 draws: 4 standard deviations


def test_a_run_makes_them_once_for_all_seeds_and_methods(coded, tmp_path):
    methods = {"as they are": {"of": "own.speckle", "train": {"vae_roundtrip": None}}}
    with_it = replace(
        recipe(), diffusion=coded, methods=methods, floor=False, seeds=(0,), scores=("energy",), score_with={}
    )
    with_it = replace(with_it, train=replace(with_it.train, vae_roundtrip=True))
    assert any("roundtrip, " in line for line in plan(with_it, tmp_path / "run"))
    done = run(with_it, tmp_path / "run", until="train", progress=False)
    n = len(done.inputs.parts["train"])
    ids, images = Store(tmp_path / "run/3-roundtrip/store").images()
    assert ids == list(range(n))
    assert images.size == (8, 8)
    steps = {s.folder: s.reads for s in done.steps if s.stage == "train"}
    assert "3-roundtrip" in steps["5-train/seed-0"]
    assert "3-roundtrip" not in steps["5-train/as-they-are/seed-0"]
    logs = [json.loads((tmp_path / "run" / f / "log.json").read_text())["epochs"][-1]["loss_id"] for f in steps]
    assert len(set(logs)) == 2


def test_pixel_models_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fields in (["train.vae_roundtrip=true"], ["synth=roundtrip"]):
        done = CliRunner().invoke(main, ["run", "quickstart", "--out", "runs/x", *fields])
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert "diffusion model 'digits' works on pixels" in done.output
        assert not list((tmp_path / "runs/x").glob("1-*"))
