"""Threshold-free metrics of an OOD score, on exact counts in float64, and their bootstrap over test images.

A score is higher for what is more OOD. Raw scores are compared as they are: nothing is squashed, binned or rounded, and
equal scores count as ties. Every curve is computed for many resamples at once, as weights on one sort; the point estimate
is the same function with every weight one.
"""

import zlib

import numpy as np
from jaxtyping import Float64

from outskirts.errors import OutskirtsError

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id", "fpr95_ood", "ap_in", "ap_out")
LOWER_IS_BETTER = frozenset({"fpr95_id", "fpr95_ood"})
RULES = ("first", "nearest")
CELLS = 2**18
"""Weights held at a time, 2 MB each: more of them leave the cache and take four times as long."""


def ood_metrics(id_scores, ood_scores, *, rule: str = "first") -> dict[str, float]:
    """All metrics, each a share from 0 to 1, of two sets of scores (tensors, arrays or lists; higher = more OOD).

    auroc      probability that an OOD image scores above an ID image, ties counting half
    aupr_out   area under precision and recall by the trapezoid rule, OOD positive; aupr_in: ID positive (OpenOOD's)
    ap_out     average precision, the step rule, OOD positive; ap_in: ID positive (Hendrycks et al.'s)
    fpr95_id   share of OOD let in by the threshold that keeps 95 % of ID (VOS, Dream-OOD, GOOD)
    fpr95_ood  share of ID flagged by the threshold that catches 95 % of OOD (OpenOOD, pytorch-ood)

    `rule` picks the threshold of both FPR95: "first" that reaches 95 %, or "nearest" to 95 %, as older code does.
    Raises OutskirtsError for an empty set and for NaN or infinite scores.
    """
    a, b = _check(id_scores, "ID"), _check(ood_scores, "OOD")
    values = _metrics(_Ranks(a, b), np.ones((1, len(a))), np.ones((1, len(b))), rule)
    return {name: float(v[0]) for name, v in values.items()}


def bootstrap(
    id_scores, ood_scores, *, resamples: int = 200, seed: int = 0, name: str = "", rule: str = "first"
) -> dict[str, Float64[np.ndarray, " R"]]:
    """Every metric of `resamples` stratified resamples of the test images (ID and OOD images each keep their number).

    Which images a resample draws depends on `seed`, the numbers of images and, for the OOD ones, on the `name` of their
    set: so two scores of the same images are resampled alike and their differences are paired, and so is the ID set
    beside several OOD sets.
    """
    a, b = _check(id_scores, "ID"), _check(ood_scores, "OOD")
    if resamples < 2:
        raise OutskirtsError(f"resamples={resamples}; an interval needs at least 2, 200 are usual")
    ranks, step = _Ranks(a, b), max(1, CELLS // (len(a) + len(b)))
    rng_id, rng_ood = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1, zlib.crc32(name.encode())])
    parts = [
        _metrics(ranks, _draw(rng_id, len(a), n), _draw(rng_ood, len(b), n), rule)
        for n in (min(step, resamples - start) for start in range(0, resamples, step))
    ]
    return {m: np.concatenate([p[m] for p in parts]) for m in METRICS}


def interval(values: Float64[np.ndarray, " R"], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval that holds the share `level` of bootstrap values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Ranks:
    """Both sets on one scale of distinct scores, highest first: which image enters before which threshold."""

    def __init__(self, id_scores: Float64[np.ndarray, " n"], ood_scores: Float64[np.ndarray, " m"]):
        distinct = np.unique(np.concatenate([id_scores, ood_scores]))[::-1]
        self.orders = [np.argsort(-s, kind="stable") for s in (id_scores, ood_scores)]
        # images at or above each distinct score
        self.counts = [len(s) - np.searchsorted(np.sort(s), distinct, side="left") for s in (id_scores, ood_scores)]

    def at_or_above(self, w_id: Float64[np.ndarray, "R n"], w_ood: Float64[np.ndarray, "R m"]):
        """Weight of ID and of OOD images at or above each distinct score, after a leading 0: [R, G + 1] each."""
        for w, order, count in zip((w_id, w_ood), self.orders, self.counts, strict=True):
            total = np.zeros((len(w), w.shape[1] + 1))
            np.cumsum(w[:, order], axis=1, out=total[:, 1:])
            yield total[:, np.concatenate([[0], count])]


def _metrics(ranks: _Ranks, w_id, w_ood, rule: str) -> dict[str, Float64[np.ndarray, " R"]]:
    if rule not in RULES:
        raise OutskirtsError(f"no FPR95 rule {rule!r}; accepted: {', '.join(RULES)}")
    flagged, caught = ranks.at_or_above(w_id, w_ood)  # OOD positive: false and true positives, threshold falling
    let_in, kept = (x[:, -1:] - x[:, ::-1] for x in (caught, flagged))  # ID positive: the same, threshold rising
    auroc = (np.diff(flagged) * (caught[:, 1:] + caught[:, :-1]) / 2).sum(1) / (flagged[:, -1] * caught[:, -1])
    aupr_in, ap_in = _precision_recall(kept, let_in)
    aupr_out, ap_out = _precision_recall(caught, flagged)
    values = (auroc, aupr_in, aupr_out, _fpr95(kept, let_in, rule), _fpr95(caught, flagged, rule), ap_in, ap_out)
    return dict(zip(METRICS, values, strict=True))


def _precision_recall(tp: Float64[np.ndarray, "R G"], fp: Float64[np.ndarray, "R G"]):
    """Area by the trapezoid rule from the point (recall 0, precision 1), and average precision."""
    with np.errstate(invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 1.0)
    width = np.diff(tp) / tp[:, -1:]
    return (width * (precision[:, 1:] + precision[:, :-1]) / 2).sum(1), (width * precision[:, 1:]).sum(1)


def _fpr95(tp: Float64[np.ndarray, "R G"], fp: Float64[np.ndarray, "R G"], rule: str) -> Float64[np.ndarray, " R"]:
    tpr, fpr = tp[:, 1:] / tp[:, -1:], fp[:, 1:] / fp[:, -1:]  # 19 / 20 >= 0.95 holds in binary too
    if rule == "first":
        at = (tpr >= 0.95).argmax(1)
    else:  # Hendrycks' code: of equally near thresholds the last, and none beyond the first with all positives
        off = np.where(tp[:, :-1] == tp[:, -1:], np.inf, np.abs(tpr - 0.95))
        at = off.shape[1] - 1 - off[:, ::-1].argmin(1)
    return fpr[np.arange(len(fpr)), at]


def _draw(rng: np.random.Generator, n: int, resamples: int) -> Float64[np.ndarray, "R n"]:
    """Multinomial weights: how often each of n images is drawn in n draws with replacement."""
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _check(scores, which: str) -> Float64[np.ndarray, " n"]:
    if hasattr(scores, "detach"):  # a tensor, perhaps on a GPU or in bfloat16, which numpy does not know
        scores = scores.detach().cpu().double()
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise OutskirtsError(
            f"{which} scores of shape {tuple(x.shape)}; metrics need one score per image and at least one image"
        )
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        raise OutskirtsError(
            f"{len(bad)} of {len(x)} {which} scores are NaN or infinite, the first at row {bad[0]}; metrics need finite scores"
        )
    return x
