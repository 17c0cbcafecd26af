"""Calibration recovers known maps, keeps the order, treats ID and OOD as each other's mirror, and agrees with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from outskirts.calibration import Calibration, fit, reliability, report
from outskirts.errors import OutskirtsError

KINDS = ("beta", "platt", "temperature", "isotonic")


def drawn(n, params, seed=0):
    """(logits of ID, logits of OOD) whose probability of being ID is beta's map with `params` (a, b, c)."""
    rng = np.random.default_rng(seed)
    u = rng.normal(0, 3, n)
    a, b, c = params
    is_id = rng.random(n) < expit(-a * np.logaddexp(0, -u) + b * np.logaddexp(0, u) + c)
    return u[is_id], u[~is_id]


@pytest.mark.parametrize("params", [(1.0, 1.0, 0.0), (0.5, 2.0, 0.7), (2.0, 0.3, -1.0)])
def test_beta_recovers_the_parameters_that_the_scores_were_drawn_with(params):
    found = fit(*drawn(60_000, params), "beta", balance=False)
    np.testing.assert_allclose([found.params[k] for k in "abc"], params, atol=0.06)
    assert found.at_bounds == 0


def test_platt_and_temperature_recover_theirs():
    rng = np.random.default_rng(0)
    u = rng.normal(1, 2, 60_000)
    is_id = rng.random(len(u)) < expit(0.5 * u - 0.4)
    platt = fit(u[is_id], u[~is_id], "platt", balance=False)
    np.testing.assert_allclose([platt.params["a"], platt.params["c"]], [0.5, -0.4], atol=0.03)
    is_id = rng.random(len(u)) < expit(u / 4)
    assert fit(u[is_id], u[~is_id], "temperature", balance=False).params["T"] == pytest.approx(4, abs=0.15)


def test_the_optimum_is_where_the_gradient_of_the_paper_s_likelihood_vanishes():
    """Written out from s itself: sum of w (mu - y) times ln s, -ln(1 - s) and 1."""
    u_id, u_ood = drawn(400, (0.7, 1.5, 0.2))
    found = fit(u_id, u_ood, "beta", balance=True)
    gradient = np.zeros(3)
    for u, y in ((u_id, 1), (u_ood, 0)):
        s = 1 / (1 + np.exp(-u))
        mu = found(u)
        gradient += np.array([((mu - y) * f).mean() / 2 for f in (np.log(s), -np.log(1 - s), np.ones_like(s))])
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_complement_rule():
    u_id, u_ood = drawn(500, (0.5, 2.0, 0.7))
    one, other = fit(u_id, u_ood, "beta"), fit(-u_ood, -u_id, "beta")  # s -> 1 - s, and the labels swapped
    np.testing.assert_allclose(
        [one.params[k] for k in "abc"], [other.params["b"], other.params["a"], -other.params["c"]], atol=1e-4
    )
    grid = np.linspace(-8, 8, 101)
    np.testing.assert_allclose(one(grid), 1 - other(-grid), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from([1e-3, 1.0, 50.0]))
def test_no_map_ever_decreases_and_no_parameter_is_negative(seed, kind, scale):
    rng = np.random.default_rng(seed)
    sides = rng.normal(rng.normal(), 1 + rng.random(), 60), rng.normal(rng.normal(), 1 + rng.random(), 70)
    found = fit(*(scale * u for u in sides), kind)
    p = found(scale * np.linspace(-6, 6, 200))
    assert (np.diff(p) >= -1e-12).all()
    assert ((p >= 0) & (p <= 1)).all()
    assert all(found.params[k] >= 0 for k in "ab" if k in found.params)


def test_scores_that_rank_the_wrong_way_end_at_the_bound_and_are_told():
    u_id, u_ood = drawn(400, (1.0, 1.0, 0.0))
    found = fit(-u_id, -u_ood, "beta")
    assert found.at_bounds == 2
    np.testing.assert_allclose(found(np.array([-9.0, 0.0, 9.0])), 0.5, atol=1e-6)


def test_both_sides_weigh_the_same_however_many_they_are():
    u_id, u_ood = drawn(2000, (1.0, 1.0, 0.5))
    once, twice = fit(u_id, u_ood), fit(u_id, np.tile(u_ood, 3))
    np.testing.assert_allclose(once(u_id), twice(u_id), atol=1e-6)
    plain = fit(u_id, np.tile(u_ood, 3), "platt", balance=False)
    even = fit(u_id, np.tile(u_ood, 3), "platt")
    share = len(u_id) / (3 * len(u_ood))
    # what the spec measured: weights shift the log-odds, by about the logarithm of the ratio of the two sides
    assert logit(even(np.zeros(1))) - logit(plain(np.zeros(1))) == pytest.approx(-np.log(share), abs=0.15)


