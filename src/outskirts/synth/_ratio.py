"""How far out: the strength at which outliers lie a given multiple of held-out images' distance away from the training set.

Unguided, noised and denoised anchors come out denser than real images (a ratio of 0.9 is usual), and what a strength does depends on
the dimensions and on how well the model fits. So the user names the ratio, and the strength is searched for.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.synth._shared import seed_of
from outskirts.types import Request

log = logging.getLogger("outskirts")
PROBES = 6
"""Bisections, after a strength beyond the target was found."""
DOUBLINGS = 12
CHUNK = 2**24
"""Distances held at a time."""


def knn_distance(
    z: Float[Tensor, "B d"], bank: Float[Tensor, "N d"], k: int, own: Int[Tensor, "B"] | None = None
) -> Float[Tensor, "B"]:
    """Mean distance to the k nearest rows of `bank`; `own`, the row each came from, is not counted."""
    rows = torch.arange(len(bank), device=bank.device)
    found = []
    for i in range(0, len(z), step := max(1, CHUNK // len(bank))):
        # without matrix products: they round, and an outlier would depend on its batch
        d = torch.cdist(z[i : i + step], bank, compute_mode="donot_use_mm_for_euclid_dist")
        if own is not None:
            d = d.masked_fill(rows == own[i : i + step, None].to(rows.device), torch.inf)
        found.append(d.topk(k, largest=False).values.mean(1))
    return torch.cat(found)


def settle(synthesizer, z_val: Float[Tensor, "n d"] | None, rows: Int[Tensor, "m"]) -> dict[str, Any]:
    """What distances are measured by, the ratio without guidance, and for each ratio its strength, see `find_strengths`.

    The reference is the mean distance of the held-out images `z_val`, or where there are none of the anchors `rows`, which the
    model was not trained on.
    """
    bank, k, n = synthesizer.z_, synthesizer.k, len(synthesizer.z_)
    rows = rows.to(bank.device)
    far = knn_distance(bank[rows], bank, k, rows) if z_val is None else knn_distance(z_val.to(bank), bank, k)
    reference = far.mean().item()
    if not 0 < reference < float("inf"):
        raise OutskirtsError(
            f"held-out images lie at a mean distance of {reference:g}; are they all one image? give others, or another encoder"
        )
    anchors = torch.linspace(0, n - 1, min(synthesizer.probe, n)).long()
    few = [Request(i, seed_of(0, i), source=row) for i, row in enumerate(anchors.tolist())]

    def ratio(strength: float) -> float:
        return knn_distance(synthesizer.represent(few, strength), bank, k, anchors).mean().item() / reference

    unguided = ratio(0.0)
    found = {"knn_reference": reference, "unguided_ratio": unguided}
    if synthesizer.strengths or synthesizer.guidance == "none":
        return found
    return found | find_strengths(ratio, synthesizer.knn_ratio, 0.1 * reference, unguided)


def find_strengths(
    measure: Callable[[float], float], targets: tuple[float, ...], first: float, unguided: float
) -> dict[str, dict[str, Any]]:
    """For each target: the strength whose ratio `measure` is the target's, the ratio that it reaches, and the curve tried.

    `first` is the strength tried first. Where the unguided ratio lies beyond a target already, the strength is 0; where no
    strength reaches it, the best one tried is taken, `reached` is false and a warning says so.
    """
    curve = {0.0: unguided}

    def ratio(strength: float) -> float:
        if strength not in curve:
            curve[strength] = measure(strength)
        return curve[strength]

    return {f"ratio {target:g}": _find(ratio, curve, target, first) for target in sorted(targets)}


def _find(ratio: Callable[[float], float], curve: dict[float, float], target: float, first: float) -> dict[str, Any]:
    if curve[0.0] >= target:
        return _found(0.0, curve, target)
    high = first
    for _ in range(DOUBLINGS):
        if ratio(high) >= target:
            break
        high *= 2
    else:
        best = max(curve, key=curve.__getitem__)
        log.warning(
            "no guidance reaches %g times the distance of held-out images; %g is the farthest", target, curve[best]
        )
        return _found(best, curve, target, reached=False)
    low = max(s for s in curve if s < high and curve[s] < target)
    high = min(s for s in curve if s > low and curve[s] >= target)
    for _ in range(PROBES):
        middle = (low + high) / 2
        low, high = (low, middle) if ratio(middle) >= target else (middle, high)
    share = (target - curve[low]) / (curve[high] - curve[low])
    best = low + share * (high - low)
    ratio(best)
    return _found(best, curve, target)


def _found(strength: float, curve: dict[float, float], target: float, *, reached: bool = True) -> dict[str, Any]:
    tried = [{"strength": s, "ratio": round(r, 5)} for s, r in sorted(curve.items())]
    return {"target": target, "strength": strength, "ratio": curve[strength], "reached": reached, "curve": tried}
