"""Which outliers are kept: bands of P(ID), as many of each class as it has, and what to warn of (Bad-OOD sec. 4.3, Table 2).

P(ID) near 1: hardly to be told from ID images; near 0: far from them. The middle band is what Bad-OOD trains on.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from outskirts.errors import OutskirtsError
from outskirts.filter_settings import FilterSettings

BANDS = ("high", "mid", "low")
"""Where P(ID) lies: above the middle band, in it, below it. `FilterSettings.band` high and low contain mid, as in Table 2."""
NOT_DRAWN, NOT_FINITE = "not drawn", "no finite score"
FEW, MOST = 0.05, 0.95
"""Share of the outliers kept below and above which the filter is warned of."""
ID_INSIDE, ECE = 0.1, 0.1
"""Share of held-out ID images inside the band, and error of the calibration, above which is warned."""


class Choice(NamedTuple):
    """One value for each outlier."""

    band: list[str | None]
    keep: list[bool]
    reason: list[str | None]
    """Why it is not kept."""


def rank(u: Float[np.ndarray, " N"], among: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
    """The share of `among` that is less like ID than each score: what stands for P(ID) where nothing is calibrated, in [0, 1]."""
    among = np.sort(among[np.isfinite(among)])
    sides = [np.searchsorted(among, u, side) for side in ("left", "right")]
    return np.where(np.isfinite(u), sum(sides) / 2 / len(among), np.nan)  # ties share the middle of their places


def choose(
    ids: Sequence[int], p_id: Float[np.ndarray, " N"], labels: Sequence[int | None], settings: FilterSettings
) -> Choice:
    """What is kept of the outliers with `p_id` in [0, 1]; bands are inclusive. The same for the same ids, whatever their order.

    Raises OutskirtsError where no score is finite and where fewer than two outliers are kept: one to train on, one to check.
    """
    finite = np.isfinite(p_id)
    if not finite.any():
        raise OutskirtsError(
            f"none of {len(ids)} outliers has a finite score; lower train.lr, or give filter.score=energy"
        )
    low, high = settings.ends
    band = np.where(p_id > high, "high", np.where(p_id < low, "low", "mid"))
    inside = {"mid": band == "mid", "high": band != "low", "low": band != "high"}.get(settings.band, finite) & finite
    n = settings.n_keep
    if settings.band == "random":
        n = int((finite & (band == "mid")).sum()) if n is None else n
    drawn = inside if n is None else inside & draw(ids, labels, inside, n, settings.seed)
    if drawn.sum() < 2:
        raise OutskirtsError(_nothing(p_id[finite], int(drawn.sum()), settings))
    below, above = f"P(ID) below {low:g}", f"P(ID) above {high:g}"
    out = np.where(~finite, NOT_FINITE, np.where(inside, NOT_DRAWN, np.where(band == "high", above, below)))
    return Choice(
        [str(b) if ok else None for b, ok in zip(band, finite, strict=True)],
        drawn.tolist(),
        [None if k else str(r) for k, r in zip(drawn, out, strict=True)],
    )


def draw(
    ids: Sequence[int], labels: Sequence[int | None], inside: Bool[np.ndarray, " N"], n: int, seed: int
) -> Bool[np.ndarray, " N"]:
    """`n` of the outliers `inside`, evenly, each class in proportion; all where there are not more."""
    counts = Counter(label for label, i in zip(labels, inside, strict=True) if i)
    total = sum(counts.values())
    if total <= n:
        return inside.copy()
    shares = {y: n * c / total for y, c in counts.items()}
    quota = {y: int(s) for y, s in shares.items()}
    rest = sorted(shares, key=lambda y: (quota[y] - shares[y], y is None, y))  # largest remainders, then in order
    for y in rest[: n - sum(quota.values())]:
        quota[y] += 1
    chosen = np.zeros(len(ids), bool)
    # By a hash of its id: another outlier more or less moves few others.
    for row in sorted(np.flatnonzero(inside), key=lambda r: hashlib.sha256(f"{seed}/{ids[r]}".encode()).digest()):
        if quota[labels[row]]:
            quota[labels[row]] -= 1
            chosen[row] = True
    return chosen


def counts(choice: Choice) -> dict[str, Any]:
    """How many there are in each band, how many are kept, and why the others are not."""
    bands = Counter(choice.band)
    return {
        "n": len(choice.keep),
        "kept": sum(choice.keep),
        "bands": {
            b: {"n": bands[b], "kept": sum(k for k, at in zip(choice.keep, choice.band, strict=True) if at == b)}
            for b in BANDS
        },
        "reasons": dict(Counter(r for r in choice.reason if r)),
    }


def warnings_of(
    choice: Choice, settings: FilterSettings, p_held_out: Float[np.ndarray, " M"], reports: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What makes the filter's word worth less, one line each."""
    said, found = [], counts(choice)
    rate, (low, high) = found["kept"] / found["n"], settings.ends
    if settings.band not in ("random", "none") and not FEW <= rate <= MOST:
        said.append(
            f"{found['kept']} of {found['n']} outliers are kept ({rate:.1%}): the band says little of them; move filter.low and filter.high"
        )
    if settings.n_keep is not None and found["kept"] < settings.n_keep:
        said.append(
            f"{found['kept']} outliers lie in the band, fewer than n_keep={settings.n_keep}; all of them are kept"
        )
    if missing := found["reasons"].get(NOT_FINITE):
        said.append(f"{missing} outliers have no finite score and are not kept")
    inside = float(((p_held_out >= low) & (p_held_out <= high)).mean())
    if inside > ID_INSIDE and settings.band != "none":
        said.append(
            f"{inside:.1%} of held-out ID images lie in the middle band too: training would call their like OOD"
        )
    for r in reports:
        if r["ece"] > ECE:
            said.append(
                f"the calibration is off by {r['ece']:.3f} on average (ECE, cross-validated): P(ID) is no probability here"
            )
        if r["separated"]:
            said.append(
                "the scout tells the two sides of the calibration set apart without error: P(ID) is a step, and few outliers lie between; take harder OOD images"
            )
        if r["at_bounds"]:
            said.append(f"{r['at_bounds']} of the calibration's parameters ended at 0, their bound" + _idle(settings))
    return list(dict.fromkeys(said))


def _idle(settings: FilterSettings) -> str:
    return "; energies lie far from 0, where beta calibration has one slope only" if settings.score == "energy" else ""


def _nothing(p_id: Float[np.ndarray, " n"], n: int, settings: FilterSettings) -> str:
    at = ", ".join(f"{q:.3g}" for q in np.quantile(p_id, [0, 0.5, 1]))
    ends = {"mid": "from {0:g} to {1:g}", "high": "from {0:g} on", "low": "up to {1:g}"}.get(settings.band, "anywhere")
    return (
        f"{n} of {len(p_id)} outliers kept with band={settings.band}, P(ID) {ends.format(*settings.ends)}, and training needs 2: least, median "
        f"and greatest P(ID) are {at}; move filter.low and filter.high, or take another filter.calibration"
    )
