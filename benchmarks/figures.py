"""Pictures of GOOD's figures and tables from runs, for docs/papers/good.md; publish.py has them as commands.

python benchmarks/publish.py ablation runs/good_lambda results/good_lambda.png --own 2.5,0.5
python benchmarks/publish.py components runs/good_components results/good_components.png
python benchmarks/publish.py distributions runs/good_components results/good_distributions.png
python benchmarks/publish.py grid runs/good_grid results/good_grid.png --json results/good_grid_2-cores_2026-11-21.json
python benchmarks/publish.py cost runs/compare results/compare_cost.png
"""

import json
import re
from pathlib import Path

import click
import numpy as np

PLACES = {"mean-near": ("near", "#0a6b8a"), "mean-far": ("far", "#b3541e"), "mean-all": ("all", "#333333")}
RUN_AND_OUT = (
    click.argument("run", type=click.Path(exists=True, path_type=Path)),
    click.argument("out", type=click.Path(path_type=Path)),
)


def _command(function):
    for argument in RUN_AND_OUT[::-1]:
        function = argument(function)
    return click.command(help=function.__doc__)(function)


@_command
@click.option("--score", default="energy", show_default=True)
@click.option(
    "--own", default="", help="Where the recipe's own method and scores stand, a number for each picture: 2.5,0.5"
)
def ablation(run: Path, out: Path, score: str, own: str):
    """AUROC and ID accuracy of methods whose labels end in a number, e.g. `lambda 0.5`, and of scores like `knn k 20`, against it."""
    from outskirts import verdict

    rows = verdict.summarise(_read(run / "6-bench/rows.json"))
    recipe = _read(run / "run.json")["recipe"]
    by_method = [(r["method"], r) for r in rows if r["score"] == score]
    by_score = [(r["score"], r) for r in rows if r["method"] == recipe["synth"]]
    groups = {}
    for label, r in by_method + by_score:
        found = re.fullmatch(r"(.+?) ([0-9.]+)", label)
        if found:
            groups.setdefault(found[1], []).append((float(found[2]), r))
    for (name, points), x in zip(groups.items(), filter(None, own.split(",")), strict=bool(own)):
        base = (recipe["synth"], score if points[0][1]["method"] == f"{name} {points[0][0]:g}" else name.split()[0])
        points += [(float(x), r) for r in rows if (r["method"], r["score"]) == base]
    figure, panels = _axes(1, len(groups), width=4.2 * len(groups), height=3.2)
    for axes, (name, points) in zip(np.ravel(panels), groups.items(), strict=True):
        for place, (where, colour) in PLACES.items():
            line = sorted((x, *(100 * v for v in r["auroc"])) for x, r in points if r["place"] == place)
            x, y, low, high = zip(*line, strict=True)
            axes.plot(x, y, "o-", color=colour, label=f"AUROC {where}")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        line = sorted((x, 100 * r["id_accuracy"][0]) for x, r in points if r["place"] == "mean-all")
        axes.plot(*zip(*line, strict=True), "s:", color="#777777", label="ID accuracy")
        if line[0][0] == 0:
            axes.set_xscale("symlog", linthresh=line[1][0])
        else:
            axes.set_xscale("log")
        axes.set(xlabel=name, ylabel="percent")
        axes.set_xticks([x for x, _ in line], [f"{x:g}" for x, _ in line], minor=False)
        axes.minorticks_off()
    figure.axes[0].legend(frameon=False, fontsize=8)
    _save(figure, out)


@_command
def components(run: Path, out: Path):
    """Table 3: AUROC of every method of a run, by energy, and by the unified score where it has one, with 95 % intervals."""
    from outskirts import verdict, wording

    rows = verdict.summarise(_read(run / "6-bench/rows.json"))
    cells = {(r["method"], r["score"], r["place"]): r["auroc"] for r in rows}
    lines = [(m, s) for m, s, p in cells if p == "mean-all" and s in ("energy", "unified")]
    lines = [(m, s) for m, s in lines if s == "energy" or m != "plain"]
    figure, axes = _axes(width=6.4, height=0.5 + 0.34 * len(lines))
    for n, (m, s) in enumerate(reversed(lines)):
        for shift, (place, (name, colour)) in zip((0.2, 0, -0.2), PLACES.items(), strict=True):
            if found := cells.get((m, s, place)):
                value, low, high = (100 * v for v in found)
                label = f"AUROC {name}" if n == 0 else None
                axes.errorbar(
                    value, n + shift, xerr=[[value - low], [high - value]], fmt="o", ms=4, color=colour, label=label
                )
    axes.set_yticks(range(len(lines)), [f"{wording.label(m)}, {wording.label(s)}" for m, s in reversed(lines)])
    axes.set(xlabel="percent")
    axes.margins(y=0.02)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, out)


