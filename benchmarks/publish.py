"""Numbers from runs to `results/`, and from there to the tables in README.md.

    python benchmarks/publish.py run runs/good_cifar10 results/good_cifar10_2-cores_2026-11-21.json
    python benchmarks/publish.py tables            # rewrite the tables; --check only compares

A table stands between `<!-- table: FILE -->` and `<!-- end -->`, FILE followed by one of KINDS, or by none.
"""

import json
import re
import sys
from pathlib import Path

import click
import figures
from tables import GROUPS, KINDS, table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(rf"(<!-- table: (\S+?)(?: ({'|'.join(KINDS)}))? -->\n).*?(<!-- end -->)", re.DOTALL)


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
    facts["energy_check"] = {
        p.parent.relative_to(run / "5-train").as_posix(): json.loads(p.read_text())["energy_check"]
        for p in sorted(run.glob("5-train/**/log.json"))
    }
    facts["outside"] = read("7-report/report.json")["outside"]
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


if __name__ == "__main__":
    main()
