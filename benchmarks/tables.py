"""Tables in Markdown of the files in `results/`; `publish.py tables` puts them into the pages."""

import json
from functools import partial
from pathlib import Path
from statistics import mean

GROUPS = {"mean-near": "near", "mean-far": "far", "mean-all": "all"}
HIGHEST = 12
"""Rows of a table of the highest."""


def table(path: Path, kind: str | None = None) -> str:
    """AUROC and fpr95_id, near, far and all, in percent: the mean over seeds, and the widest of the seeds' 95 % intervals."""
    facts = json.loads(path.read_text())
    if "summaries" in facts:
        return KINDS.get(kind, _comparison)(facts)
    if "judges" in facts:
        return _why(facts)
    if "kind" in facts["rows"][0]:
        return _kinds(facts["rows"])
    rows = [r for r in facts["rows"] if r["set"] in GROUPS or r["group"] in GROUPS]
    lines = [
        "| training | score | AUROC near | AUROC far | AUROC all | fpr95_id all | ID accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, score in dict.fromkeys((r["method"], r["score"]) for r in rows):
        mine = [r for r in rows if (r["method"], r["score"]) == (method, score)]
        cells = [_cell(mine, g, "auroc") for g in GROUPS] + [_cell(mine, "mean-all", "fpr95_id")]
        accuracy = f"{100 * mean(r['id_accuracy'] for r in mine):.1f}"
        marked = f"{score} (transductive)" if mine[0]["transductive"] else score
        lines.append(f"| {method} | {marked} | {' | '.join(cells)} | {accuracy} |")
    return "\n".join(lines) + "\n"


def _comparison(facts: dict, short: bool = False) -> str:
    """Energy, kNN and the unified score of every method, every score of the plain classifier; mean and 95 % interval over seeds and
    test images."""
    lines = [
        "| training | score | AUROC near | AUROC far | AUROC all | fpr95_id all | ID accuracy | AUROC all, against plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = {(s["method"], s["score"], s["place"]): s for s in facts["summaries"]}
    against = {
        (d["method"], d["score"]): f"{100 * d['diff']:+.1f} [{100 * d['lo']:+.1f}, {100 * d['hi']:+.1f}]"
        for d in facts["differences"]
        if (d["baseline"], d["set"], d["metric"]) == ("plain", "mean-all", "auroc")
        and d.get("baseline_score", d["score"]) == d["score"]
    }
    own = {m["method"] for m in facts["methods"] if m["own"]}
    plain = {score: cells[m, score, g]["auroc"][0] for m, score, g in cells if (m, g) == ("plain", "mean-all")}
    shown = {"plain": {"energy", "knn", max(plain, key=plain.get)} if short else set(plain)}
    for method, score in dict.fromkeys((m, s) for m, s, _ in cells):
        others = {"energy"} if short else {"energy", "knn", "unified"}
        if score not in shown.get(method, others):
            continue
        mine = {g: cells.get((method, score, g)) for g in GROUPS}
        numbers = [_interval(cell and cell["auroc"]) for cell in mine.values()]
        numbers.append(_interval(mine["mean-all"]["fpr95_id"]))
        name = f"**{method}**" if method in own else method
        accuracy = f"{100 * mine['mean-all']['id_accuracy'][0]:.1f}"
        lines.append(f"| {name} | {score} | {' | '.join(numbers)} | {accuracy} | {against.get((method, score), '')} |")
    return "\n".join(lines) + "\n"


def _best(facts: dict) -> str:
    """Each method with energy, and with the score of its highest mean AUROC, against the plain classifier with its own."""
    from outskirts import ranking, verdict

    own = [m["method"] for m in facts["methods"] if m["own"]]
    comparisons = verdict.compare(facts["differences"], facts["summaries"])
    rows = ranking.standing(ranking.whole(facts["summaries"]), comparisons, own, None)["across"]
    rows = [r for r in rows if r["verdict"] and r["baseline"] == "plain"]
    best = f"plain {rows[0]['baseline_score']}, {100 * rows[0]['baseline_auroc'][0]:.1f}" if rows else ""
    lines = [f"| training | score | AUROC all | against {best} |", "|---|---|---|---|"]
    for r in rows:
        name = f"**{r['method']}**" if r["method"] in own else r["method"]
        difference = f"{100 * r['diff']:+.1f} [{100 * r['lo']:+.1f}, {100 * r['hi']:+.1f}]"
        lines.append(f"| {name} | {r['score']} | {_interval(r['auroc'])} | {difference} |")
    return "\n".join(lines) + "\n"


def _near(facts: dict) -> str:
    """The highest mean AUROCs on the near sets, each method with one score."""
    own = {m["method"] for m in facts["methods"] if m["own"]}
    cells = {(s["method"], s["score"], s["place"]): s for s in facts["summaries"] if not s["transductive"]}
    near = sorted(((c["auroc"][0], m, s) for (m, s, g), c in cells.items() if g == "mean-near"), reverse=True)
    best = {m: s for _, m, s in reversed(near)}  # the first of each stays
    lines = ["| training | score | AUROC near | AUROC all | ID accuracy |", "|---|---|---|---|---|"]
    for method, score in [(m, s) for _, m, s in near if best[m] == s][:HIGHEST]:
        mine = {g: cells[method, score, g] for g in ("mean-near", "mean-all")}
        numbers = [_interval(cell["auroc"]) for cell in mine.values()]
        name = f"**{method}**" if method in own else method
        lines.append(f"| {name} | {score} | {' | '.join(numbers)} | {100 * mine['mean-all']['id_accuracy'][0]:.1f} |")
    return "\n".join(lines) + "\n"


def _cost(facts: dict) -> str:
    """Seconds of making the outliers and of one training; methods that share outliers are there once."""
    lines = ["| outliers | made in, s | one training, s |", "|---|---|---|"]
    made = set()
    for m in facts["methods"]:
        if (m["synth"], m["synth_seconds"]) not in made:
            made.add((m["synth"], m["synth_seconds"]))
            lines.append(f"| {m['method']} | {m['synth_seconds']:.0f} | {m['train_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _why(facts: dict) -> str:
    """One thing changed at a time: AUROC by validation set, mean over seeds with the smallest and the largest."""
    columns = [f"energy_{k}" for k in facts["judges"] if k != "val"] + ["energy_mean", "knn_mean"]
    heads = [c.replace("_", ", ").replace("mean", "all") for c in columns]
    lines = [f"| setting | {' | '.join(heads)} | ID accuracy |", "|" + "---|" * (len(heads) + 2)]
    for line in facts["settings"]:
        cells = [_spread(line[c]) for c in (*columns, "val_accuracy")]
        lines.append(f"| {line['setting']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: float | list[float]) -> str:
    values = [100 * v for v in (values if isinstance(values, list) else [values])]
    return f"{mean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


def _interval(cell: list | None) -> str:
    return "" if cell is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * v for v in cell))


def _kinds(rows: list[dict]) -> str:
    """Fig. 9(b): means with their 95 % bootstrap intervals."""
    lines = ["| samples | energy | kNN distance | share in unseen classes |", "|---|---|---|---|"]
    for r in rows:
        cells = [(r[k], r[f"{k}_lo"], r[f"{k}_hi"]) for k in ("energy", "knn", "unseen_share")]
        lines.append(f"| {r['kind']} | " + " | ".join("{:.2f} [{:.2f}, {:.2f}]".format(*c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict], group: str, metric: str) -> str:
    found = [r for r in rows if group in (r["set"], r["group"])]
    low, high = min(r[f"{metric}_lo"] for r in found), max(r[f"{metric}_hi"] for r in found)
    return f"{100 * mean(r[metric] for r in found):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


KINDS = {"short": partial(_comparison, short=True), "best": _best, "near": _near, "cost": _cost}
"""Tables of a comparison: most scores left out; each method with a score of its own against the plain classifier's best, by all sets;
the highest on the near sets; seconds."""
