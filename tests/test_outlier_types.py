"""The types in closed form, the odds against scipy's, and a CLIP judge with further words."""

import dataclasses
import math

import pytest
import torch
from scipy.stats import fisher_exact

from outskirts import diversity
from outskirts.diversity import by_band, class_ratio, jpeg_bytes, mean_image_jpeg_bytes, mean_jpeg_bytes
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.judge import load_judge
from outskirts.outlier_types import table, threshold, types_of
from outskirts.recipe import AnalyseSettings
from outskirts.run import Run
from own.tiny import recipe
from tiny import tiny_clip


def sure(p):
    """Logits over two answers, the first with probability p."""
    return [math.log(p), math.log(1 - p)]


def test_types_are_its_own_class_another_and_hardly_any():
    logits = torch.tensor([sure(0.9), sure(0.9), sure(0.1), sure(0.55)])
    assert types_of(logits, torch.tensor([0, 1, 1, 0]), 0.6) == ["I", "II", "I", "III"]
    of_id = torch.tensor([sure(p) for p in torch.linspace(0.5, 0.9999, 101).tolist()])
    assert threshold(of_id) == pytest.approx(0.5 + 0.05 * 0.4999, abs=1e-6)


def test_the_table_counts_and_tells_base_rates_from_what_the_filter_does():
    # Bad-OOD Table 3: 288/45/167 before, 233/38/128 after, of which the paper says that mostly I and III are removed
    before, after = (288, 45, 167), (233, 38, 128)
    types = [t for t, n in zip(("I", "II", "III"), before, strict=True) for _ in range(n)]
    keep = [i < kept for n, kept in zip(before, after, strict=True) for i in range(n)]
    found = table(types, keep)
    assert [round(100 * r["removed"], 1) for r in found["types"].values()] == [19.1, 15.6, 23.4]
    assert found["p"] > 0.3  # removal does not depend on the type: the paper's conclusion is that of base rates
    expected = fisher_exact([[288 - 233, 233], [500 - 399 - (288 - 233), 399 - 233]]).statistic
    assert found["types"]["I"]["odds_ratio"] == pytest.approx(expected)
    every = table(types, [True] * 500)
    assert every["p"] is None
    assert every["types"]["I"]["odds_ratio"] is None
    assert table(["I"] * 3, [True, False, True])["types"]["II"] == {
        "n": 0,
        "kept": 0,
        "removed": None,
        "odds_ratio": None,
    }


def test_alike_images_have_a_large_mean_image_and_different_ones_a_small():
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 256, (1, 3, 16, 16), generator=generator, dtype=torch.uint8)
    alike = Images("alike", [], torch.full((20,), -1), one.expand(20, -1, -1, -1).contiguous())
    many = torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8)
    differ = Images("differ", [], torch.full((20,), -1), many)
    labels = [i % 2 for i in range(20)]
    assert mean_image_jpeg_bytes(alike, labels) == jpeg_bytes(one[0]) == mean_jpeg_bytes(alike)
    assert mean_image_jpeg_bytes(differ, labels) < 0.8 * mean_image_jpeg_bytes(alike, labels)
    assert mean_jpeg_bytes(differ) == pytest.approx(
        mean_jpeg_bytes(alike), rel=0.1
    )  # the other measure sees no difference
    assert mean_image_jpeg_bytes(differ, [None] * 20) < mean_image_jpeg_bytes(differ, labels)  # one mean of more images
    flat = torch.zeros(3, 16, 16, dtype=torch.uint8)
    assert jpeg_bytes(flat) < jpeg_bytes(one[0])
    assert str(diversity.SIDE) in diversity.ENCODER


def test_the_ratio_counts_classes_once_and_may_exceed_one():
    assert class_ratio([3, 3, 5], 4) == 0.5
    assert class_ratio(range(8), 4) == 2


def test_distances_by_band_leave_out_what_has_none():
    import numpy as np

    rows = by_band(np.array([1.0, 3.0, np.nan, 5.0]), np.array([0.1, 0.2, 0.1, 0.4]), ["low", "low", "low", "mid"])
    assert rows == [
        {"band": "low", "n": 2, "mean": 2.0, "median": 2.0},
        {"band": "mid", "n": 1, "mean": 5.0, "median": 5.0},
        {"band": "high", "n": 0, "mean": None, "median": None},
    ]


def judged(tmp_path, **settings):
    return load_judge(Run(dataclasses.replace(recipe(), analyse=AnalyseSettings(**settings)), tmp_path), tmp_path)


def test_a_clip_judge_knows_the_id_names_and_further_words(tmp_path):
    clip = f"clip:{tiny_clip(tmp_path)}"
    judge = judged(tmp_path, judge=clip, words=("cat", "2", "dog"))  # 2 is an ID class: no further word
    assert judge.independent
    assert judge.classifier.classes == ("0", "1", "2", "cat", "dog")
    assert judge.of_class.tolist() == [0, 1, 2]
    logits = judge.classifier(torch.rand(4, 3, 8, 8)).logits
    assert set(types_of(logits, judge.of_class[torch.tensor([0, 1, 2, 0])], 0.0)) <= {"I", "II"}


def test_a_judge_that_lacks_an_id_class_is_refused(tmp_path):
    from outskirts.models import Classifier
    from outskirts.nets import small_resnet

    def saved(*classes):
        net = small_resnet("resnet_tiny", len(classes))
        Classifier(net, classes=classes, size=(8, 8), source="resnet_tiny").save(tmp_path / "-".join(classes))
        return str(tmp_path / "-".join(classes))

    assert judged(tmp_path, judge=saved("2", "x", "1", "0")).of_class.tolist() == [3, 2, 0]
    with pytest.raises(OutskirtsError, match="has no class '1'; give a classifier of the ID classes"):
        judged(tmp_path, judge=saved("0", "2", "x"))