def test_extreme_logits_stay_apart_where_the_score_itself_would_round_to_one():
    rng = np.random.default_rng(0)
    u_id, u_ood = rng.normal(60, 8, 300), rng.normal(45, 8, 300)  # sigmoid(40) is 1 in float64, 17 in float32
    found = fit(u_id, u_ood, "beta")
    p = found(np.array([40.0, 50.0, 60.0]))
    assert p[0] < 0.3 < p[1] < p[2]
    assert p.min() > 0


def test_platt_is_scikit_learn_s_unpenalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    u_id, u_ood = drawn(300, (0.8, 1.2, -0.3))
    u, y = np.concatenate([u_id, u_ood]), np.repeat([1, 0], [len(u_id), len(u_ood)])
    weights = np.where(y == 1, 1 / len(u_id), 1 / len(u_ood)) * len(u) / 2
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(u[:, None], y, sample_weight=weights)
    np.testing.assert_allclose(fit(u_id, u_ood, "platt")(u), theirs.predict_proba(u[:, None])[:, 1], atol=1e-5)


def test_isotonic_is_scikit_learn_s_and_is_clipped_outside():
    from sklearn.isotonic import IsotonicRegression

    u_id, u_ood = drawn(300, (1.0, 1.0, 0.0))
    u, y = np.concatenate([u_id, u_ood]), np.repeat([1, 0], [len(u_id), len(u_ood)])
    theirs = IsotonicRegression(out_of_bounds="clip").fit(u, y)
    grid = np.linspace(-30, 30, 500)
    np.testing.assert_allclose(fit(u_id, u_ood, "isotonic", balance=False)(grid), theirs.predict(grid), atol=1e-9)


def test_betacal_agrees_where_its_own_parameters_are_not_negative():
    betacal = pytest.importorskip("betacal")
    u_id, u_ood = drawn(3000, (0.7, 1.5, 0.2))
    u, y = np.concatenate([u_id, u_ood]), np.repeat([1, 0], [len(u_id), len(u_ood)])
    theirs = betacal.BetaCalibration("abm").fit(expit(u)[:, None], y)
    ours = fit(u_id, u_ood, "beta", balance=False)
    np.testing.assert_allclose(ours(u), theirs.predict(expit(u)[:, None]), atol=5e-3)


def test_the_report_says_what_the_map_gains():
    u_id, u_ood = drawn(4000, (0.4, 0.4, 0.8))
    calibration = fit(u_id, u_ood, balance=False)
    facts = report(calibration, u_id, u_ood, balance=False)
    assert facts["nll_after"] < facts["nll_before"]
    assert facts["ece"] < 0.03
    assert sum(b["n"] for b in facts["curve"]) == facts["n_id"] + facts["n_ood"] == 4000
    assert sum(b["weight"] for b in facts["curve"]) == pytest.approx(1)
    before = -np.concatenate([np.log(expit(u_id)), np.log(expit(-u_ood))]).mean()
    assert facts["nll_before"] == pytest.approx(before)


def test_isotonic_s_error_is_not_the_zero_of_its_own_data():
    rng = np.random.default_rng(1)
    u_id, u_ood = rng.normal(0, 1, 60), rng.normal(0, 1, 60)  # nothing to learn: steps fit noise
    calibration = fit(u_id, u_ood, "isotonic")
    p, y = calibration(np.concatenate([u_id, u_ood])), np.repeat([1.0, 0.0], 60)
    inside = sum(b["weight"] * abs(b["p"] - b["share_id"]) for b in reliability(p, y, np.ones(120)))
    assert inside < 1e-6 < 0.02 < report(calibration, u_id, u_ood)["ece"]


@pytest.mark.parametrize(
    ("u_id", "u_ood", "message"),
    [
        (np.zeros(49), np.ones(80), "49 ID scores to calibrate on, and each side needs 50"),
        (np.ones(80), np.zeros(0), "0 OOD scores to calibrate on"),
        (np.r_[np.ones(79), np.nan], np.zeros(60), "1 of 80 ID scores to calibrate on are not finite"),
        (np.ones(79), np.r_[np.zeros(60), np.inf], "1 of 61 OOD scores"),
        (np.ones(79), np.ones(60), "all scores to calibrate on are the same"),
    ],
)
def test_bad_calibration_sets_are_one_line(u_id, u_ood, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        fit(u_id, u_ood)
    assert "\n" not in str(e.value)


def test_separated_sides_give_a_finite_map_and_say_so():
    u_id, u_ood = np.linspace(5, 9, 60), np.linspace(-9, -5, 60)
    for kind in KINDS:
        calibration = fit(u_id, u_ood, kind)
        assert report(calibration, u_id, u_ood)["separated"]
        assert calibration(u_id).min() > 0.99 > 0.01 > calibration(u_ood).max()


def test_a_calibration_is_plain_values():
    import json

    u_id, u_ood = drawn(300, (1.0, 1.0, 0.0))
    for kind in KINDS:
        found = fit(u_id, u_ood, kind)
        again = Calibration(kind, json.loads(json.dumps(found.params)))
        np.testing.assert_array_equal(again(u_id), found(u_id))
