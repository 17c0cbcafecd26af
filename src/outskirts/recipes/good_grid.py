"""Energy of GOOD's outliers by rho, by mu and over their 5x5 grid (its Fig. 4 and 7), on the digits: 70 outliers a pair, nothing is trained.

outskirts run good_grid
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart


def recipe() -> Recipe:
    q = quickstart.recipe()
    return replace(
        q,
        name="good_grid",
        about="Energy of image-level outliers by rho, by mu and over the 5x5 grid (GOOD, Fig. 4 and 7) on the digits; nothing is trained.",
        synth_with={**q.synth_with, "guidance": ("image",), "images_per_pair": 10},
        n_outliers=7 * 25 * 10,
        floor=False,
        stages=("classifier", "synth"),
    )
