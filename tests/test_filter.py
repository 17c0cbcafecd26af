"""Bands, draws and warnings in closed form; which settings are refused; what the scout and the calibration sets are made of."""

import numpy as np
import pytest
import torch

from outskirts import filter, scout
from outskirts.calibration import NEEDED
from outskirts.calibration_sets import KINDS, classes_out, constructed, enough_apart
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.methods import methods
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.outlier_sets import held_out
from outskirts.override import override
from outskirts.recipe import STAGES, Recipe, TrainSettings
from outskirts.stages import steps

P = np.array([0.0, 0.29, 0.3, 0.4, 0.5, 0.51, 1.0])
IDS = list(range(len(P)))


def chosen(p_id, **settings):
    found = filter.choose(
        list(range(len(p_id))), np.asarray(p_id, float), [None] * len(p_id), FilterSettings(**settings)
    )
    return [i for i, keep in enumerate(found.keep) if keep]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [2, 3, 4]),
        ({"band": "high"}, [2, 3, 4, 5, 6]),
        ({"band": "low"}, [0, 1, 2, 3, 4]),
        ({"band": "none"}, IDS),
        ({"low": 0.45, "high": 0.6}, [4, 5]),
        ({"calibration": "rank"}, [1, 2, 3, 4, 5]),
    ],
)
def test_bands_are_inclusive_and_high_and_low_contain_the_middle(settings, kept):
    assert chosen(P, **settings) == kept


def test_every_outlier_has_its_band_and_the_reason_why_it_is_not_kept():
    found = filter.choose([7, 8, 9, 10, 11], np.array([0.1, 0.4, 0.9, np.nan, 0.35]), [0] * 5, FilterSettings())
    assert found.band == ["low", "mid", "high", None, "mid"]
    assert found.keep == [False, True, False, False, True]
    assert found.reason == ["P(ID) below 0.3", None, "P(ID) above 0.5", "no finite score", None]
    assert filter.counts(found) == {
        "n": 5,
        "kept": 2,
        "bands": {"high": {"n": 1, "kept": 0}, "mid": {"n": 2, "kept": 2}, "low": {"n": 1, "kept": 0}},
        "reasons": {"P(ID) below 0.3": 1, "P(ID) above 0.5": 1, "no finite score": 1},
    }


def test_n_keep_draws_evenly_from_the_classes_in_proportion():
    labels = [0] * 600 + [1] * 300 + [None] * 100
    found = filter.choose(list(range(1000)), np.full(1000, 0.4), labels, FilterSettings(n_keep=101))
    kept = [y for y, keep in zip(labels, found.keep, strict=True) if keep]
    assert len(kept) == 101
    assert [abs(kept.count(y) - share) < 1 for y, share in ((0, 60.6), (1, 30.3), (None, 10.1))] == [True] * 3
    assert {r for r in found.reason if r} == {filter.NOT_DRAWN}
    other = filter.choose(list(range(1000)), np.full(1000, 0.4), labels, FilterSettings(n_keep=101, seed=1))
    assert other.keep != found.keep


def test_a_draw_does_not_depend_on_the_order_and_hardly_on_who_else_is_there():
    ids, labels = list(range(200)), [i % 4 for i in range(200)]
    inside = np.ones(200, bool)
    forth = filter.draw(ids, labels, inside, 50, 0)
    back = filter.draw(ids[::-1], labels[::-1], inside, 50, 0)
    assert (forth == back[::-1]).all()
    fewer = filter.draw(ids[:-4], labels[:-4], inside[:-4], 50, 0)
    assert (forth[:-4] & ~fewer).sum() == 0  # those who stay in are who was in


def test_random_keeps_as_many_as_the_middle_band_but_others():
    p = np.linspace(0, 1, 101)
    assert len(chosen(p, band="random")) == len(chosen(p)) == 21
    assert set(chosen(p, band="random")) != set(chosen(p))
    assert len(chosen(p, band="random", n_keep=5)) == len(chosen(p, band="none", n_keep=5)) == 5


