"""Many methods, or many scores, side by side: comparison.json and comparison.html, one page that needs nothing beside it.

The report writes it where a run measured more than one method besides the plain classifier and the noise floor, or several
scores of a classifier as it is. Rows are methods x scores; curves and histograms are of one score, see `ranking.headline_score`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from outskirts import caveats, pages, panels, ranking, verdict
from outskirts.methods import key_of
from outskirts.wording import NOISE, PLAIN, finite, label

HOT = 6
"""Curves that have a colour of their own; the others are grey."""
DASHED = 4
"""The colour of the plain classifier among methods, a dashed line."""


def wanted(summaries: Sequence[Mapping]) -> bool:
    """Is there more than one thing to set side by side?"""
    methods = {s["method"] for s in summaries}
    scores = {s["score"] for s in summaries}
    return len(methods - {PLAIN, NOISE}) > 1 or (methods == {PLAIN} and len(scores) > 1)


def gather(folder: Path, rows: Sequence[Mapping], shared: Mapping) -> dict:
    """Everything the page shows, as plain data; `shared` holds what the report has read: tables (every summary), differences,
    recipe, stamp, title, warnings, benchmark, published, full_spectrum, detectors, few, missing."""
    summaries, recipe = shared["tables"], shared["recipe"] or {}
    missing = list(shared["missing"])
    score = ranking.headline_score(summaries)
    methods = list(dict.fromkeys(s["method"] for s in summaries))
    costs = pages.read(folder, "6-bench/methods.json", missing if len(methods) > 1 else [], "time and memory")
    own = own_methods(methods, recipe, costs or [])
    stands = ranking.standing(ranking.whole(summaries), shared["differences"], own, score)
    lines = entries(summaries, stands, own)
    first = {m: min((r.get("seed") or 0 for r in rows if r["method"] == m), default=0) for m in methods}
    heads = {f"{x['method']}|{first[x['method']]}|{x['score']}" for x in lines}
    arrays = (
        pages.read(folder, "6-bench/scores.npz", missing, "curves", lambda key: key.rpartition("|")[0] in heads) or {}
    )
    sets = [s for s in summaries if s["place"] not in verdict.MEANS]
    sets = [next(s for s in sets if s["place"] == name) for name in dict.fromkeys(s["place"] for s in sets)]
    found = [panels.of_entry(arrays, f"{x['method']}|{first[x['method']]}|{x['score']}") for x in lines]
    return {
        "title": shared["title"],
        "alone": len(methods) == 1,
        "own": own,
        "standing": stands,
        "tables": summaries,
        "differences": means_only(shared["differences"]),
        "sets": [{"set": s["place"], "group": s["group"], "n_ood": s["n_ood"]} for s in sets],
        "entries": lines,
        "n_id": max((s["n_id"] or 0 for s in summaries), default=None),
        "roc": panels.roc_panels(lines, found, [s["place"] for s in sets]),
        "distributions": panels.distributions(found, [s["place"] for s in sets]),
        "costs": costs,
        "made": made(methods, recipe),
        "leaked": caveats.leaked(methods, shared["warnings"] or (), recipe),
        "inverted": inverted(folder, methods, recipe, summaries),
        **{
            k: shared[k]
            for k in ("recipe", "stamp", "warnings", "benchmark", "published", "full_spectrum", "detectors", "few")
        },
        "missing": missing,
    }


def own_methods(methods: Sequence[str], recipe: Mapping, costs: Sequence[Mapping]) -> list[str]:
    """The methods that are compared: as the bench noted, else as the recipe says, else its own first one."""
    first = [m for m in methods if m not in (PLAIN, NOISE)][:1]
    names = [c["method"] for c in costs if c.get("own")] or recipe.get("own") or first
    return [m for m in methods if m in names]


def entries(summaries: Sequence[Mapping], stands: Mapping, own: Sequence[str]) -> list[dict]:
    """What a line of every figure stands for, best first: a method with the headline score, or a score of the only method.

    `hot` numbers those that are drawn in a colour: the compared methods, the best baseline, the plain classifier, the noise
    floor, then whoever comes next; three places are kept for baselines.
    """
    alone = len(stands["methods"]) == 1
    named = [(s["method"], s["score"]) for s in stands["order"]]
    # What has no value over all sets comes last, and is named all the same.
    rest = [
        (s["method"], s["score"])
        for s in summaries
        if not s["transductive"] and (alone or s["score"] == stands["score"])
    ]
    named = list(dict.fromkeys([*named, *rest]))
    baseline = (stands["best_baseline"] or {}).get("method")
    mine = [x for x in named if x[0] in own][: HOT // 2]
    marked = [x for who in (baseline, PLAIN, NOISE) for x in named if not alone and x[0] == who]
    hot = list(dict.fromkeys([*mine, *marked, *named]))[:HOT]
    plain = [x for x in hot if x[0] == PLAIN and not alone]
    free = iter([i for i in range(HOT) if not plain or i != DASHED])
    colour = {x: DASHED if x in plain else next(free) for x in hot}
    return [
        {
            "method": m,
            "score": s,
            "name": label(s if alone else m),
            "own": m in own,
            "hot": colour.get((m, s)),
        }
        for m, s in named
    ]


def means_only(differences: Iterable[Mapping]) -> list[dict]:
    """Differences of the means over sets, a score against itself; those of single sets are in 6-bench/differences.json."""
    keys = ("method", "baseline", "score", "transductive", "place", "metric", "diff", "lo", "hi", "seeds", "verdict")
    return [
        {k: d[k] for k in keys}
        for d in differences
        if d["place"] in verdict.MEANS and d["score"] == d["baseline_score"] and finite(d["diff"])
    ]


def made(methods: Sequence[str], recipe: Mapping) -> list[dict]:
    """How each method came about, from the recipe: its outliers, their settings, what its training changes."""
    extra = recipe.get("methods") or {}
    first = next((m for m in methods if m not in (PLAIN, NOISE, *extra)), None)
    out = []
    for m in methods:
        entry = extra.get(m, {})
        if m == PLAIN:
            text, options = f"none: the classifier as it was ({recipe.get('classifier', 'not noted')})", {}
        elif m in extra and "of" in entry:
            text, options = f"those of {label(entry['of'])}", {}
        elif m in extra:
            text = (
                f"images of {entry['outliers']}" if "outliers" in entry else f"made by {label(entry.get('synth', m))}"
            )
            options = entry.get("with", {})
        elif m == first:
            given = recipe.get("outliers")
            text = f"images of {given}" if given else f"made by {label(recipe.get('synth', m))}"
            options = {} if given else recipe.get("synth_with") or {}
        else:
            text, options = "Gaussian noise" if m == NOISE else "not in the recipe", {}
        keeps = (recipe.get("filter") or {}).get("band") == "none"  # of the recipe's own method, everything
        if "filter" in entry or (m == first and "filter" in (recipe.get("stages") or ()) and not keeps):
            text += ", filtered"
            options = {**options, **{f"filter {k}": v for k, v in entry.get("filter", {}).items()}}
        out.append({"method": m, "outliers": text, "with": dict(options), "train": dict(entry.get("train", {}))})
    return out


def inverted(folder: Path, methods: Sequence[str], recipe: Mapping, summaries: Sequence[Mapping]) -> list[dict]:
    """The methods after whose training held-out outliers have less energy than ID images: in how many of their seeds, and the
    score by which each has the highest mean AUROC over all sets."""
    seeds: dict[str, list[bool]] = {}
    for path in sorted((folder / "5-train").rglob("log.json")):
        log = pages.read(path.parent, path.name, [], "")
        check = log.get("energy_check") if isinstance(log, dict) else None
        if check:
            key = path.parent.parent.relative_to(folder / "5-train").as_posix()
            seeds.setdefault(key, []).append(bool(check.get("inverted")))
    named = {m: key_of(m) if m == NOISE or m in (recipe.get("methods") or {}) else "." for m in methods if m != PLAIN}
    fair = ranking.whole(summaries)
    return [
        {"method": m, "seeds": sum(seeds[key]), "of": len(seeds[key]), "best": ranking.best_of(fair, [m])}
        for m, key in named.items()
        if any(seeds.get(key, ()))
    ]


def render(facts: Mapping) -> str:
    """The page."""
    ours = [s for s in facts["tables"] if s["place"] in verdict.MEANS]
    published = [published_line(r) for r in facts["published"] or () if r.get("table", "standard") == "standard"]
    cells = {(s["method"], s["score"], s["place"]): s for s in facts["tables"]}
    top = {
        k[:2]: s["auroc"][0]
        for s in ours
        if s["place"] == ranking.ALL and s["auroc"]
        for k in [(s["method"], s["score"])]
    }
    names = list(dict.fromkeys((s["method"], s["score"]) for s in facts["tables"]))
    fair = [s for s in ranking.whole(facts["tables"]) if s["method"] not in facts["leaked"]]
    words = {
        "fair": {(s["method"], s["score"], s["place"]) for s in fair},
        "lines": sorted(names, key=lambda n: -top.get(n, -1.0)),
        "cells": cells,
        "published_lines": published,
        "places": [p for p in verdict.MEANS if any(s["place"] == p for s in ours)],
        "axes": ranking.axes(ours),
        "best": verdict.best(fair),
        "forest": panels.forest(facts),
        "heat": panels.heat(facts, cells),
        "memory_added": memory_added(facts["costs"] or []),
    }
    return pages.render("comparison.html.j2", facts, **words)


def memory_added(costs: Sequence[Mapping]) -> dict[str, list[float | None]] | None:
    """What making outliers (synth) and training added to the memory in use, GiB, for each line of methods.json; None where that cannot be
    told apart from what earlier steps of the process left."""
    keys = ("memory_apart", "start_gib", "peak_gib")
    of = {stage: [[c.get(f"{stage}_{k}") for k in keys] for c in costs] for stage in ("synth", "train")}
    pairs = {stage: [(a, b) if apart else (None, None) for apart, a, b in lines] for stage, lines in of.items()}
    found = {k: [max(0.0, b - a) if finite(a) and finite(b) else None for a, b in v] for k, v in pairs.items()}
    return found if any(x is not None for v in found.values() for x in v) else None


def published_line(row: Mapping) -> dict:
    """A published row in the columns of the main table: metric -> place -> value, `sd` beside it."""
    out = {"method": row.get("method") or row.get("training"), "row": row}
    for m in verdict.METRICS:
        found = {place: (row.get(f"{group}_{m}"), row.get(f"{group}_{m}_sd")) for place, group in verdict.MEANS.items()}
        out[m] = {place: v for place, (v, _) in found.items() if finite(v)}
        out[f"{m}_sd"] = {place: sd for place, (_, sd) in found.items() if finite(sd)}
    return out
