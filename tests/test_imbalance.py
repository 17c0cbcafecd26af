import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.imbalance import imbalanced
from outskirts.inputs import Inputs
from outskirts.recipe import Recipe


def images(n=300, classes=("a", "b", "c")):
    pixels = torch.arange(n, dtype=torch.int32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    return Images("x", list(classes), torch.arange(n) % len(classes), pixels)


def test_shares_fall_evenly_from_the_first_class_to_the_last():
    found = imbalanced(images(), 0.2)
    assert found.labels.bincount().tolist() == [100, 60, 20]
    assert found.classes == ["a", "b", "c"]
    assert imbalanced(images(), 1.0).fingerprint == images().fingerprint


def test_which_images_stay_is_drawn_by_the_seed_and_class_by_class():
    one, same, other = (imbalanced(images(), 0.5, seed=s) for s in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    whole, less = imbalanced(images(), 0.5), imbalanced(images(), 0.1)
    of = [set(x.pixels[x.labels == 2][:, 0, 0, 0].tolist()) for x in (whole, less)]
    assert of[1] < of[0]  # a smaller share leaves some of the same ones out, and draws no others


def test_a_class_left_without_images_is_named():
    with pytest.raises(OutskirtsError, match=r"leaves 1 of 100 images of class 'c'; give a larger share"):
        imbalanced(images(), 0.01)
    with pytest.raises(OutskirtsError, match=r"imbalance is 1.5, allowed is at most 1|imbalance is 1.5"):
        Recipe(name="x", imbalance=1.5)


def test_only_training_images_are_left_out(tmp_path):
    whole, less = (Inputs(Recipe(name="x", classes="0-2", imbalance=v), tmp_path).parts for v in (None, 0.1))
    assert len(less["train"]) < len(whole["train"])
    for part in ("val", "calibration", "test"):
        assert less[part].fingerprint == whole[part].fingerprint
