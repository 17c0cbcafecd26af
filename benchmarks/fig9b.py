"""GOOD's controlled experiment, Fig. 9(b): a classifier that knows 5 of 10 classes, and a diffusion model that knows all 10.

The same noise, sampled unguided, guided towards ID and guided towards OOD; then the energy and the kNN distance by the
5-class classifier, the share that an independent 10-class classifier puts into the five unseen classes, and a t-SNE picture.

    outskirts fit-classifier "parquet:../shared/data/cifar10-train.parquet[0-4]" runs/five arch=resnet_tiny epochs=8 lr=0.2 batch_size=128
    python benchmarks/fig9b.py --id ../shared/data/cifar10-train.parquet --diffusion weights/cifar10-diffusion \
        --classifier runs/five --oracle runs/good_cifar10/1-classifier --json results/fig9b.json --picture results/fig9b.png

`--classifier` was trained on the first five classes, `--oracle` on all ten. Samples get no class label.
"""

import dataclasses
import json
from pathlib import Path

import click
import numpy as np
import torch

from outskirts.data import load, split
from outskirts.evaluate import collect
from outskirts.fit_verbs import VAL
from outskirts.models import load_classifier
from outskirts.scores.energy import Score as Energy
from outskirts.scores.knn import Score as KNN
from outskirts.stamp import stamp
from outskirts.synth._shared import seed_of, to_uint8
from outskirts.synth.good import Synthesizer
from outskirts.types import Request

SEEN = 5
RESAMPLES = 1000


@click.command()
@click.option("--id", "id_", required=True, help="Parquet of the ten-class training images.")
@click.option("--diffusion", required=True)
@click.option("--classifier", required=True, help="Folder of the five-class classifier.")
@click.option("--oracle", required=True, help="Folder of the ten-class classifier.")
@click.option("--n", default=320, show_default=True, help="Samples of each kind.")
@click.option("--steps", default=30, show_default=True)
@click.option("--json", "json_", type=click.Path(), required=True)
@click.option("--picture", type=click.Path(), required=True)
def main(id_, diffusion, classifier, oracle, n, steps, json_, picture):
    train, val = split(load(f"parquet:{id_}[0-{SEEN - 1}]"), (1 - VAL, VAL))  # as fit-classifier splits them
    train = train.take(10_000)
    unseen = load(f"parquet:{id_}[{SEEN}-9]").take(n)
    classifier, oracle = load_classifier(classifier).frozen(), load_classifier(oracle).frozen()
    bank = collect(classifier, train)
    energy, knn = Energy(), KNN(k=100).fit(bank, train.labels)

    images, literal = {}, {}
    for kind, toward, strength in (("unguided", "ood", 0.0), ("towards ID", "id", 1.0), ("towards OOD", "ood", 1.0)):
        good = Synthesizer(diffusion, toward="ood", guidance=("image",), steps=steps, batch_size=64, eta=1.0)
        if not literal:
            good.fit(train, classifier, val=val)
            literal = good.state
        else:
            good.fit(train, classifier, val=val, state=literal)
        good = _toward(good, toward)
        # the unit is the strength at which energy reaches what 95 % of held-out ID images stay under; the same for both signs
        requests = [
            Request(i, seed_of(0, i), None, dials={"target": "image", "rho": strength, "mu": strength})
            for i in range(n)
        ]
        parts = [requests[i : i + 64] for i in range(0, n, 64)]
        images[kind] = torch.cat([to_uint8(good.model.decode(good.sample(p, good.strengths(p)))) for p in parts])
    images["held-out ID"] = val.take(n).pixels
    images["unseen classes"] = unseen.pixels

    rows, features = [], {}
    for kind, x in images.items():
        x = x.float() / 255
        outputs, judged = collect(classifier, x), collect(oracle, x)
        share = (judged.logits.argmax(-1) >= SEEN).double()
        features[kind] = outputs.features
        row = {"kind": kind, "n": len(x)}
        for name, values in (("energy", energy(outputs)), ("knn", knn(outputs)), ("unseen_share", share)):
            row[name], row[f"{name}_lo"], row[f"{name}_hi"] = _mean(values.double())
        rows.append(row)
        print(
            f"{kind:15}"
            + "".join(
                f"{k} {row[k]:.3f} [{row[f'{k}_lo']:.3f}, {row[f'{k}_hi']:.3f}]   "
                for k in ("energy", "knn", "unseen_share")
            )
        )
    facts = {
        "what": "GOOD Fig. 9(b)",
        "unit": literal["image"],
        "rows": rows,
        "steps": steps,
        "stamp": stamp(seeds=[0]),
    }
    Path(json_).write_text(json.dumps(facts, indent=1))
    _draw(features, images, Path(picture))


def _toward(good: Synthesizer, toward: str) -> Synthesizer:
    turned = dataclasses.replace(good, toward=toward)
    turned.__dict__.update({k: v for k, v in good.__dict__.items() if k not in turned.__dict__})
    return turned


def _mean(values: torch.Tensor) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    means = draws @ values.numpy() / len(values)
    return values.mean().item(), *np.quantile(means, (0.025, 0.975)).tolist()


def _draw(features: dict, images: dict, path: Path) -> None:
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE
    from torchvision.utils import make_grid

    stacked = torch.nn.functional.normalize(torch.cat(list(features.values())), dim=1).numpy()
    xy = TSNE(random_state=0, init="pca", perplexity=30).fit_transform(stacked)
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.4, 1))
    axes, start = figure.add_subplot(grid[:, 0]), 0
    colours = {
        "unguided": "#999999",
        "towards ID": "#0072B2",
        "towards OOD": "#D55E00",
        "held-out ID": "#56B4E9",
        "unseen classes": "#009E73",
    }
    for kind, f in features.items():
        axes.scatter(*xy[start : start + len(f)].T, s=8, label=kind, color=colours[kind], alpha=0.7, linewidths=0)
        start += len(f)
    axes.set(xticks=[], yticks=[], title="t-SNE of the five-class classifier's features")
    axes.legend(frameon=False, markerscale=2)
    for row, kind in enumerate(("unguided", "towards ID", "towards OOD")):
        picture = figure.add_subplot(grid[row, 1])
        picture.imshow(make_grid(images[kind][:24], nrow=8, padding=1).permute(1, 2, 0), interpolation="nearest")
        picture.set(xticks=[], yticks=[], title=kind)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