@_command
@click.option("--method", default="good", show_default=True)
@click.option("--scores", default="energy,knn,unified", show_default=True)
def distributions(run: Path, out: Path, method: str, scores: str):
    """Fig. 8: scores of ID test images and of every OOD set after training, first seed; the fused score in the last row."""
    with np.load(run / "6-bench/scores.npz") as arrays:
        found = {tuple(k.split("|")): v for k, v in arrays.items()}
    seed = min(k[1] for k in found if k[0] == method)
    names = scores.split(",")
    sets = list(dict.fromkeys(k[3] for k in found if k[0] == method and not k[3].startswith("id")))
    figure, grid = _axes(len(names), len(sets), width=1.9 * len(sets), height=1.5 * len(names))
    for row, name in zip(grid, names, strict=True):
        for axes, where in zip(row, sets, strict=True):
            ood = found[method, seed, name, where]
            id_ = found.get((method, seed, name, "id"), found.get((method, seed, name, f"id@{where}")))
            edges = np.linspace(*np.quantile(np.concatenate([id_, ood]), (0.002, 0.998)), 40)
            for values, colour in ((id_, "#0a6b8a"), (ood, "#b3541e")):
                axes.hist(np.clip(values, edges[0], edges[-1]), edges, density=True, color=colour, alpha=0.6)
            axes.axvline(np.quantile(id_, 0.95), color="#333333", lw=0.8, ls="--")
            axes.set(yticks=[], xticks=[])
            if name == names[0]:
                axes.set_title(where, fontsize=8)
            if where == sets[0]:
                axes.set_ylabel(name)
    figure.supxlabel(
        "score, further right is more OOD; blue: ID test, orange: OOD; dashed: 95 % of ID test images are left of it",
        fontsize=8,
    )
    _save(figure, out)


@_command
@click.option("--json", "facts", type=click.Path(path_type=Path), help="Also write the means here.")
def grid(run: Path, out: Path, facts: Path | None):
    """Fig. 4 and 7: energies of image-level outliers by rho, by mu, and over the grid of both, beside ID validation images."""
    from outskirts.evaluate import collect
    from outskirts.run import Run, load_run
    from outskirts.scores.energy import Score
    from outskirts.store import Store

    this = Run(load_run(run), run, progress=False)
    id_ = Score()(collect(this.inputs.classifier(), this.inputs.parts["val"])).numpy()
    rows = Store(run / "3-synth/store").rows(["dials", "notes"]).to_pylist()
    rows = [(json.loads(r["dials"]), json.loads(r["notes"])) for r in rows]
    rows = [(d["rho"], d["mu"], n["energy"]) for d, n in rows if d.get("target") == "image" and "energy" in n]
    rho, mu, energy = map(np.array, zip(*rows, strict=True))
    values = np.unique(rho)
    edges = np.linspace(*np.quantile(np.concatenate([id_, energy]), (0.002, 0.998)), 30)
    figure, panels = _axes(len(values), len(values) + 2, width=1.5 * (len(values) + 2), height=1.15 * len(values))

    def draw(axes, kept):
        axes.hist(id_, edges, density=True, color="#999999", alpha=0.5)
        axes.hist(np.clip(energy[kept], edges[0], edges[-1]), edges, density=True, color="#b3541e", alpha=0.6)
        axes.text(0.98, 0.95, f"{energy[kept].mean():.1f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set(xticks=[], yticks=[])

    for i, r in enumerate(values):
        draw(panels[i][0], rho == r)
        draw(panels[i][1], mu == r)
        panels[i][0].set_ylabel(f"{r:g}", rotation=0, labelpad=14, va="center")
        for j, m in enumerate(values):
            draw(panels[i][j + 2], (rho == r) & (mu == m))
    for axes, title in zip(panels[0], ["rho, any mu", "mu, any rho", *(f"mu {m:g}" for m in values)], strict=True):
        axes.set_title(title, fontsize=8)
    if facts:
        means = [[energy[(rho == r) & (mu == m)].mean().item() for m in values] for r in values]
        told = {"what": "good_grid", **_read(run / "run.json"), "id_val_mean": id_.mean().item(), "n": len(energy)}
        told |= {"rho": values.tolist(), "mu": values.tolist(), "mean_energy": np.round(means, 3).tolist()}
        facts.write_text(json.dumps(told, indent=1) + "\n")
    text = "energy, further right is more OOD; grey: ID validation; numbers: means. Rows: rho (second column: mu)"
    figure.supxlabel(text, fontsize=8)
    _save(figure, out)


@_command
def cost(run: Path, out: Path):
    """Table 4: seconds of making the outliers and of one training, of every method of a run."""
    from outskirts import wording

    rows = [r for r in _read(run / "6-bench/methods.json") if "train_seconds" in r][::-1]
    figure, axes = _axes(width=6.4, height=0.7 + 0.26 * len(rows))
    at = np.arange(len(rows))
    making = np.array([r.get("synth_seconds") or 0.0 for r in rows])
    axes.barh(at, making, color="#8f3f76", label="making the outliers")
    axes.barh(at, [r["train_seconds"] for r in rows], left=making, color="#0a6b8a", label="one training")
    axes.set_yticks(at, [wording.label(r["method"]) for r in rows])
    axes.set(xlabel="seconds")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, out)


def _axes(rows: int = 1, columns: int = 1, *, width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows * columns > 1 else axes[0, 0]


def _save(figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _read(path: Path):
    return json.loads(path.read_text())
