"""The level that Bad-OOD's anchors are noised to (its Table 4) on the digits: t = 200, 300, 400, with guided paths of one length.

outskirts run badood_level --out runs/badood_level
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits

LENGTH = (3.75,)
"""0.05, the paper's headline scale, for each of 75 steps; a ratio would be searched for anew at each level, and undo what is compared."""
OTHERS = (200, 400)


def methods(levels: Iterable[int], given: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """One for each of `levels`; `given` are the other settings of the synthesizer."""
    return {f"t {t}": {"synth": "badood", "with": {**given, "t": t}} for t in levels}


def recipe() -> Recipe:
    base = badood_digits.recipe()
    same = {**base.synth_with, "strengths": LENGTH}
    levels = methods(OTHERS, same)
    return replace(
        base,
        name="badood_level",
        about="The level that anchors are noised to (Table 4) on handwritten digits; the recipe's own is 300.",
        synth_with=same,
        methods=levels,
        own=("badood", *levels),
    )
