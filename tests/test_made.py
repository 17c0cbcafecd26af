"""Computed image sets are what they say: patches, negatives, shuffled pixels, noise."""

import numpy as np
import pytest
import torch

from outskirts.data import Images, load
from outskirts.store import Store
from outskirts.types import Outlier, Request
from pictures import folder, one_line


@pytest.mark.parametrize("name", ["photos", "invert", "shuffle", "noise", "noise:uniform"])
def test_made_sets_are_like_the_set_beside_them(name):
    like = load("digits[0-1]")
    made, again = load(name, like=like), load(name, like=like)
    assert made.pixels.shape == like.pixels.shape
    assert set(made.labels.tolist()) == {-1}
    assert (made.pixels == made.pixels[:, :1]).all()  # grey as digits are
    assert made.fingerprint == again.fingerprint != like.fingerprint
    assert load(name, like=like, size=(20, 12)).size == (20, 12)


def test_invert_is_its_own_inverse_and_shuffle_keeps_the_histogram(tmp_path):
    folder(tmp_path, ["a", "b"], (6, 6))
    like = load(f"folder:{tmp_path}")
    inverted = load("invert", like=like)
    assert torch.equal(load("invert", like=inverted).pixels, like.pixels)
    shuffled = load("shuffle", like=like).pixels.flatten(2)
    packed = (shuffled.long() * torch.tensor([65536, 256, 1])[:, None]).sum(1)  # a pixel's channels move together
    original = (like.pixels.flatten(2).long() * torch.tensor([65536, 256, 1])[:, None]).sum(1)
    assert not torch.equal(packed, original)
    assert torch.equal(packed.sort(1).values, original.sort(1).values)
    order = [torch.argsort(row).tolist() for row in packed]
    assert order[0] != order[1]


def test_named_originals_are_cut_to_the_count_and_size_of_like():
    like = load("digits[0]")
    made = load("invert:digits[7-9]", like=like)
    assert len(made) == len(like)
    pool = {x.numpy().tobytes() for x in load("digits[7-9]").pixels}
    assert all((255 - x).numpy().tobytes() in pool for x in made.pixels)


def test_photos_are_windows_of_the_photographs_at_several_scales():
    from sklearn.datasets import load_sample_images

    like = Images("x", [], torch.full((40,), -1), torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8))
    patches = load("photos", like=like).pixels
    # The largest scale is the photograph itself: a fifth of the patches is found in it pixel by pixel, the rest not.
    windows = [np.lib.stride_tricks.sliding_window_view(p[:, :, 0], (16, 16)) for p in load_sample_images().images]
    exact = [
        any((w[:, :, 0, 0] == p[0, 0, 0].item()).any() and _holds(w, p[0].numpy()) for w in windows) for p in patches
    ]
    assert sum(exact) == 8
    assert len({p.numpy().tobytes() for p in patches}) == 40


def test_outliers_of_a_run_are_a_set_of_images(tmp_path):
    requests = [Request(i, i, label=i % 2, source=i) for i in range(6)]
    grey = [torch.full((3, 8, 8), 10 * i, dtype=torch.uint8) for i in range(6)]
    for below in ("3-synth/store", "3-synth-vos/store"):
        Store(tmp_path / below, made_by={}).append([Outlier(r, x) for r, x in zip(requests, grey, strict=True)])
    Store(tmp_path / "3-synth/store").select([2], [False], ["too near"])
    like = load("digits[0]")
    for name, ids in (
        (tmp_path, [0, 1, 3, 4, 5]),
        (tmp_path / "3-synth-vos", range(6)),
        (tmp_path / "3-synth-vos/store", range(6)),
    ):
        made = load(f"store:{name}", like=like)
        assert made.pixels[:, 0, 0, 0].tolist() == [10 * i for i in ids]
        assert set(made.labels.tolist()) == {-1}  # the sources' labels are not theirs
    assert load(f"store:{tmp_path}", like=like, size=(4, 4)).size == (4, 4)
    one_line("no store of outliers in", f"store:{tmp_path / 'nowhere'}")
    one_line("write store:FOLDER", "store")
    feature = Outlier(Request(0, 0), feature=torch.zeros(3))
    Store(tmp_path / "features", made_by={}).append([feature])
    one_line("are no images", f"store:{tmp_path / 'features'}")


def _holds(windows, patch):
    rows, columns = np.nonzero((windows[:, :, 0] == patch[0]).all(-1))
    return (windows[rows, columns] == patch).all((1, 2)).any()


@pytest.mark.parametrize(("kind", "mean", "sd"), [("gaussian", 0.5, 0.25), ("uniform", 0.5, 12**-0.5)])
def test_noise_has_the_moments_it_claims(kind, mean, sd):
    like = Images("x", [], torch.full((50,), -1), torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8))
    values = load(f"noise:{kind}", like=like).pixels.double() / 255
    assert abs(values.mean() - mean) < 0.004
    assert abs(values.std() - sd) < 0.01  # clipping at two standard deviations takes 0.006
    assert abs(np.corrcoef(values[:, 0].flatten(), values[:, 1].flatten())[0, 1]) < 0.02
