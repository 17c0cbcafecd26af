"""SONA's share of semantic and of nuisance positions, lambda, and its strength s (its Fig. 7), on the digits.

outskirts run sona_lambda
"""

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

LAMBDAS = (0.1, 0.15, 0.25, 0.4)
SCALES = (2.0, 5.0, 15.0, 20.0)


def recipe() -> Recipe:
    changes = {f"lambda {v:g}": {"lam": v} for v in LAMBDAS} | {f"s {v:g}": {"scale": v} for v in SCALES}
    return sona_digits.ablation(
        "sona_lambda",
        "SONA's ablations of lambda and of s (Fig. 7) on the digits; the recipe's own are 0.2 and 10.",
        sona_digits.made(changes),
    )
