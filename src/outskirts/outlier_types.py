"""OOD-I, II and III: is an outlier still recognised as what it was made from, as something else, or hardly at all? (Bad-OOD Table 3)

The paper does not say when an image is hardly recognisable. Here: where the judge is less sure of its best answer than it is of all but
5 % of held-out ID images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import chi2_contingency
from torch import Tensor

TYPES = ("I", "II", "III")
QUANTILE = 0.05


def threshold(logits: Float[Tensor, "N V"]) -> float:
    """tau: the confidence that 5 % of held-out ID images stay under."""
    return logits.double().softmax(1).amax(1).quantile(QUANTILE).item()


def types_of(logits: Float[Tensor, "B V"], anchors: Int64[Tensor, " B"], tau: float) -> list[str]:
    """I: recognised as its anchor's class; II: as another; III: with less confidence than tau. `anchors` are classes of the judge."""
    sure, top = logits.double().softmax(1).max(1)
    rows = zip((sure < tau).tolist(), (top == anchors).tolist(), strict=True)
    return ["III" if hardly else "I" if same else "II" for hardly, same in rows]


def table(types: Sequence[str], keep: Sequence[bool]) -> dict[str, Any]:
    """Of each type: n, kept, the share removed, and the odds of its removal against the others' (None where a cell is empty).

    `p` is that of a chi-squared test that removal does not depend on the type. Without it, "most of what is removed are I and III"
    says no more than that most outliers are.
    """
    t, k = np.array(types), np.array(keep, bool)
    counts = {name: (int((t == name).sum()), int(((t == name) & k).sum())) for name in TYPES}
    rows = {}
    for name, (n, kept) in counts.items():
        gone, others_kept = n - kept, int(k.sum()) - kept
        others_gone = len(t) - n - others_kept
        odds = gone * others_kept / (kept * others_gone) if kept and others_gone else None
        rows[name] = {"n": n, "kept": kept, "removed": gone / n if n else None, "odds_ratio": odds}
    grid = np.array([[kept, n - kept] for n, kept in counts.values() if n])
    testable = len(grid) > 1 and (grid.sum(0) > 0).all()
    return {"n": len(t), "types": rows, "p": float(chi2_contingency(grid).pvalue) if testable else None}
