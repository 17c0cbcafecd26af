"""The heat map: corruptions by degrees, groups by distance, summaries in closed form, CLIP's subspaces, Syn-IS's cells."""

import numpy as np
import pytest
import torch
from PIL import Image

from outskirts.corruptions import KINDS, LEVELS, corrupt
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.models import load_classifier
from outskirts.shift_map import _cells, groups, level_of, summary
from outskirts.shift_measured import shifts, subspaces
from tiny import tiny_clip


@pytest.mark.parametrize("colour", [False, True])
def test_corruption_grows_with_severity_and_starts_at_none(colour):
    generator = torch.Generator().manual_seed(0)
    pixels = load("digits").take(100).resized((16, 16)).pixels
    if colour:
        pixels = (pixels * torch.rand(100, 3, 1, 1, generator=generator)).to(torch.uint8)
    levels = [corrupt(pixels, s, seed=1).float() for s in range(LEVELS)]
    away = [(x - pixels).square().mean((1, 2, 3)).sqrt() for x in levels]
    assert away[0].max() == 0
    mean = torch.stack(away).mean(1)
    assert (mean.diff() > 0).all()
    assert (away[-1] > 0).float().mean() > 0.95  # every kind does something
    assert torch.equal(levels[3], corrupt(pixels, 3, seed=1).float())
    grey = (levels[-1] == levels[-1][:, :1]).flatten(1).all(1)
    assert grey.all() if not colour else grey.float().mean() == pytest.approx(1 / len(KINDS), abs=0.15)


def test_units_are_grouped_by_the_distance_of_their_mean_to_the_nearest_id_class():
    id_means = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    at = {"far": (5.0, 9.0), "near": (9.0, 1.0), "mid": (0.0, 4.0), "farthest": (50.0, 0.0)}
    features = {name: torch.tensor([p, p]) for name, p in at.items()}
    assert [names for _, names in groups(features, id_means, 7)] == [["near"], ["mid"], ["far"], ["farthest"]]
    assert list(groups(features, id_means, 2)) == [
        ("near and 1 more", ["near", "mid"]),
        ("far and 1 more", ["far", "farthest"]),
    ]


def test_a_map_that_rises_downwards_alone_has_one_slope():
    cells = np.repeat(np.arange(4.0)[:, None], 5, 1) * 2 - 7
    found = summary(cells)
    assert found["cells"][0] == [0.0] * 5
    assert found["cells"][3] == [1.0] * 5
    assert found["semantic"]["slope"] == pytest.approx(1 / 3)
    assert found["semantic"]["r"] == pytest.approx(1)
    assert found["covariate"] == {"slope": pytest.approx(0), "r": None}
    other = summary(cells.T)
    assert other["covariate"]["slope"] == pytest.approx(1 / 3)
    gap = cells.copy()
    gap[0, 0] = np.nan
    assert summary(gap)["cells"][0] == [None, 0.0, 0.0, 0.0, 0.0]
    assert summary(gap)["semantic"]["slope"] == pytest.approx(1 / 3)


def test_levels_are_equally_many():
    levels = level_of(np.random.default_rng(0).normal(size=803) ** 3)
    assert np.bincount(levels).max() - np.bincount(levels).min() <= 1
    assert level_of(np.array([5.0, 1.0, 3.0, 9.0, 2.0, 0.0, 7.0, 8.0])).tolist() == [4, 1, 3, 7, 2, 0, 5, 6]


def test_subspaces_hold_what_classes_and_what_styles_differ_by():
    """Texts = class + style, in two planes that lean towards each other: the second loses what it shares with the first."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    classes = torch.randn(6, 2, generator=generator, dtype=torch.float64) @ basis[:2]
    styles = torch.randn(5, 2, generator=generator, dtype=torch.float64) @ (basis[2:4] + 0.3 * basis[:2])
    semantic, style = subspaces(classes[None] + styles[:, None])
    assert (semantic @ style.T).abs().max() < 1e-9
    torch.testing.assert_close(semantic @ semantic.T, torch.eye(len(semantic), dtype=torch.float64))
    assert len(semantic) <= 2
    assert (semantic @ basis[2:].T).abs().max() < 1e-9
    assert (style @ basis[4:].T).abs().max() < 1e-9


def test_shifts_are_measured_in_a_clip_model_s_space(tmp_path):
    judge = load_classifier(f"clip:{tiny_clip(tmp_path)}", classes=["a", "b", "c"]).frozen()
    images = load("digits").take(60)
    same, other = images.take(20), load("noise", like=images.take(20))
    semantic, style = shifts(judge, images, [same, other])
    assert semantic.shape == style.shape == (40,)
    assert semantic[:20].mean() < semantic[20:].mean()  # ID images are their own neighbours


def test_cells_of_syn_is_are_read_by_their_names(tmp_path):
    for cov, sem, n in ((0, 0, 12), (1, 0, 3), (0, 1, 10)):
        (tmp_path / f"cov_{cov}_sem_{sem}").mkdir()
        for i in range(n):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"cov_{cov}_sem_{sem}" / f"{i}.png")
    grid = _cells(str(tmp_path), (4, 4))
    assert {place: len(x) for place, x in grid.cells.items()} == {(0, 0): 12, (1, 0): 10}  # 3 images are too few
    assert (grid.rows, grid.columns) == (["0", "1"], ["0", "1"])
    assert grid.cells[0, 0].size == (4, 4)
    with pytest.raises(OutskirtsError, match="has no sub-folders cov_0_sem_0"):
        _cells(str(tmp_path / "nowhere"), None)
