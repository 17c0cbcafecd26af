"""The weight of Bad-OOD's outlier loss (beta, its Table 5) on the digits: the same outliers, lam = 0.1, 0.2, 0.5, 1 beside the quickstart's 2.5.

outskirts run badood_beta --out runs/badood_beta
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits

BETAS = (0.1, 0.2, 0.5, 1.0)


def methods() -> Mapping[str, Mapping[str, Any]]:
    """One for each weight, of the outliers of `badood`."""
    return {f"beta {beta:g}": {"of": "badood", "train": {"lam": beta}} for beta in BETAS}


def recipe() -> Recipe:
    weights = methods()
    return replace(
        badood_digits.recipe(),
        name="badood_beta",
        about="The weight of Bad-OOD's outlier loss (Table 5) on handwritten digits; the recipe's own is the quickstart's 2.5.",
        methods=weights,
        own=("badood", *weights),
    )
