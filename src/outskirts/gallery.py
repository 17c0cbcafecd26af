"""The outliers that a report shows, by level, each beside the ID image that it was made from where there is one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from outskirts.inspection import data_uri, read_images

PER_ROW = 14
"""Images of a level."""


def shown(rows: Sequence[Mapping], found: Sequence[Mapping]) -> list[list[int]]:
    """Which rows of each level have their place: classes side by side in the same order, smallest ids first."""
    picked = []
    for level in found:
        by_label: dict = {}
        for i in level["rows"]:
            by_label.setdefault(rows[i].get("label"), []).append(i)
        each = max(1, PER_ROW // len(by_label))
        order = sorted(by_label, key=lambda c: (c is None, c))[:PER_ROW]
        picked.append([i for c in order for i in sorted(by_label[c], key=lambda i: rows[i]["id"])[:each]])
    return picked


def gallery(
    folder: Path,
    rows: Sequence[Mapping],
    found: Sequence[Mapping],
    facts: Mapping,
    sources: Mapping[str, np.ndarray],
) -> list[dict]:
    """The levels with images. `sources` are those of 6-bench/sources.npz: `id` of the outlier, `images` UInt8[n, 3, H, W]."""
    picked = shown(rows, found)
    uris = read_images(folder, [rows[i]["id"] for p in picked for i in p])
    made_from = {
        int(i): data_uri(Image.fromarray(x.transpose(1, 2, 0)))
        for i, x in zip(sources.get("id", ()), sources.get("images", ()), strict=True)
    }
    confidence = facts.get("max_softmax")
    strips = []
    for level, chosen in zip(found, picked, strict=True):
        images = []
        for i in (i for i in chosen if rows[i]["id"] in uris):
            sure = None if confidence is None or not np.isfinite(confidence[i]) else float(confidence[i])
            row = {k: rows[i].get(k) for k in ("id", "label", "source", "prompt")}
            source = {"src": made_from.get(row["id"])}  # pixels stay in the page
            images.append({"src": uris[row["id"]], **row, "made_from": source, "confidence": sure})
        if images:
            strips.append({**{k: level[k] for k in ("target", "about", "label", "level", "of")}, "images": images})
    return strips
