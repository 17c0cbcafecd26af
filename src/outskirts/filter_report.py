"""What a report shows of the filters of a run: the files of 4-filter, 6-look and 6-shift as plain data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outskirts import inspection
from outskirts.pages import read
from outskirts.wording import DASH

PER_BAND = 14
"""Images of a band that the page shows."""
FURTHER = 6
"""The same, of outliers that are not the recipe's own."""
LOOK, OWN = "6-look", "4-filter/verdict"
BINS = 40
SAID = {"high": "above the band: hardly to be told from ID", "mid": "in the band", "low": "below the band: far from ID"}


def gather(folder: Path, recipe: Mapping | None, missing: list[dict]) -> dict[str, Any] | None:
    """Everything the page shows of the filters of a run; None where there is none."""
    found = dict(verdicts(folder))
    if not found:
        return None
    look = read(folder, f"{LOOK}/look.json", missing, "types, diversity and distances of the filtered outliers") or {}
    further = {p.parent.name: read(p.parent, p.name, [], "") for p in sorted(folder.glob(f"{LOOK}-*/look.json"))}
    shift = (folder / "6-shift" / "shift_map.json").is_file()
    return {
        "verdicts": [line(v, f) for v, f in found.items()],
        **seen(folder, recipe, LOOK, look, found, missing, PER_BAND),
        "further": [
            seen(folder, recipe, name, other, found, missing, FURTHER)
            for name, other in further.items()
            if found.keys() & other["verdicts"]
        ],
        "shift": read(folder, "6-shift/shift_map.json", missing, "") if shift else None,
    }


def seen(
    folder: Path,
    recipe: Mapping | None,
    name: str,
    look: Mapping,
    found: Mapping[str, Mapping],
    missing: list[dict],
    per_band: int,
) -> dict[str, Any]:
    """What is shown of the outliers of one store: of the filters that share them, one that goes by P(ID), the recipe's own before a middle band."""
    mine = {v: found[v]["settings"]["band"] for v in found if v in look.get("verdicts", {})} or {next(iter(found)): ""}
    main = min(mine, key=lambda v: (mine[v] in ("none", "random"), v != OWN, mine[v] != "mid"))
    verdict = read(folder, f"{main}/verdict.json", missing, "verdict on every outlier") or {}
    return {
        "main": found[main],
        "judge": {k: look.get(k) for k in ("judge", "independent", "tau", "neighbour", "encoder")},
        "looked": look.get("verdicts", {}).get(main),
        "histograms": histograms(verdict, found[main]),
        "gallery": gallery(store_of(folder, recipe, name), verdict, per_band),
    }


def verdicts(folder: Path) -> list[tuple[str, dict]]:
    """(folder below the run's, filter.json) of every filter, the recipe's own first."""
    paths = sorted(folder.glob("4-filter/verdict*/filter.json"))
    return [(p.parent.relative_to(folder).as_posix(), read(p.parent, p.name, [], "")) for p in paths]


def line(folder: str, facts: Mapping) -> dict[str, Any]:
    """A filter as a row of the table of filters, with the folder of its verdict on every outlier."""
    s, r = facts["settings"], facts["reports"]
    keep = {"folder": folder} | {k: facts[k] for k in ("method", "ends", "against", "warnings", "counts")}
    calibrator = (s["calibrator"] or "beta") if r else "rank"
    ece = max((x["ece"] for x in r), default=None)
    low, high = (f"{v:g}" for v in facts["ends"])
    span = {"mid": f"{low}{DASH}{high}", "high": f"from {low}", "low": f"up to {high}"}.get(s["band"], DASH)
    return {**keep, "band": s["band"], "span": span, "score": s["score"], "calibrator": calibrator, "ece": ece}


def histograms(verdict: Mapping, facts: Mapping) -> list[dict[str, Any]]:
    """P(ID) of held-out ID images and of the outliers, over equal bins of [0, 1]."""
    edges = np.linspace(0, 1, BINS + 1)
    series = [("held-out ID images", "id", facts["p_id_val"]), ("outliers", "s3", verdict.get("p_id", []))]
    out = []
    for name, cls, values in series:
        v = np.array([x for x in values if x is not None], float)
        if len(v):
            out.append({"label": name, "cls": cls, "n": len(v), "share": (np.histogram(v, edges)[0] / len(v)).tolist()})
    return out


def gallery(store: Path | None, verdict: Mapping, per_band: int) -> list[dict[str, Any]]:
    """Outliers of each band, from those most like ID to those least like it, evenly spread over it."""
    rows = [
        r
        for r in zip(*(verdict.get(k, []) for k in ("id", "p_id", "band", "keep", "label")), strict=True)
        if r[1] is not None
    ]
    rows.sort(key=lambda r: (-r[1], r[0]))
    picked = {}
    for band in SAID:
        inside = [r for r in rows if r[2] == band]
        at = np.linspace(0, len(inside) - 1, min(per_band, len(inside))).round().astype(int)
        picked[band] = (len(inside), [inside[i] for i in at])
    uris = inspection.read_images(store, [r[0] for _, some in picked.values() for r in some]) if store else {}
    return [
        {
            "band": band,
            "said": SAID[band],
            "n": n,
            "images": [
                {"src": uris[i], "id": i, "p_id": p, "keep": keep, "label": label}
                for i, p, _, keep, label in some
                if i in uris
            ],
        }
        for band, (n, some) in picked.items()
    ]


def store_of(folder: Path, recipe: Mapping | None, look: str) -> Path | None:
    """Where the pictures are: in the store of the run that a look was taken at, or in the one that its recipe names."""
    steps = (read(folder, f"{look}/inputs.json", [], "") or {}).get("steps", {})
    kind, _, named = ((recipe or {}).get("outliers") or "").partition(":")
    base = Path(named).expanduser() if kind == "store" else folder
    made = [folder / s / "store" for s in steps if s.startswith("3-synth")]
    places = made or [base / below for below in ("3-synth/store", "store", "")]
    return next((p for p in places if (p / "store.json").is_file()), None)
