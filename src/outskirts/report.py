"""A run folder -> report.json (every number shown) and report.html (one page that needs nothing beside it).

The page shows what it finds. A part of the run that is not there is named on the page, never left out in silence.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from outskirts import caveats, comparison, filter_report, inspection, kept, pages, ranking, verdict, wording
from outskirts.errors import OutskirtsError
from outskirts.gallery import gallery
from outskirts.histograms import histograms, nearest
from outskirts.pages import read

BESIDE = ("warnings", "benchmark", "published", "full_spectrum")
"""Files of 6-bench that not every run has."""
SKIPPED_CURVES = {"epoch", "step", "steps", "lr", "seconds", "time", "seed"}


def write_report(run_folder: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Write report.json and report.html for a run folder, by default into its `7-report`; returns the page's path.

    Where there are several methods, or several scores of a classifier as it is, comparison.json and comparison.html stand
    beside them, and the report is about the recipe's own method.

    Reads run.json, 3-synth (fit.json, store), 5-train (log.json of each seed) and 6-bench (rows.json, differences.json,
    scores.npz, outliers.json, sources.npz, examples.npz, and where they are there BESIDE). Values are shares in [0, 1] in the JSON and percent on the page.

    Raises OutskirtsError where the folder is no run, or one of these files cannot be read.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise OutskirtsError(f"no folder {str(folder)!r}; give the folder of a run, e.g. runs/q")
    facts = gather(folder)
    if facts["recipe"] is None and facts["tables"] is None:
        raise OutskirtsError(f"{str(folder)!r} holds neither run.json nor 6-bench/rows.json; give the folder of a run")
    out = folder / "7-report" if out is None else Path(out)
    many = facts.pop("comparison")
    if many:
        pages.write(out, "comparison", many, comparison.render(many), indent=None)
    facts["compared"] = many and {k: many[k] for k in ("alone", "own", "standing")}
    return pages.write(out, "report", facts, render(facts))


def gather(folder: Path) -> dict:
    """Everything the page shows, as plain data; parts that are missing are listed under `missing`."""
    missing: list[dict] = []
    run = read(folder, "run.json", missing, "what ran: recipe, stamp") or {}
    recipe = run.get("recipe")
    rows = read(folder, "6-bench/rows.json", missing, "result tables")
    differences = read(folder, "6-bench/differences.json", missing, "verdict and differences")
    examples = read(folder, "6-bench/examples.npz", missing, "example images of the test sets") or {}
    fit = read(folder, "3-synth/fit.json", missing, "where the strength of the guidance landed")
    measured = read(folder, "6-bench/outliers.json", missing, "whether the outliers are outside") or {}

    beside = {name: read(folder, f"6-bench/{name}.json", [], "") for name in BESIDE}
    summaries = verdict.summarise(rows) if rows else []
    methods = list(dict.fromkeys(s["method"] for s in summaries))
    wanted = (recipe or {}).get("synth") if "train" in (recipe or {}).get("stages", ["train"]) else None
    method = next((m for m in (wanted, *methods) if m in methods and m not in (wording.PLAIN, wording.NOISE)), wanted)
    alone = methods == [wording.PLAIN] and wanted is None
    for name in (wording.PLAIN, *(() if alone else (wording.NOISE,))):
        if summaries and name not in methods:
            missing.append({"part": wording.label(name), "file": f"6-bench/rows.json, method {name!r}"})
    compared = verdict.compare(differences or [], summaries)
    here = (wording.PLAIN, method)
    scores = (
        read(
            folder,
            "6-bench/scores.npz",
            missing,
            "histograms",
            lambda key: key.startswith(tuple(f"{m}|" for m in here)),
        )
        or {}
    )

    store = folder / "3-synth" / "store"
    filtered = "filter" in ((recipe or {}).get("stages") or ())
    stored = inspection.read_rows(store, filtered=filtered)
    if not stored:
        missing.append({"part": "outliers, gallery", "file": "3-synth/store/shard-*.parquet"})
    sourced = [r for r in stored if r["source"] is not None and not r["left_out"]]
    sources = read(folder, "6-bench/sources.npz", missing if sourced else [], "ID images that outliers were made from")
    facts_of, id_val = aligned(stored, measured)
    nowhere = np.full(len(stored), np.nan)
    found = inspection.levels(stored, facts_of.get("energy", nowhere))
    if alone:  # a classifier as it is: nothing of this was asked for
        missing = [m for m in missing if m["file"].startswith(("run", "6-bench")) and "outliers" not in m["file"]]
    head = {
        "title": (recipe or {}).get("name") or folder.name,
        "recipe": recipe,
        "stamp": run.get("stamp"),
        **beside,
        "full_spectrum": verdict.summarise(beside["full_spectrum"] or []),
        "missing": missing,
        "tables": summaries or None,
        "differences": compared,
        "few": caveats.few(summaries),
    }
    said, best = None, ranking.alone(summaries, compared) if alone else None
    if compared and method:
        said = verdict.verdict(compared, method, ranking.ahead(summaries, compared, method))
    head["detectors"] = kept.facts(folder, recipe, said)
    many = comparison.gather(folder, rows, head) if comparison.wanted(summaries) else None
    if many:  # this page is about one method; the others are on the page of the comparison
        here = (*here, wording.NOISE)
        head["tables"] = [s for s in summaries if s["method"] in here]
        head["differences"] = [d for d in compared if d["method"] in here and d["baseline"] in here]
    return {
        **head,
        "comparison": many,
        "method": method,
        "alone": best,
        "verdict": said,
        "seconds": seconds(folder),
        "histograms": histograms(scores, method, found, facts_of, (said or best or {}).get("score")),
        "outside": inspection.outside(found, facts_of, id_val) | {"bank": measured.get("bank")}
        if stored and measured
        else None,
        "energy_grid": inspection.energy_grid(stored, facts_of.get("energy", nowhere)),
        "left_out": dict(Counter(r["left_out"] for r in stored if r["left_out"])),
        "nearest": nearest(found, facts_of, id_val),
        "probe": probe(fit, stored),
        "training": [] if alone else training(folder / "5-train", method, missing, only=bool(many)),
        "features": inspection.are_features(store),
        "sorted_by": found[0]["by"] if found else None,
        "gallery": gallery(store, stored, found, facts_of, sources or {}) if stored else [],
        "examples": example_images(examples),
        "filtered": filter_report.gather(folder, recipe, missing) if filtered else None,
    }


def aligned(stored: list[dict], measured: Mapping) -> tuple[dict, dict]:
    """What the plain classifier says of the outliers, in the order of the store (NaN where unknown), and of ID validation.

    From 6-bench/outliers.json, and where that lacks a number, from the notes taken when the outlier was made.
    """
    facts = inspection.columns(measured.get("outliers") or {})
    at = {int(i): n for n, i in enumerate(facts.pop("id", []))}
    order = np.array([at.get(r["id"], -1) for r in stored], int)
    numeric = {k: v.astype(float) for k, v in facts.items() if v.dtype.kind in "fiub"}
    outliers = {k: np.where(order >= 0, np.append(v, np.nan)[order], np.nan) for k, v in numeric.items()}
    for name, note in (("energy", "energy"), ("knn", "knn"), ("max_softmax", "confidence")):
        if name not in outliers and any(note in r["notes"] for r in stored):
            outliers[name] = np.array([r["notes"].get(note, np.nan) for r in stored], float)
    return outliers, inspection.columns(measured.get("id_val") or {})


def probe(fit: Mapping | None, stored: list[dict]) -> dict[str, dict]:
    """3-synth/fit.json: for each guidance target, its unit, what it aimed at, the curve of the probe and the grid in it."""
    out = {}
    for name, t in ((fit or {}).get("targets") or {}).items():
        if "unit" in t:
            dials = [r["dials"].get(d) for r in stored if r["dials"].get("target") == name for d in ("rho", "mu")]
            pushes = [t["unit"] * float(v) for v in dials if v]
            keep = {k: t.get(k) for k in ("unit", "target", "quantile", "strength", "reached", "curve")}
            out[name] = keep | {"grid": [min(pushes), max(pushes)] if pushes else None}
    return out


def seconds(folder: Path) -> dict[str, float]:
    """Wall time of each closed step, from its done.json."""
    steps = [(path.parent, read(path.parent, path.name, [], "")) for path in sorted(folder.rglob("done.json"))]
    return {p.relative_to(folder).as_posix(): d["seconds"] for p, d in steps if wording.finite(d.get("seconds"))}


def training(folder: Path, method: str | None, missing: list[dict], *, only: bool = False) -> list[dict]:
    """log.json of every training: epochs (a list of dicts) as one curve per number, and the energy check at the end.

    `only` the method's own and those of the noise floor.
    """
    logs = []
    for path in sorted(folder.rglob("log.json")):
        parts = [p for p in path.parent.relative_to(folder).parts if not p.startswith("seed-")]
        if only and parts not in ([], [wording.NOISE]):
            continue
        log = read(path.parent, path.name, missing, "training log")
        seed = next((p.removeprefix("seed-") for p in path.parent.parts[::-1] if p.startswith("seed-")), "")
        epochs = log if isinstance(log, list) else log.get("epochs") or []
        names = dict.fromkeys(k for e in epochs for k, v in e.items() if wording.finite(v) and k not in SKIPPED_CURVES)
        x = [e.get("epoch", i) for i, e in enumerate(epochs)]
        logs.append(
            {
                "method": "/".join(parts) or method,
                "seed": seed,
                "curves": {k: {"x": x, "y": [e.get(k) for e in epochs]} for k in names},
                "energy_check": log.get("energy_check") if isinstance(log, dict) else None,
            }
        )
    if not logs:
        missing.append({"part": "training curves, energy check", "file": "5-train/seed-*/log.json"})
    return sorted(logs, key=lambda log: log["method"] != method)


def example_images(arrays: Mapping[str, np.ndarray]) -> list[dict]:
    """6-bench/examples.npz: UInt8[n, 3, H, W] for `id` and each test set, as images for the page."""
    from PIL import Image

    return [
        {"set": name, "images": [inspection.data_uri(Image.fromarray(i.transpose(1, 2, 0))) for i in images[:14]]}
        for name, images in arrays.items()
    ]


def render(facts: Mapping) -> str:
    """The page."""
    pairs, best = verdict.pairs(facts["differences"]), verdict.best(facts["tables"] or [])
    page = "filter_alone.html.j2" if facts["filtered"] and not facts["tables"] else "report.html.j2"
    return pages.render(page, facts, pairs=pairs, best=best)
