"""VOS on the digits, and what turns its energies the right way round: its features start with less energy than ID images have.

    outskirts run vos_digits

Features around a class mean have, on average, less energy than the mean (logsumexp is convex), so the paper's phi can settle on less energy
for outliers. `phi held` keeps it increasing; `margins` are hinges, which have a direction.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart


def recipe() -> Recipe:
    q = quickstart.recipe()
    return replace(
        q,
        name="vos_digits",
        about="VOS on the digits: phi as in the paper, phi held increasing (train.phi=monotone), energy margins.",
        synth="vos",
        synth_with={},
        methods={
            "phi held": {"of": "vos", "train": {"phi": "monotone"}},
            "margins": {"of": "vos", "train": {"loss": "energy_margin", "lam": 0.1}},
        },
        own=("vos", "phi held", "margins"),
        floor=False,
        scores=("msp", "energy", "knn"),
        score_with={"knn": {"k": 50}},
    )
