"""Where the scores fall, as the report draws it: ID, outliers and OOD test sets on one axis."""

from collections.abc import Mapping

import numpy as np

from outskirts import inspection, wording

TARGETS = {"energy": "image", "knn": "feature"}
"""Scores that are always drawn, and the guidance that pushes outliers by each."""


def histograms(
    scores: Mapping[str, np.ndarray], method: str | None, found: list[dict], facts_of: Mapping, headline: str | None
) -> list[dict]:
    """The score of the headline, energy and kNN distance: of the plain classifier, with the outliers by strength, and of the method
    after training."""
    panels = []
    for who in (wording.PLAIN, method):
        for score in dict.fromkeys([*([headline] if headline else []), *TARGETS]):
            keys = [k.split("|") for k in scores if k.split("|")[0] == who and k.split("|")[2] == score]
            seed = min((k[1] for k in keys), default=None)
            sets = {k[3]: scores["|".join(k)] for k in keys if k[1] == seed}
            if "id" not in sets:
                continue
            series = [("", "ID test", "id", sets.pop("id"))]
            if who == wording.PLAIN and score in facts_of:
                # An energy panel shows what was pushed by energy, where the method has targets; otherwise everything.
                mine = [lv for lv in found if lv["target"] in (TARGETS.get(score), None)] or found
                series += [(lv["about"], lv["label"], f"s{lv['level']}", facts_of[score][lv["rows"]]) for lv in mine]
            elif "outliers" in sets:
                series.append(("", "held-out outliers", "s3", sets["outliers"]))
            sets.pop("outliers", None)
            series += [("OOD test sets", name, "ood", values) for name, values in sets.items()]
            panels.append({"method": who, "score": score, "seed": seed, **inspection.binned(series)})
    return panels


def nearest(found: list[dict], facts_of: Mapping, id_val: Mapping) -> dict | None:
    """Distance to the nearest ID training image: ID validation beside the outliers of each level."""
    if "nearest_id" not in facts_of or "nearest_id" not in id_val:
        return None
    pooled = [("", "ID validation", "id", id_val["nearest_id"])]
    pooled += [(lv["about"], lv["label"], f"s{lv['level']}", facts_of["nearest_id"][lv["rows"]]) for lv in found]
    return inspection.binned(pooled)
