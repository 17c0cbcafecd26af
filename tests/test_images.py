"""What images become, at which size, and what identifies a set of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from outskirts.data import Images, load, read
from outskirts.errors import OutskirtsError
from pictures import colour, folder, one_line


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_every_kind_of_image_becomes_three_channels(tmp_path, rng):
    grey = rng.integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read(tmp_path / "grey.png"), np.stack([grey] * 3))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read(tmp_path / "deep.png"), np.stack([grey] * 3))

    rgb = colour(rng, 4, 4)
    alpha = np.full((4, 4, 1), 51, np.uint8)  # a fifth
    Image.fromarray(np.concatenate([rgb, alpha], -1)).save(tmp_path / "alpha.png")
    on_white = 0.2 * rgb + 0.8 * 255
    assert np.abs(read(tmp_path / "alpha.png").transpose(1, 2, 0) - on_white).max() <= 1

    flat = np.array([[[255, 0, 0], [0, 9, 7]]], np.uint8)
    Image.fromarray(flat).quantize(2).save(tmp_path / "palette.png")
    assert np.array_equal(read(tmp_path / "palette.png").transpose(1, 2, 0), flat)


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png", transparency=1)
    assert read(tmp_path / "p.png")[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_resizing_takes_the_centre_and_does_not_alias(tmp_path):
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: mid-grey once averaged, black or white where it aliases
    stripes[:, :20] = stripes[:, 60:] = [255, 0, 0]  # outside the central square
    Image.fromarray(stripes).save(tmp_path / "s.png")
    small = read(tmp_path / "s.png", (10, 10)).astype(float)
    assert np.abs(small[:, :, 1:-1] - 127.5).max() < 8
    assert read(tmp_path / "s.png", (10, 20)).shape == (3, 10, 20)


def test_different_sizes_stay_on_disk_and_need_a_size(tmp_path):
    folder(tmp_path, ["a"], (6, 5), n=9)
    pixels = folder(tmp_path, ["b"], (12, 12), n=9)
    images = load(f"folder:{tmp_path}")
    assert images.pixels is None
    assert images.size is None
    assert images[17][0].shape == (3, 12, 12)
    with pytest.raises(OutskirtsError, match=r"different sizes, 6x5 and 12x12.*give a size"):
        list(images.batches(18))
    batches = list(images.batches(4, size=(12, 12), indices=[17, 0, 9, 3, 12]))
    assert [len(x) for x, _ in batches] == [4, 1]
    assert batches[0][1].tolist() == [1, 0, 1, 0]
    assert torch.equal(batches[0][0][0], torch.from_numpy(pixels["b", 8]).permute(2, 0, 1) / 255)


def test_held_and_lazy_sets_give_the_same_batches(tmp_path):
    folder(tmp_path, ["a", "b"], (9, 7))
    held = load(f"folder:{tmp_path}")
    lazy = Images(held.name, held.classes, held.labels, files=sorted(tmp_path.glob("*/*.png")))
    for size in (None, (5, 5), (20, 11)):
        for (x, _), (y, _) in zip(held.batches(4, size=size), lazy.batches(4, size=size), strict=True):
            assert torch.equal(x, y)
    assert torch.equal(held.resized((5, 5)).pixels, lazy.resized((5, 5)).pixels)


def test_fingerprints_follow_the_contents(tmp_path, rng):
    folder(tmp_path / "one", ["a", "b"])
    folder(tmp_path / "two", ["a", "b"])
    one, two = load(f"folder:{tmp_path}/one"), load(f"folder:{tmp_path}/two")
    assert one.fingerprint == two.fingerprint
    assert one.subset([0, 1]).fingerprint != one.subset([1, 0]).fingerprint
    assert Images("x", one.classes, 1 - one.labels, one.pixels).fingerprint != one.fingerprint
    Image.fromarray(colour(rng)).save(tmp_path / "two" / "b" / "2.png")
    assert load(f"folder:{tmp_path}/two").fingerprint != one.fingerprint
    (tmp_path / "one" / "b").rename(tmp_path / "one" / "c")
    assert load(f"folder:{tmp_path}/one").fingerprint != one.fingerprint

    Image.fromarray(colour(rng, 3, 3)).save(tmp_path / "two" / "a" / "0.png")  # no longer of one size: hashed by file
    lazy = load(f"folder:{tmp_path}/two")
    before = lazy.fingerprint
    assert lazy.pixels is None
    assert lazy.subset(range(len(lazy))).fingerprint == before
    Image.fromarray(colour(rng, 3, 3)).save(tmp_path / "two" / "a" / "0.png")
    assert load(f"folder:{tmp_path}/two").fingerprint != before


def test_a_mask_and_positions_are_the_same_subset():
    digits = load("digits")
    mask = digits.labels == 3
    assert digits.subset(mask).fingerprint == digits.subset(mask.nonzero()[:, 0]).fingerprint
    assert len(digits.take(5)) == 5
    assert len(digits.take(10**6)) == len(digits)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_corrupt_image_is_named_before_anything_runs(tmp_path, content):
    folder(tmp_path, ["a", "b"], (32, 32))
    bad = tmp_path / "b" / "1.png"
    bad.write_bytes(bad.read_bytes()[:900] if content == "half" else content)
    one_line(f"{bad} cannot be read as an image", f"folder:{tmp_path}")
    if content != "half":  # only headers are read of sets that stay on disk
        Image.new("RGB", (3, 3)).save(tmp_path / "a" / "0.png")
        one_line(f"{bad} cannot be read as an image", f"folder:{tmp_path}")


def test_the_size_limit_of_pixels_is_told(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "x.tif")
    one_line("whose range is unknown", f"folder:{tmp_path}")
