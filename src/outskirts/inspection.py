"""A look at stored outliers: sorted by strength, pictured, counted, and asked whether they are really outside."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from outskirts.store import Store
from outskirts.wording import DASH, minus

CONFIDENT = 0.95
"""Max softmax from which the classifier counts as confident that an image is in distribution."""
BINS = 48
LEVELS = 5
"""Rows of the gallery: the grid of strengths is cut into at most so many levels."""
RHO_MU = "\N{GREEK SMALL LETTER RHO} + \N{GREEK SMALL LETTER MU}"
KNOBS = {"T": "T", "strength": "strength", "ratio": "kNN ratio"}
"""Dials that say how hard an outlier was pushed, and how the page calls them; GOOD has two, RHO_MU."""
TARGETS = {
    "image": "guided by energy (image level)",
    "feature": "guided by kNN distance (feature level)",
    "both": "guided by energy and kNN distance",
}


def read_rows(folder: Path, *, filtered: bool = True) -> list[dict]:
    """Every stored outlier without its pixels, with its dials and notes opened; [] where nothing is stored.

    `left_out` is why it is not used: it failed, or a filter dropped it (not asked where `filtered` is false); else None.
    """
    if not any(folder.glob("shard-*.parquet")):
        return []
    store = Store(folder)
    dropped = store.dropped(filtered=filtered)
    rows = store.rows().to_pylist()
    for row in rows:
        row |= {"dials": json.loads(row["dials"]), "notes": json.loads(row["notes"])}
        row["left_out"] = row["failed"] or (row["id"] in dropped and (dropped[row["id"]] or "filtered out")) or None
    return rows


def are_features(folder: Path) -> bool:
    """Does the store hold points of the classifier's feature space, of which there is no picture?"""
    return any("feature" in pq.read_schema(shard).names for shard in sorted(folder.glob("shard-*.parquet"))[:1])


def read_images(folder: Path, ids: Sequence[int], *, side: int = 128) -> dict[int, str]:
    """PNG data URIs of some outliers; images above `side` pixels are shrunk, small ones stay as they are."""
    uris = {}
    for shard in sorted(folder.glob("shard-*.parquet")):
        if "image" not in pq.read_schema(shard).names:
            continue
        # Shard by shard and only the wanted rows: a store of large images does not fit in memory.
        found = pq.read_table(shard, columns=["id", "image"], filters=[("id", "in", list(ids))])
        for row in found.to_pylist():
            if row["image"] is not None:
                uris[row["id"]] = data_uri(Image.open(io.BytesIO(row["image"]["bytes"])), side)
    return uris


def data_uri(image: Image.Image, side: int = 128) -> str:
    """An image as text that needs no file beside the page."""
    image = image.convert("RGB")
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def columns(facts: Sequence[Mapping] | Mapping[str, Sequence]) -> dict[str, np.ndarray]:
    """A list of dicts, or a dict of lists, as arrays; a number that is missing in a row is NaN."""
    if not isinstance(facts, Mapping):
        keys = dict.fromkeys(k for row in facts for k in row)
        facts = {k: [row.get(k) for row in facts] for k in keys}
    return {k: np.array([np.nan if v is None else v for v in values]) for k, values in facts.items()}


def strength(row: Mapping) -> float | None:
    """How hard an outlier was pushed: T (SONA's steps from its source), `strength`, the kNN ratio that was asked for (Bad-OOD), or
    rho + mu (GOOD's grid); None where the synthesizer has no such knob."""
    dials = row["dials"]
    if knob := next((k for k in KNOBS if k in dials), None):
        return float(dials[knob])
    if "rho" in dials or "mu" in dials:
        # Rounded, so that 0.1 + 0.5 and 0.5 + 0.1, scaled by the same unit, are one strength.
        return float(f"{float(dials.get('rho') or 0) + float(dials.get('mu') or 0):.6g}")
    return None


