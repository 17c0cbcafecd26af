import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from outskirts import fit_classifier as module
from outskirts.data import load, split
from outskirts.errors import OutskirtsError
from outskirts.fit_classifier import fit_classifier
from outskirts.images import Images
from outskirts.models import load_classifier
from outskirts.recipe import ClassifierSettings

SETTINGS = ClassifierSettings(arch="resnet_tiny", epochs=4, batch_size=64, lr=0.1, augment="shift")


@pytest.fixture(scope="module")
def digits():
    return split(load("digits[0-3]"), (0.6, 0.4))


def fit(digits, out, settings=SETTINGS, **options):
    return fit_classifier(*digits, out, settings, device="cpu", progress=False, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted")
    return fit(digits, out), out


def test_learns_digits_and_saves_them(digits, fitted):
    classifier, out = fitted
    log = json.loads((out / "log.json").read_text())["epochs"]
    assert [e["epoch"] for e in log] == [1, 2, 3, 4]
    assert log[-1]["val_accuracy"] > 0.9
    assert log[-1]["loss"] < log[0]["loss"]
    loaded = load_classifier(out)
    assert same(loaded, classifier)
    assert loaded.classes == ("0", "1", "2", "3")
    images = digits[1]
    right = (loaded(images.pixels / 255).logits.argmax(1) == images.labels).float().mean()
    assert right == pytest.approx(log[-1]["val_accuracy"], abs=1e-6)
    assert sorted(p.name for p in out.iterdir()) == ["classifier.json", "log.json", "model.safetensors"]


def test_normalises_by_the_training_images(digits, fitted):
    pixels = digits[0].pixels.double() / 255
    assert fitted[0].mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert fitted[0].std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_stopped_and_resumed_is_the_same_as_unbroken(digits, fitted, tmp_path, monkeypatch):
    def stop(path, log):
        if len(log["epochs"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(digits, tmp_path)
    assert not (tmp_path / "classifier.json").exists()
    with pytest.raises(OutskirtsError, match=r"lr was 0.1, is 0.2; go back to that value, or delete it"):
        fit(digits, tmp_path, replace(SETTINGS, lr=0.2))
    torch.rand(7)  # the global generator does not matter
    assert same(fit(digits, tmp_path), fitted[0])
    assert json.loads((tmp_path / "log.json").read_text()) == json.loads((fitted[1] / "log.json").read_text())


def test_a_finished_folder_is_loaded_or_refused_and_never_overwritten(digits, fitted, tmp_path):
    out = shutil.copytree(fitted[1], tmp_path / "c")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    assert same(fit(digits, out), fitted[0])
    with pytest.raises(OutskirtsError, match=r"lr was 0.1, is 0.2; go back to that value, or use another folder"):
        fit(digits, out, replace(SETTINGS, lr=0.2))
    with pytest.raises(OutskirtsError, match="train was "):
        fit((digits[0].take(300), digits[1]), out)
    with pytest.raises(OutskirtsError, match=r"size was \[8, 8\], is \[12, 12\]"):
        fit(digits, out, size=(12, 12))
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()} == before


def test_a_finished_folder_of_unknown_origin_or_damaged_is_made_again(digits, fitted, tmp_path):
    out, short = shutil.copytree(fitted[1], tmp_path / "c"), replace(SETTINGS, epochs=1)
    (out / "log.json").write_text(json.dumps({"epochs": []}))  # as it was before the log told the origin
    assert not same(fit(digits, out, short), fitted[0])
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:1000])
    fit(digits, out, short)
    assert (out / "model.safetensors").read_bytes() == weights


def test_other_seeds_give_other_weights(digits, fitted, tmp_path):
    assert not same(fit(digits, tmp_path, replace(SETTINGS, seed=1)), fitted[0])


def test_images_of_another_size_and_bfloat16(digits, tmp_path):
    small = tuple(d.take(130) for d in digits)
    classifier = fit(small, tmp_path, replace(SETTINGS, epochs=1), size=(12, 12), precision="bf16")
    assert classifier.size == (12, 12)
    outputs = classifier(torch.rand(2, 3, 12, 12))
    assert outputs.logits.dtype == torch.float32
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


def test_what_cannot_be_trained_is_one_line(digits, tmp_path):
    one = digits[0].subset(digits[0].labels == 0)
    with pytest.raises(OutskirtsError, match="one class only"):
        fit((one, one), tmp_path)
    hole = digits[0].subset(digits[0].labels != 2)
    with pytest.raises(OutskirtsError, match="no image of class '2'"):
        fit((hole, hole), tmp_path)
    with pytest.raises(OutskirtsError, match="not finite"):
        fit(digits, tmp_path, replace(SETTINGS, lr=1e12))
    files = [Image.new("RGB", (9, 9)), Image.new("RGB", (8, 8))]
    mixed = Images("mixed", ["a", "b"], torch.tensor([0, 1]), files=files)
    with pytest.raises(OutskirtsError, match="give the size"):
        fit((mixed, mixed), tmp_path)
