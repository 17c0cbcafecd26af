"""SONA's terms (its Table 3) on the digits: plain global guidance, then one term after the other, with and without the overlap filter.

outskirts run sona_terms
"""

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

TERMS = {
    "global guidance": {"global_guidance": True},
    "ID": {"use_nuisance": False, "use_ood": False},
    "ID + word": {"use_nuisance": False},
    "ID + word, unfiltered": {"use_nuisance": False, "nuisance_filter": False},
}


def recipe() -> Recipe:
    return sona_digits.ablation(
        "sona_terms",
        "SONA's ablation of its terms (Table 3) on the digits; the recipe's own has all three, filtered.",
        sona_digits.made(TERMS),
    )
