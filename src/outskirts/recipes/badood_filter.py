"""Bad-OOD's filter on the digits: which band of P(ID) is trained on (its Table 2), and what P(ID) is calibrated by (Table 6).

outskirts run badood_filter --out runs/badood_filter

All methods share the outliers and the scout, and each trains on what its own filter keeps; the recipe's own method keeps all. `random` keeps
as many as `mid`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits, compare

BANDS = ("mid", "high", "low", "random")
CALIBRATORS = ("platt", "temperature", "isotonic")
"""Beside beta, which the bands are of."""


def methods() -> Mapping[str, Mapping[str, Any]]:
    """One for each filter, of the outliers of `badood`."""
    filters = {band: {"band": band} for band in BANDS}
    filters |= {f"mid, {name}": {"band": "mid", "calibrator": name} for name in CALIBRATORS}
    filters["mid, by rank"] = {"band": "mid", "calibration": "rank"}
    return {label: {"of": "badood", "filter": given} for label, given in filters.items()}


def recipe() -> Recipe:
    every = methods()
    return replace(
        badood_digits.recipe(),
        name="badood_filter",
        about="Bad-OOD's filter on handwritten digits: bands (Table 2) and calibrators (Table 6), all of the same outliers and the same scout.",
        methods=every,
        own=tuple(label for label in every if label != "random"),
        filter=FilterSettings(band="none"),
        analyse=AnalyseSettings(shift_map="none"),
        stages=compare.FILTERED,
    )
