"""GOOD Fig. 5: Grad-CAM of the energy on outliers of image and of feature guidance, by the plain classifier of a run.

python benchmarks/gradcam.py runs/good_components results/gradcam_digits.png --layer stages.0
"""

import json
from pathlib import Path

import click
import torch

from outskirts.gradcam import gradcam
from outskirts.run import Run, load_run
from outskirts.scores.energy import Score as Energy
from outskirts.store import Store


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--columns", default=12, show_default=True)
@click.option("--strength", default=2.0, show_default=True, help="The smallest rho of the outliers that are shown.")
@click.option(
    "--layer", default=None, help="The map that is looked at; the last one of tiny images has very few places."
)
def main(folder, out, columns, strength, layer):
    from matplotlib.figure import Figure

    run = Run(load_run(folder), folder, progress=False)
    classifier = run.inputs.classifier().frozen()
    store = Store(folder / "3-synth" / "store")
    ids, images = store.images(None)
    at = {row["id"]: json.loads(row["dials"]) for row in store.rows().to_pylist()}
    figure = Figure(figsize=(columns * 0.8, 3.6), layout="constrained")
    axes = figure.subplots(4, columns)
    for n, target in enumerate(("image", "feature")):
        strong = [i for i, id_ in enumerate(ids) if at[id_]["target"] == target and at[id_]["rho"] >= strength]
        pixels = (
            images.subset(torch.tensor(strong[:columns])).pixels.float() / 255
        )  # in the order of their ids: not chosen
        heat = gradcam(classifier, Energy(), pixels, layer)
        for column, (picture, hot) in enumerate(zip(pixels, heat, strict=True)):
            axes[2 * n, column].imshow(picture.permute(1, 2, 0), interpolation="nearest")
            axes[2 * n + 1, column].imshow(picture.mean(0), cmap="gray", interpolation="nearest")
            axes[2 * n + 1, column].imshow(hot, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
        axes[2 * n, 0].set_ylabel(target, rotation=0, ha="right")
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
