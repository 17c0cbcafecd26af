"""Numbers from runs to `results/`, and from there to the tables in README.md.

    python benchmarks/publish.py run runs/good_cifar10 results/good_cifar10_2-cores_2026-11-21.json
    python benchmarks/publish.py tables            # rewrite the tables; --check only compares

A table stands between `<!-- table: FILE -->` and `<!-- end -->`; `FILE short` leaves out most scores of a comparison, `FILE best` holds
each method with a score of its own against the plain classifier's best.
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean

import click
import figures

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"(<!-- table: (\S+?)(?: (short|best))? -->\n).*?(<!-- end -->)", re.DOTALL)
GROUPS = {"mean-near": "near", "mean-far": "far", "mean-all": "all"}


@click.group()
def main():
    pass


for command in (figures.ablation, figures.components, figures.distributions, figures.grid, figures.cost):
    main.add_command(command)


@main.command("run")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def publish(run: Path, out: Path):
    """Everything that the tables and a reader need from a run: rows, differences, how it was made, the stamp."""
    read = lambda name: json.loads((run / name).read_text())  # noqa: E731
    facts = {"what": read("run.json")["recipe"]["name"], **read("run.json")}
    facts["rows"], facts["differences"] = read("6-bench/rows.json"), read("6-bench/differences.json")
    facts["strength"] = read("3-synth/fit.json")
    facts["energy_check"] = {
        p.parent.name: json.loads(p.read_text())["energy_check"] for p in sorted(run.glob("5-train/seed-*/log.json"))
    }
    facts["seconds"] = {
        p.parent.relative_to(run).as_posix(): json.loads(p.read_text())["seconds"]
        for p in sorted(run.rglob("done.json"))
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")


@main.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def comparison(run: Path, out: Path):
    """A run of many methods, over seeds: every method, score and set, and the differences of the means that the verdicts rest on."""
    from outskirts import verdict

    read = lambda name: json.loads((run / name).read_text())  # noqa: E731
    facts = {"what": read("run.json")["recipe"]["name"], **read("run.json"), "methods": read("6-bench/methods.json")}
    facts["stamp"] = _anywhere(facts["stamp"], facts["what"])
    facts["summaries"] = verdict.summarise(read("6-bench/rows.json"))
    facts["differences"] = [
        d
        for d in read("6-bench/differences.json")
        if d["set"] in GROUPS
        and d["metric"] in ("auroc", "fpr95_id")
        and (d["score"] in ("energy", "knn") or d["score"] != d["baseline_score"])
    ]
    facts["seconds"] = {
        p.parent.relative_to(run).as_posix(): json.loads(p.read_text())["seconds"]
        for p in sorted(run.rglob("done.json"))
    }
    if filters := [json.loads(p.read_text()) for p in sorted(run.glob("4-filter/*/filter.json"))]:
        facts["filters"] = [_filter(f) for f in filters]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_rounded(facts)).replace('{"method"', '\n{"method"') + "\n")


@main.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--score", default="energy", show_default=True)
def shared(run: Path, out: Path, score: str):
    """What another filter, loss or weight does to the same outliers: paired differences to the method that made them, from a run's scores."""
    import numpy as np
    import torch

    from outskirts import methods
    from outskirts.evaluate import compare
    from outskirts.run import load_run
    from outskirts.scored import Scored
    from outskirts.stamp import stamp

    recipe, arrays = load_run(run), np.load(run / "6-bench/scores.npz")
    rows = json.loads((run / "6-bench/rows.json").read_text())
    of = {(r["method"], r["seed"], r["set"]): r for r in rows if r["score"] == score and r["set"] not in GROUPS}

    def scored(label: str) -> list[Scored]:
        scores = lambda seed, part: torch.from_numpy(arrays[f"{label}|{seed}|{score}|{part}"])  # noqa: E731
        return [
            Scored(
                label, seed, score, False, part, r["group"], scores(seed, "id"), scores(seed, part), r["id_accuracy"]
            )
            for (method, seed, part), r in of.items()
            if method == label
        ]

    pairs = [(a.label, b.label) for a, b in methods.shared(methods.methods(recipe))]
    known = {label: scored(label) for label in dict.fromkeys(label for pair in pairs for label in pair)}
    found = [
        d
        for a, b in pairs
        for d in compare(known[a], known[b])
        if d["set"] in GROUPS and d["metric"] in ("auroc", "fpr95_id")
    ]
    facts = {
        "what": f"shared outliers of {recipe.name}",
        "score": score,
        "differences": found,
        "stamp": stamp(seeds=recipe.seeds),
    }
    facts["run"] = _anywhere(json.loads((run / "run.json").read_text())["stamp"], recipe.name)
    facts["stamp"]["command"] = f"publish.py shared runs/{recipe.name} {out}"
    out.write_text(json.dumps(_rounded(facts)).replace('{"method"', '\n{"method"') + "\n")


