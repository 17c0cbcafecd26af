"""Bad-OOD where some ID classes have few images (its Table 10), on the digits: all of the zeros, a thirteenth of the sixes.

outskirts run badood_imbalanced --out runs/badood_imbalanced

Beside it Dream-OOD's idea, as in the paper, with the diffusion model of the quickstart, which saw the classes in equal number.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits


def recipe() -> Recipe:
    return replace(
        badood_digits.recipe(),
        name="badood_imbalanced",
        about="Bad-OOD on handwritten digits of unequal classes (Table 10): 0 to 92 % of a class's training images are left out.",
        imbalance=1 / 13,
        n_outliers=440,  # one for each ID image that is left
        methods={"Dream-OOD": {"synth": "dream", "with": {"steps": 20, "batch_size": 128}}},
        own=("badood",),
    )