@pytest.mark.parametrize(
    ("p_id", "settings", "message"),
    [
        (
            [0.9, 0.95, 0.6],
            {},
            r"0 of 3 outliers kept with band=mid, P\(ID\) from 0.3 to 0.5.* are 0.6, 0.9, 0.95; move filter.low",
        ),
        ([0.4, 0.95, 0.6], {}, "1 of 3 outliers kept"),
        ([np.nan, np.nan], {}, "none of 2 outliers has a finite score"),
        ([np.nan, np.nan], {"band": "none"}, "none of 2 outliers has a finite score"),
    ],
)
def test_a_band_that_keeps_nothing_is_one_line(p_id, settings, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        chosen(p_id, **settings)
    assert "\n" not in str(e.value)


def test_rank_is_the_share_that_is_less_like_id():
    u = np.array([3.0, -1.0, 3.0, 10.0, np.nan])
    np.testing.assert_allclose(filter.rank(u, u), [0.5, 0.125, 0.5, 0.875, np.nan])
    many = np.random.default_rng(0).normal(size=10_000)
    kept = chosen(filter.rank(many, many), calibration="rank")
    assert len(kept) == pytest.approx(7700, abs=2)
    assert set(kept) == set(chosen(filter.rank(many**3, many**3), calibration="rank"))  # monotone maps change nothing


def test_what_makes_the_filter_s_word_worth_less_is_said():
    good = {"ece": 0.01, "separated": False, "at_bounds": 0}

    def warned(p, p_val=(0.9,), report=good, **settings):
        s = FilterSettings(**settings)
        choice = filter.choose(list(range(len(p))), np.array(p, float), [None] * len(p), s)
        return filter.warnings_of(choice, s, np.array(p_val, float), [report])

    mixed = [0.4] * 5 + [0.9] * 5
    assert warned(mixed) == []
    for said, case in {
        "10 of 10 outliers are kept (100.0%)": warned([0.4] * 10),
        "2 of 100 outliers are kept (2.0%)": warned([0.4] * 2 + [0.9] * 98),
        "5 outliers lie in the band, fewer than n_keep=7": warned(mixed, n_keep=7),
        "1 outliers have no finite score": warned([*mixed, np.nan]),
        "20.0% of held-out ID images lie in the middle band": warned(mixed, p_val=[0.4, 0.9, 0.9, 0.9, 0.9]),
        "the calibration is off by 0.200": warned(mixed, report=good | {"ece": 0.2}),
        "P(ID) is a step": warned(mixed, report=good | {"separated": True}),
        "1 of the calibration's parameters ended at 0, their bound; energies": warned(
            mixed, report=good | {"at_bounds": 1}, score="energy"
        ),
    }.items():
        assert len(case) == 1
        assert said in case[0]
    assert warned([0.4] * 10, band="none") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.6}, "low is 0.6 and high 0.5; low must be the smaller"),
        ({"high": 1.5}, "high is 1.5; it must be at most 1"),
        ({"images": "noise"}, "images is 'noise', which only calibration=given reads"),
        ({"calibration": "given"}, "calibration=given needs OOD validation images"),
        ({"calibration": "rank", "calibrator": "beta"}, "calibration=rank fits no map"),
        ({"calibrator": "temperature", "score": "energy"}, "calibrator=temperature has no bias"),
        ({"classes_out": 0.2}, "classes_out is 0.2, which only calibration=held_out_classes reads"),
        ({"n_keep": 0}, "n_keep is 0; it must be above 0"),
        ({"cross_fit": 0}, "cross_fit is 0; it must be above 0"),
    ],
)
def test_settings_that_would_be_ignored_or_make_no_sense_are_refused(settings, message):
    with pytest.raises(OutskirtsError, match=message):
        FilterSettings(**settings)


def test_settings_of_the_analyses_are_refused_likewise():
    for settings, message in (
        ({"words": ("cat",)}, "words are what a CLIP judge may answer with"),
        ({"shift_map": "measured", "judge": "fit"}, "shift_map=measured is measured with CLIP"),
        ({"judge": "clip:"}, "judge is 'clip:'; give clip:FOLDER"),
    ):
        with pytest.raises(OutskirtsError, match=message):
            AnalyseSettings(**settings)


def test_overrides_by_name_and_type():
    changed = override(Recipe("a"), ["filter.band=low", "filter.n_keep=5", "analyse.judge=fit"])
    assert (changed.filter, changed.analyse.judge) == (FilterSettings(band="low", n_keep=5), "fit")
    given = override(Recipe("a"), ["filter.images=folder:x", "filter.calibration=given"])  # in any order
    assert given.filter == FilterSettings(calibration="given", images="folder:x")
    with pytest.raises(OutskirtsError, match=r"^filter\.images is 'x', which only calibration=given reads"):
        override(Recipe("a"), ["filter.images=x"])
    for text, message in (
        ("filter.band=middle", "filter.band is 'middle'; it must be one of mid, high, low, random, none"),
        ("filter.bnad=low", "no recipe field 'filter.bnad'.*filter.band"),
        ("filter.n_keep=x", "filter.n_keep is 'x'"),
    ):
        with pytest.raises(OutskirtsError, match=message):
            override(Recipe("a"), [text])
    with pytest.raises(
        OutskirtsError, match="stages holds 'filter' alone; the filter needs both of train:scout, filter"
    ):
        Recipe("a", stages=("synth", "filter", "train"))


