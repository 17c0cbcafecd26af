"""A look at filtered outliers: their types, how they differ, how far from the ID images they lie in each band. For the report."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from outskirts import diversity, outlier_types
from outskirts.evaluate import collect
from outskirts.images import Images, spread
from outskirts.judge import Judge, load_judge
from outskirts.methods import Method, methods
from outskirts.outlier_sets import VERDICT, labels_of, made
from outskirts.run import Run, read_json, write_json
from outskirts.scores.knn import kth_distance

MOST = 10_000
"""Outliers, and ID images, that are looked at."""
K = 10
"""The neighbour whose distance is taken, among ID training images, features of length 1."""


def look(m: Method, run: Run, out: Path) -> None:
    """6-look/look.json: for every verdict on the outliers of a method, their types, diversity and distance by band."""
    judge, parts = load_judge(run, out), run.inputs.parts
    ids, found = made(run, m)
    rows = _drawn(ids, MOST)
    ids = [ids[i] for i in rows]
    labels = labels_of(run, m, ids)
    found = found.subset(rows) if isinstance(found, Images) else found[rows]
    seen = collect(judge.classifier, found) if isinstance(found, Images) else None
    columns: dict[str, list] = {"id": ids, "label": labels, "distance": _distances(run, judge, found, seen)}
    facts: dict[str, Any] = {
        "judge": judge.name,
        "independent": judge.independent,
        "neighbour": K,
        "encoder": diversity.ENCODER,
    }
    if seen is not None:
        tau = outlier_types.threshold(collect(judge.classifier, parts["val"]).logits)
        columns |= {"predicted": seen.logits.argmax(1).tolist(), "type": _types(run, judge, seen.logits, labels, tau)}
        facts |= {"tau": tau, "classes": list(judge.classifier.classes)}
    verdicts = {x.filtered.verdict: 0 for x in methods(run.recipe) if x.filtered and x.filtered.look == m.filtered.look}
    facts["verdicts"] = {
        v: _of_verdict(read_json(run.folder / v / VERDICT), columns, found, len(parts["train"].classes))
        for v in verdicts
    }
    write_json(out / "outliers.json", columns)
    write_json(out / "look.json", facts)


def _of_verdict(verdict: dict, columns: dict[str, list], found: Images | Tensor, n_id: int) -> dict[str, Any]:
    place = {i: n for n, i in enumerate(verdict["id"])}
    order = [place[i] for i in columns["id"]]
    keep = [verdict["keep"][n] for n in order]
    p_id = np.array([verdict["p_id"][n] for n in order], np.float64)  # None is NaN
    distance = np.array(columns["distance"], np.float64)
    ok = np.isfinite(p_id)
    rho = (
        spearmanr(p_id[ok], distance[ok]).statistic
        if ok.sum() > 2 and np.ptp(p_id[ok]) and np.ptp(distance[ok])
        else None
    )
    facts = {
        "distances": diversity.by_band(distance, p_id, [verdict["band"][n] for n in order]),
        "spearman": rho and float(rho),
    }
    if not isinstance(found, Images):
        return facts | {"types": None, "diversity": None}
    typed = [(t, k) for t, k in zip(columns["type"], keep, strict=True) if t]
    facts["types"] = outlier_types.table(*zip(*typed, strict=True)) if typed else None
    kept = [n for n, k in enumerate(keep) if k]
    # Of fewer images fewer classes are seen and mean images are rougher: the kept ones are held against as many of all.
    even = _drawn(columns["id"], len(kept))

    def measured(rows: list[int]) -> dict[str, Any]:
        labels, predicted = ([columns[k][n] for n in rows] for k in ("label", "predicted"))
        return diversity.measures(found.subset(rows), labels, predicted, n_id)

    named = {"all": list(range(len(keep))), "kept": kept, "as many, drawn evenly": even}
    facts["diversity"] = {name: measured(rows) for name, rows in named.items() if rows}
    return facts


def _types(run: Run, judge: Judge, logits: Float[Tensor, "N V"], labels: list, tau: float) -> list[str | None]:
    """Of outliers that were made for a class, up to `analyse.types` of them; none for the others."""
    made_for = [n for n, y in enumerate(labels) if y is not None]
    chosen = [made_for[i] for i in _drawn(made_for, run.recipe.analyse.types)]
    types: list[str | None] = [None] * len(labels)
    if chosen:
        anchors = judge.of_class[torch.tensor([labels[n] for n in chosen])]
        for n, t in zip(chosen, outlier_types.types_of(logits[chosen], anchors, tau), strict=True):
            types[n] = t
    return types


def _distances(run: Run, judge: Judge, found: Images | Tensor, seen) -> list[float]:
    """To the K-th nearest ID training image, in the judge's features; in the plain classifier's where outliers are features of it."""
    classifier, features = (
        (judge.classifier, seen.features) if seen is not None else (run.inputs.classifier(), found.float())
    )
    bank = torch.nn.functional.normalize(collect(classifier, spread(run.inputs.parts["train"], MOST)).features, dim=-1)
    return kth_distance(features, bank, min(K, len(bank))).tolist()


def _drawn(ids: list[int], n: int) -> list[int]:
    """Positions of up to `n` of the ids, by their hashes, in order."""
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"look/{ids[i]}".encode()).digest())
    return sorted(order[:n])
