"""SONA's Fig. 4: where the guidance acts, step by step, from a source to its outlier.

    python benchmarks/sona_masks.py sona_digits results/sona_masks.png

Three rows a source. First row: the source, what the guided network takes the image to be (x0) at every step, the outlier; below: the semantic
mask of the ID class and its nuisance mask, white where they are on, of several channels the mean. T is 0.7 of the steps, as in the figure.
"""

from pathlib import Path

import click
import torch

from outskirts.find import find
from outskirts.inputs import Inputs
from outskirts.synthesis import build

SHARE = 0.7
"""Of the steps that are walked: the paper's 35 of 50."""


@click.command(help=__doc__)
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--n", default=3, show_default=True, help="Sources.")
@click.option("--seed", default=0, show_default=True)
def main(recipe: str, out: Path, n: int, seed: int):
    recipe = find("recipes", recipe)()
    T = round(SHARE * recipe.synth_with["steps"])
    options = {**recipe.synth_with, "start": (T, T)}
    synthesizer = build(recipe.synth, {"diffusion": recipe.diffusion}, options)()
    synthesizer.fit(Inputs(recipe, Path()).parts["train"])
    requests = synthesizer.requests(n, seed=seed)
    columns = []

    def watch(level, found, m):
        x0 = synthesizer.model.decode(found.x0).clamp(0, 1)  # guided, it can leave the range; sampling clips it too
        columns.append([x0, *(mask.float().mean(1, keepdim=True).expand_as(mask) for mask in (m.s_id, m.n_id))])

    sources, outliers, _ = synthesizer.sample(requests, watch)
    _draw([(f"{r.dials['id_prompt']} to {r.dials['word']}") for r in requests], sources, columns, outliers, out)


def _draw(names: list[str], sources: torch.Tensor, columns: list, outliers: torch.Tensor, out: Path) -> None:
    from matplotlib.figure import Figure

    wide = len(columns) + 2
    figure = Figure(figsize=(0.62 * wide + 1, 2 * len(names)), layout="constrained")
    panels = figure.subplots(3 * len(names), wide)
    for axes in panels.flat:
        axes.axis("off")
    for i, name in enumerate(names):
        top = panels[3 * i]
        for axes, image in ((top[0], sources), (top[-1], outliers)):
            _show(axes, image[i])
        for k, column in enumerate(columns):
            for row, images in enumerate(column):
                _show(panels[3 * i + row][k + 1], images[i])
        for row, text in enumerate((name, "semantic", "nuisance")):
            panels[3 * i + row][0].text(
                -0.15, 0.5, text, transform=panels[3 * i + row][0].transAxes, ha="right", va="center", fontsize=8
            )
    for axes, text in ((panels[0][0], "source"), (panels[0][1], "x0, first step"), (panels[0][-1], "outlier")):
        axes.set_title(text, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _show(axes, image: torch.Tensor) -> None:
    axes.imshow(image[0] if len(image) != 3 else image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)


if __name__ == "__main__":
    main()
