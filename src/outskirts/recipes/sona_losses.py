"""SONA's losses (its Table 4) on the digits, on the same outliers: cross-entropy, with uniform OE, with L_MI; and GOOD's loss.

    outskirts run sona_losses

`CE` trains as long as the others with weight 0 on the outliers, which still pass through the network beside the ID images.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

LOSSES = {
    "CE": {"mi": None, "lam": 0.0},
    "CE + OE": {"mi": None},
    "CE + OE + MI 0.1": {"mi": 0.1},
    "CE + OE + MI 1": {"mi": 1.0},  # the paper's weight
    "energy loss": {"mi": None, "loss": "energy_logistic", "lam": 2.5},
}


def recipe() -> Recipe:
    return replace(
        sona_digits.recipe(),
        name="sona_losses",
        about="SONA's ablation of its losses (Table 4) on the digits; the recipe's own is CE + OE + MI 0.01.",
        methods={label: {"of": "sona", "train": train} for label, train in LOSSES.items()},
        own=("sona",),
    )