def test_methods_share_scouts_where_they_can_and_nothing_changes_without_a_filter():
    entries = {
        "high": {"of": "good", "filter": {"band": "high"}},
        "again": {"of": "high", "train": {"lam": 1.0}},
        "longer": {"of": "good", "filter": {"epochs": 9}},
        "VOS": {"synth": "vos"},
        "VOS mid": {"of": "VOS", "filter": {}},
    }
    by = {m.label: m.filtered for m in methods(Recipe("a", stages=STAGES, methods=entries))}
    assert by["noise"] is by["VOS"] is None
    assert by["high"].scout == by["good"].scout == "4-filter/scout"
    assert by["again"].verdict == by["high"].verdict == "4-filter/verdict-high"
    assert not by["again"].makes
    assert (by["longer"].scout, by["VOS mid"].scout) == ("4-filter/scout-longer", "4-filter/scout-vos-mid")
    assert all(m.filtered is None for m in methods(Recipe("a")))
    assert not [s for s in steps(Recipe("a")) if s.folder.startswith(("4", "6-look", "6-shift"))]
    with pytest.raises(OutskirtsError, match="'b' has a filter, but stages leaves it out"):
        methods(Recipe("a", methods={"b": {"of": "good", "filter": {}}}))
    with pytest.raises(OutskirtsError, match=r"'b': filter.low is 0.9 and high 0.5"):
        methods(Recipe("a", stages=STAGES, methods={"b": {"of": "good", "filter": {"low": 0.9}}}))


def test_the_scout_has_the_loss_that_learns_phi():
    oe = TrainSettings(loss="mixoe", lam=5.0, mix="mixup", epochs=3)
    assert scout.scout_settings(oe, None) == TrainSettings(epochs=3)
    assert scout.scout_settings(TrainSettings(lam=0.2), 7) == TrainSettings(lam=0.2, epochs=7)


def test_folds_are_of_equal_size_and_mix_the_classes():
    fold = scout.fold_of(list(range(1000)), 2)
    assert sum(fold) == 500
    assert 200 < sum(fold[::2]) < 300  # request ids visit the classes in turn


def test_constructed_images_are_none_of_theirs_and_the_same_every_time():
    images = load("digits[0-3]").take(400)
    made_of = constructed(images, seed=3)
    assert len(made_of) == len(images) > len(KINDS)
    assert (made_of.labels == -1).all()
    assert torch.equal(made_of.pixels, constructed(images, seed=3).pixels)
    same = (made_of.pixels == images.pixels).flatten(1).all(1)
    assert same.float().mean() < 0.01
    assert (made_of.pixels == made_of.pixels[:, :1]).all()  # grey stays grey
    with pytest.raises(OutskirtsError, match="images of one class"):
        constructed(images.subset(images.labels == 0))


@pytest.mark.parametrize(("scouts", "enough"), [(1, 495), (2, 990), (3, 743)])
def test_the_number_of_outliers_that_is_asked_for_is_the_least_of_which_scouts_leave_enough_out(scouts, enough):
    ids = list(range(enough - 1))
    fold = scout.fold_of(ids, scouts)
    known = [[i for i, f in zip(ids, fold, strict=True) if f != part or scouts == 1] for part in range(scouts)]
    left = min(sum(held_out(k)) for k in known)
    assert left == NEEDED - 1
    with pytest.raises(OutskirtsError, match=f"{left} of {enough - 1}, and 50 are needed; give .* n_outliers={enough}"):
        enough_apart("mine", enough - 1, scouts)
    enough_apart("mine", enough, scouts)


def test_classes_left_out_are_some_but_leave_two():
    assert (classes_out(3), classes_out(10), len(classes_out(100))) == ([1], [3, 6], 15)
    with pytest.raises(OutskirtsError, match="leaves 1 of 2 classes out"):
        classes_out(2)


def test_held_out_images_never_train_the_scout(tmp_path):
    """Other ones give the same weights, and other scores."""
    torch.manual_seed(0)
    images = load("digits[0-1]")
    net = Classifier(small_resnet("resnet_tiny", 2), classes=["0", "1"], size=(8, 8), source="resnet_tiny")
    noise = load("noise", like=images.take(30))
    settings = TrainSettings(epochs=1, batch_size=40, outlier_batch_size=20, augment="none")
    found = []
    for name, rows in (("a", range(100, 160)), ("b", range(160, 220))):
        parts = {"train": images.take(80), "val": images.subset(list(rows))}
        said = scout.fit_scouts(
            net, parts, list(range(30)), noise, tmp_path / name, settings, device="cpu", progress=False
        )
        found.append(((tmp_path / name / "fold-0" / "model.safetensors").read_bytes(), said[0]))
    assert found[0][0] == found[1][0]
    assert found[0][1]["phi"] == found[1][1]["phi"]
    assert found[0][1]["phi_id"] != found[1][1]["phi_id"]
    assert (len(found[0][1]["id"]), len(found[0][1]["apart"])) == (30, 3)
