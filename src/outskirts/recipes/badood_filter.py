"""Bad-OOD's filter on the digits: which band of P(ID) is trained on (its Table 2), and what P(ID) is calibrated by (Table 6).

outskirts run badood_filter --out runs/badood_filter

All methods share the outliers and the scout, and each trains on what its own filter keeps; the recipe's own method keeps all. `random` keeps
as many as `mid`.
"""

from dataclasses import replace

from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits, compare

BANDS = ("mid", "high", "low", "random")
CALIBRATORS = ("platt", "temperature", "isotonic")
"""Beside beta, which the bands are of."""


def recipe() -> Recipe:
    filters = {band: {"band": band} for band in BANDS}
    filters |= {f"mid, {name}": {"band": "mid", "calibrator": name} for name in CALIBRATORS}
    filters["mid, by rank"] = {"band": "mid", "calibration": "rank"}
    return replace(
        badood_digits.recipe(),
        name="badood_filter",
        about="Bad-OOD's filter on handwritten digits: bands (Table 2) and calibrators (Table 6), all of the same outliers and the same scout.",
        methods={label: {"of": "badood", "filter": given} for label, given in filters.items()},
        own=tuple(label for label in filters if label != "random"),
        filter=FilterSettings(band="none"),
        analyse=AnalyseSettings(shift_map="none"),
        stages=compare.FILTERED,
    )
