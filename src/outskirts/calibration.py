"""Calibration: from a scout's log-odds to P(ID), by beta calibration (Kull, Silva Filho and Flach, AISTATS 2017) and what it is held against.

A score s in (0, 1) comes as its logit u = ln s - ln(1 - s), higher for what is more ID: -ln s and -ln(1 - s) are softplus(-u) and
softplus(u), exact where s itself rounds to 0 or 1. Everything is float64. Bad-OOD App. C weighs both sides alike (`balance`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from outskirts.errors import OutskirtsError
from outskirts.filter_settings import Calibrator

NEEDED = 50
"""Scores that each side of a calibration needs."""
BINS = 10
"""Of the reliability curve, of equal width."""
FOLDS = 5
"""Of the cross-validation that the error and the curve come from: a map looks better on what it was fitted to."""
Scores = Float[np.ndarray, " _"]  # each of its own length


@dataclass(frozen=True)
class Calibration:
    """A map from logits [N] to P(ID) [N] that never decreases."""

    kind: Calibrator
    params: Mapping[str, Any]
    """beta: a, b, c; platt: a, c; temperature: T; isotonic: u, p, the corners of its steps."""
    at_bounds: int = 0
    """Parameters that would be negative were they free, and are 0: the scores then say less than the map has room for."""

    def __call__(self, u: Scores) -> Scores:
        u = np.asarray(u, np.float64)
        if self.kind == "isotonic":
            return np.interp(u, self.params["u"], self.params["p"])
        return expit(_features(self.kind, u) @ np.array(_weights(self.kind, self.params)))


def fit(
    u_id: Float[np.ndarray, " N"], u_ood: Float[np.ndarray, " M"], kind: Calibrator = "beta", *, balance: bool = True
) -> Calibration:
    """The map of `kind` from logits of held-out ID images and of OOD samples.

    `balance` gives both sides the same weight in total, so that P(ID) supposes as much of one as of the other; without it the
    sizes of the two sets move the whole band. Raises OutskirtsError for fewer than 50 scores on a side, for scores that are not
    finite, and where all are the same.
    """
    u_id, u_ood = (np.asarray(u, np.float64).ravel() for u in (u_id, u_ood))
    _check(u_id, u_ood)
    return _fitted(kind, *_joined(u_id, u_ood, balance))


def report(
    calibration: Calibration, u_id: Float[np.ndarray, " N"], u_ood: Float[np.ndarray, " M"], *, balance: bool = True
) -> dict[str, Any]:
    """How good the map is, as plain values: parameters, `nll_before` (sigmoid(u) as it is) and `nll_after` per sample, `ece` and the
    reliability `curve`, both cross-validated in FOLDS parts; shares and errors lie in [0, 1]."""
    u_id, u_ood = (np.asarray(u, np.float64).ravel() for u in (u_id, u_ood))
    u, y, w = _joined(u_id, u_ood, balance)
    p, fold = np.empty(len(u)), np.concatenate([_folds(len(u_id)), _folds(len(u_ood))])
    for f in range(FOLDS):
        out = fold == f
        p[out] = _fitted(calibration.kind, u[~out], y[~out], w[~out])(u[out])
    curve = reliability(p, y, w)
    return {
        "kind": calibration.kind,
        "params": dict(calibration.params),
        "at_bounds": calibration.at_bounds,
        "n_id": len(u_id),
        "n_ood": len(u_ood),
        "nll_before": _nll(expit(u), y, w),
        "nll_after": _nll(calibration(u), y, w),
        "ece": float(sum(b["weight"] * abs(b["share_id"] - b["p"]) for b in curve)),
        "curve": curve,
        "separated": bool(u_id.min() > u_ood.max()),
    }


def reliability(p: Scores, y: Scores, w: Scores, bins: int = BINS) -> list[dict[str, float]]:
    """Bins of p that hold any: mean p, share of ID, samples n, weight; weights sum to 1 over the bins."""
    place = np.clip((p * bins).astype(int), 0, bins - 1)
    total, found = w.sum(), []
    for b in np.unique(place):
        mine = place == b
        weight = w[mine].sum()
        mean, share = (float(w[mine] @ v[mine] / weight) for v in (p, y))
        found.append({"p": mean, "share_id": share, "n": int(mine.sum()), "weight": float(weight / total)})
    return found


def _fitted(kind: Calibrator, u: Scores, y: Scores, w: Scores) -> Calibration:
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(u, y, sample_weight=w)
        return Calibration(kind, {"u": found.X_thresholds_.tolist(), "p": found.y_thresholds_.tolist()})
    x, positive = _features(kind, u), {"beta": [True, True, False], "platt": [True, False], "temperature": [True]}[kind]
    scale = np.maximum(np.sqrt((x**2).mean(0)), 1e-12)  # the search must not care for the unit of u

    def loss(v: Scores) -> tuple[float, Scores]:
        z = x @ (v / scale)
        return float(w @ (np.logaddexp(0, z) - y * z)), x.T @ (w * (expit(z) - y)) / scale

    start = np.array(positive, np.float64) * scale  # the identity: (1, 1, 0) of beta
    bounds = [(0, None) if p else (None, None) for p in positive]
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-10}
    v = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x / scale
    if not np.isfinite(v).all():
        raise OutskirtsError(
            f"{kind} calibration found no finite map; take other calibration images, or calibrator=isotonic"
        )
    return Calibration(kind, _params(kind, v), int(sum(p and value == 0 for p, value in zip(positive, v, strict=True))))


def _features(kind: Calibrator, u: Scores) -> Float[np.ndarray, "N k"]:
    if kind == "beta":  # beta calibration: mu = sigmoid(a ln s - b ln(1 - s) + c)
        return np.stack([-np.logaddexp(0, -u), np.logaddexp(0, u), np.ones_like(u)], 1)
    return np.stack([u, np.ones_like(u)], 1) if kind == "platt" else u[:, None]


def _params(kind: Calibrator, v: Scores) -> dict[str, float]:
    names = {"beta": "abc", "platt": "ac", "temperature": "T"}[kind]
    values = [1 / max(float(v[0]), 1e-12)] if kind == "temperature" else v.tolist()
    return dict(zip(names, values, strict=True))


def _weights(kind: Calibrator, params: Mapping[str, float]) -> list[float]:
    return [1 / params["T"]] if kind == "temperature" else [params[k] for k in ("abc" if kind == "beta" else "ac")]


def _joined(u_id: Scores, u_ood: Scores, balance: bool) -> tuple[Scores, Scores, Scores]:
    """(u, y, w): all logits, 1 for ID and 0 for OOD, and weights that sum to 1."""
    sizes = (len(u_id), len(u_ood))
    each = (0.5 / sizes[0], 0.5 / sizes[1]) if balance else (1 / sum(sizes),) * 2
    return np.concatenate([u_id, u_ood]), np.repeat([1.0, 0.0], sizes), np.repeat(each, sizes)


def _nll(p: Scores, y: Scores, w: Scores) -> float:
    right = np.where(y == 1, p, 1 - p)
    return float(-(w @ np.log(np.maximum(right, 1e-300))))


def _folds(n: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng(0).permutation(n) % FOLDS


def _check(u_id: Scores, u_ood: Scores) -> None:
    for side, u in (("ID", u_id), ("OOD", u_ood)):
        if len(u) < NEEDED:
            raise OutskirtsError(
                f"{len(u)} {side} scores to calibrate on, and each side needs {NEEDED}; give more {side} images, or calibration=rank"
            )
        if not np.isfinite(u).all():
            raise OutskirtsError(
                f"{(~np.isfinite(u)).sum()} of {len(u)} {side} scores to calibrate on are not finite; lower train.lr, or give filter.score=energy"
            )
    if np.ptp(np.concatenate([u_id, u_ood])) == 0:
        raise OutskirtsError(
            "all scores to calibrate on are the same, so they tell ID from OOD nowhere; train the scout longer, or give calibration=rank"
        )
