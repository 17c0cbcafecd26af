"""The mean of a note over the outliers of every method whose label ends in a number, against that number (SONA's Fig. 6, right).

python benchmarks/notes.py runs/sona_start results/sona_start_distance.png --note feature_distance
"""

import json
import re
from pathlib import Path
from statistics import mean, quantiles

import click

COLOURS = ("#0a6b8a", "#b3541e", "#333333", "#777777")


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--note", required=True, help="e.g. feature_distance, energy, confidence.")
def main(run: Path, out: Path, note: str):
    from matplotlib.figure import Figure

    from outskirts.methods import methods
    from outskirts.run import load_run
    from outskirts.store import Store

    lines: dict[str, list] = {}
    for m in methods(load_run(run)):
        if found := re.fullmatch(r"(.+?) ([0-9.]+)", m.label):
            rows = Store(run / m.store / "store").rows(["notes"])["notes"].to_pylist()
            values = [json.loads(r)[note] for r in rows]
            low, *_, high = quantiles(values, n=4)
            lines.setdefault(found[1], []).append((float(found[2]), mean(values), low, high))
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        x, y, low, high = zip(*sorted(points), strict=True)
        axes.plot(x, y, "o-", color=colour, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)  # the middle half of the outliers
        click.echo(f"{name}: " + ", ".join(f"{a:g} {b:.3f}" for a, b in zip(x, y, strict=True)))
    axes.set(xlabel=next(iter(lines)).split()[-1], ylabel=note.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