def levels(rows: Sequence[Mapping], energy: np.ndarray) -> list[dict]:
    """Outliers cut into levels, weakest first, for each guidance target apart.

    A method without a strength is cut into fifths of its energy, and `by` and the label say so.
    """
    groups: dict[str | None, list[int]] = {}
    for i, row in enumerate(rows):
        if not row["left_out"]:
            groups.setdefault(row["dials"].get("target"), []).append(i)
    out = []
    for target, members in groups.items():
        pushes = [strength(rows[i]) for i in members]
        known = None not in pushes
        values = np.array(pushes if known else energy[members], float)
        dials = {d for i in members for d in rows[i]["dials"]}
        name = next((said for d, said in KNOBS.items() if d in dials), RHO_MU) if known else "energy"
        # Ranks of the distinct values, not of the rows: equal strengths must stay together.
        distinct, where = np.unique(values, return_inverse=True)
        part = where * min(LEVELS, len(distinct)) // len(distinct)
        for level in np.unique(part):
            inside = values[part == level]
            lo, hi = (minus(f"{v:.3g}") for v in (inside.min(), inside.max()))
            span = lo if lo == hi else f"{lo} to {hi}" if inside.min() < 0 else lo + DASH + hi
            by = name if np.isfinite(inside).all() else None
            out.append(
                {
                    "target": target,
                    "about": TARGETS.get(str(target), f"guided by {target}" if target else "outliers"),
                    "level": int(level),
                    "of": int(part.max()) + 1,
                    "by": by,
                    "label": f"{by} {span}" if by else "strength unknown",
                    "rows": [members[j] for j in np.flatnonzero(part == level)],
                }
            )
    return out


def outside(found: Sequence[Mapping], facts: Mapping[str, np.ndarray], id_val: Mapping[str, np.ndarray]) -> dict:
    """The check, for ID validation, all outliers and each level: shares in [0, 1], medians in the score's own unit.

    `facts` and `id_val` hold, before outlier training, energy, knn, max_softmax, nearest_id: the outliers' aligned with
    the rows that the levels point to.
    """
    bound = {k: float(np.quantile(id_val[k], 0.95)) for k in ("energy", "knn", "nearest_id") if k in id_val}

    def about(values: Mapping[str, np.ndarray], rows=slice(None)) -> dict:
        take = {k: np.asarray(v, float)[rows] for k, v in values.items() if k in (*bound, "max_softmax")}
        take = {k: v[np.isfinite(v)] for k, v in take.items()}
        take = {k: v for k, v in take.items() if len(v)}
        out = {f"beyond_{k}": float((take[k] > bound[k]).mean()) for k in bound if k in take}
        out |= {f"median_{k}": float(np.median(take[k])) for k in bound if k in take}
        if "energy" in take:
            out["mean_energy"] = float(take["energy"].mean())
        if "max_softmax" in take:
            out["confident"] = float((take["max_softmax"] >= CONFIDENT).mean())
        return out | {"n": int(max((len(v) for v in take.values()), default=0))}

    everything = [i for level in found for i in level["rows"]]
    return {
        "bound": bound,
        "confident_from": CONFIDENT,
        "id_val": about(id_val),
        "all": about(facts, everything),
        "levels": [{k: v for k, v in lv.items() if k != "rows"} | about(facts, lv["rows"]) for lv in found],
    }


def energy_grid(rows: Sequence[Mapping], energy: np.ndarray) -> dict | None:
    """Mean energy over GOOD's grid of rho (down) and mu (across); None where the outliers have no such grid."""
    cells: dict[tuple[float, float], list[float]] = {}
    for row, e in zip(rows, energy, strict=True):
        d = row["dials"]
        if d.get("target", "image") == "image" and "rho" in d and "mu" in d and np.isfinite(e):
            cells.setdefault((float(d["rho"]), float(d["mu"])), []).append(float(e))
    rho, mu = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    if len(rho) < 2 or len(mu) < 2 or len(cells) < len(rho) * len(mu):
        return None
    return {"rho": rho, "mu": mu, "mean_energy": [[float(np.mean(cells[r, m])) for m in mu] for r in rho]}


def binned(series: list[tuple[str, str, str, np.ndarray]], bins: int = BINS) -> dict:
    """Histograms of (part, label, class, values) over shared bins, and the share of each beyond the 95 % point of the first."""
    series = [(*words, np.asarray(v, float)[np.isfinite(v)]) for *words, v in series]
    series = [s for s in series if len(s[-1])]
    bound = float(np.quantile(series[0][-1], 0.95))
    # A far set must not squeeze the rest into one bin: ranges come from percentiles, the end bins hold what lies beyond.
    lo = min(np.quantile(s[-1], 0.005) for s in series)
    hi = max(np.quantile(s[-1], 0.99) for s in series)
    edges = np.linspace(lo, hi if hi > lo else lo + 1, bins + 1)
    return {
        "edges": edges.tolist(),
        "bound": bound,
        "series": [
            {
                "part": part,
                "label": label,
                "cls": cls,
                "n": len(v),
                "beyond": float((v > bound).mean()),
                "share": (np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / len(v)).tolist(),
            }
            for part, label, cls, v in series
        ],
    }
