"""GOOD's components (its Table 3) on the digits: image level, feature level, both, and each with the unified score of Fig. 8.

outskirts run good_components
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart

LEVELS = {"image level": ("image",), "feature level": ("feature",)}


def recipe() -> Recipe:
    q = quickstart.recipe()
    alone = {label: {**q.synth_with, "guidance": levels} for label, levels in LEVELS.items()}
    unguided = {**alone["image level"], "image_grid": (0.0,), "strength": "literal"}
    return replace(
        q,
        name="good_components",
        about="GOOD's components (Table 3, Fig. 8) on the digits: no guidance, image level, feature level, both; by energy, kNN and unified score.",
        synth_with={**q.synth_with, "guidance": ("image", "feature")},
        methods={
            "no guidance": {"synth": "good", "with": unguided},
            **{label: {"synth": "good", "with": options} for label, options in alone.items()},
        },
        own=("good", *LEVELS),
    )
