"""Where SONA starts (its Fig. 6) on the digits: every outlier from the same T of 20 steps, under SONA's guidance and under global guidance.

    outskirts run sona_start

`feature_distance`, in the notes of every outlier, is how far the classifier sees it from its source: the paper's LPIPS at our size.
"""

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

STARTS = (2, 5, 10, 15, 20)


def recipe() -> Recipe:
    kinds = {"T": {}, "global T": {"global_guidance": True}}
    return sona_digits.ablation(
        "sona_start",
        "SONA's ablation of the start T (Fig. 6) on the digits, beside global guidance; the recipe's own T is drawn from 1 to 20.",
        sona_digits.made({f"{kind} {T}": {**terms, "start": (T, T)} for kind, terms in kinds.items() for T in STARTS}),
    )