def _anywhere(stamp: dict, name: str) -> dict:
    """The command as anyone gives it, in no one's own folder."""
    return stamp | {"command": re.sub(r"--out \S+", f"--out runs/{name}", stamp["command"])}


def _filter(facts: dict) -> dict:
    """How a filter was calibrated and what it kept, without its curves."""
    reports = [{k: v for k, v in r.items() if k != "curve"} for r in facts["reports"]]
    return {k: facts[k] for k in ("method", "settings", "against", "counts", "warnings")} | {"reports": reports}


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


@main.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def picture(run: Path, out: Path, columns: int = 16):
    """Outliers of a run by strength of guidance, five rows from weak to strong, with the mean of the score that guided them."""
    from matplotlib.figure import Figure
    from torch import nn
    from torchvision.utils import make_grid

    from outskirts.store import Store

    rows = Store(run / "3-synth" / "store").rows()
    order = sorted(
        range(len(rows)), key=lambda i: (rows["rho"][i].as_py() + rows["mu"][i].as_py(), rows["id"][i].as_py())
    )
    targets = {json.loads(d)["target"] for d in rows["dials"].to_pylist()}
    score, form = ("knn", "{:.2f}") if targets == {"feature"} else ("energy", "{:.1f}")
    _, images = Store(run / "3-synth" / "store").images(None)
    of_id = {row: i for i, row in enumerate(rows["id"].to_pylist())}
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for n, axes in enumerate(figure.subplots(5, 1)):
        fifth = order[n * len(order) // 5 : (n + 1) * len(order) // 5]
        notes = [json.loads(rows["notes"][i].as_py())[score] for i in fifth]
        shown = fifth[:: max(len(fifth) // columns, 1)][:columns]
        pixels = images.pixels[[of_id[rows["id"][i].as_py()] for i in shown]]
        grid = nn.functional.interpolate(
            make_grid(pixels, nrow=columns, padding=1, pad_value=255)[None].float(), scale_factor=4
        )[0]
        axes.imshow(grid.permute(1, 2, 0) / 255, interpolation="nearest")
        axes.set_ylabel(form.format(mean(notes)), rotation=0, labelpad=18, va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail where a table is not what the results say.")
def tables(check: bool):
    """Rewrite every marked table from its file in results/."""
    for page in PAGES:
        text = page.read_text()
        new = MARK.sub(lambda m: m[1] + table(ROOT / m[2], m[3]) + m[4], text)
        if check and new != text:
            sys.exit(
                f"a table of {page.relative_to(ROOT)} is not what results/ says; run python benchmarks/publish.py tables"
            )
        page.write_text(new) if not check else None


def table(path: Path, kind: str | None = None) -> str:
    """AUROC and fpr95_id, near, far and all, in percent: the mean over seeds, and the widest of the seeds' 95 % intervals."""
    facts = json.loads(path.read_text())
    if "summaries" in facts:
        return _best(facts) if kind == "best" else _comparison(facts, kind == "short")
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


def _comparison(facts: dict, short: bool) -> str:
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


if __name__ == "__main__":
    main()
