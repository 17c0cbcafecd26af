"""Why GOOD does not lead: one thing at a time is changed, and judged on validation data, never on a test set.

    outskirts run compare_cifar10 --out runs/compare_cifar10
    python benchmarks/why_good.py runs/compare_cifar10 --near parquet:../shared/data/cifar100-train.parquet --json results/why-good_cifar10.json

The ID side are validation images. The OOD side are `--near`, real images that are in no test set, and made of the validation images
themselves, shuffled patches and mixed pairs. Each setting differs from the run's own in one thing; seeds are none of a recipe's. Outliers are
kept in FOLDER-why and numbers in the JSON, so that a stopped call goes on.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from outskirts.allocator import keep_freed
from outskirts.data import load
from outskirts.evaluate import collect
from outskirts.images import Images, spread
from outskirts.methods import methods
from outskirts.metrics import ood_metrics
from outskirts.outlier_sets import parted
from outskirts.run import Run, load_run
from outskirts.scores.knn import Score as Neighbour
from outskirts.stamp import stamp
from outskirts.store import Store
from outskirts.synth import mix, shuffle
from outskirts.synthesis import synthesize
from outskirts.train import train

JUDGES = 2000
"""Images of each validation OOD set, evenly spread."""


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--near", required=True, help="Real OOD validation images by name, in no test set.")
@click.option("--weaker", default=None, help="Folder of a diffusion model that is worse than the run's.")
@click.option("--seeds", default="100,101", show_default=True)
@click.option("--only", default=None, help="Settings to measure, by name and with commas; none: all.")
@click.option("--json", "json_", type=click.Path(path_type=Path), default=None)
def main(folder, near, weaker, seeds, only, json_):
    keep_freed()  # as the command line does
    run = Run(load_run(folder), folder, progress=False)
    seeds = [int(s) for s in seeds.split(",")]
    sets = judges(run, near)
    facts = {"what": "why GOOD does not lead", "recipe": run.recipe.name, "seeds": seeds, "judges": {k: len(v) for k, v in sets.items()}}  # fmt: skip
    known = measured(json_, facts)
    lines = [known.get("plain") or {"setting": "plain", **judged(run, run.inputs.classifier(), sets)}]
    for name, (synth, options, n, changes) in settings(run, weaker).items():
        if name in known:
            lines.append(known[name])
            continue
        if only and name not in only.split(","):
            continue
        outliers = made(run, folder.with_name(folder.name + "-why"), synth, options, n)
        found = []
        for seed in seeds:
            mine, apart, _, _ = parted(*outliers)
            with tempfile.TemporaryDirectory() as out:
                args = run.inputs.classifier(), run.inputs.parts["train"], mine, run.inputs.parts["val"], apart, out
                after = train(*args, dataclasses.replace(run.recipe.train, **changes), seed, progress=False)
            found.append(judged(run, after, sets))
        lines.append({"setting": name, **{k: [f[k] for f in found] for k in found[0]}})
        print(json.dumps(lines[-1]), flush=True)
        if json_:  # after each, for a call may be stopped
            json_.write_text(json.dumps(facts | {"settings": lines, "stamp": stamp(seeds=seeds)}, indent=1) + "\n")


def measured(path: Path | None, facts: dict) -> dict[str, dict]:
    """The settings that an earlier call with the same facts has measured, by name."""
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    same = all(found[k] == v for k, v in facts.items())
    return {line["setting"]: line for line in found["settings"]} if same else {}


def settings(run: Run, weaker: str | None) -> dict[str, tuple]:
    """name -> (synthesizer, its fields, number of outliers, changes of training)."""
    own, n = methods(run.recipe)[0], run.recipe.n_outliers
    good = dict(own.options)
    length = "epochs" if run.recipe.train.steps is None else "steps"
    long = getattr(run.recipe.train, length)
    more = {"weaker diffusion model": ("good", {**good, "diffusion": weaker}, n, {})} if weaker else {}
    return {
        "good": ("good", good, n, {}),
        "noise": ("noise", {}, n, {}),
        "unguided": ("good", {**good, "guidance": ("image",), "image_grid": (0.0,), "strength": "literal"}, n, {}),
        "a quarter of the outliers": ("good", good, n // 4, {}),
        "twice the outliers": ("good", good, 2 * n, {}),
        "a quarter of the steps": ("good", good, n, {length: max(1, long // 4)}),
        "three times the steps": ("good", good, n, {length: 3 * long}),
        "a fifth of the weight": ("good", good, n, {"lam": run.recipe.train.lam / 5}),
        "weaker guidance": ("good", {**good, "quantile": 0.5}, n, {}),
        "stronger guidance": ("good", {**good, "quantile": 0.995}, n, {}),
        "k a tenth": ("good", {**good, "guidance": ("feature",), "k": max(1, good["k"] // 10)}, n, {}),
        "k": ("good", {**good, "guidance": ("feature",)}, n, {}),
        "ten times k": ("good", {**good, "guidance": ("feature",), "k": 10 * good["k"]}, n, {}),
        **more,
    }


def made(run: Run, where: Path, synth: str, options: dict, n: int) -> tuple[list[int], Images]:
    """(ids, outliers), from where an earlier call left them."""
    name = "-".join([synth, str(n), *(f"{k}={v}" for k, v in options.items())]).replace("/", "_").replace(" ", "")
    out = where / name[:200]
    out.mkdir(parents=True, exist_ok=True)
    synthesize(run, out, synth, options, n)
    return Store(out / "store").images(run.inputs.classifier().size)


def judges(run: Run, near: str) -> dict[str, Images]:
    """The ID validation images, and the OOD sets that stand for the unknown."""
    val, size = run.inputs.parts["val"], run.inputs.classifier().size
    sets = {"val": val, "near": spread(load(near, size=size), JUDGES).resized(size)}
    for name, maker in (("shuffled", shuffle.Synthesizer()), ("mixed", mix.Synthesizer())):
        maker.fit(val)
        found = maker(maker.requests(min(JUDGES, len(val)), seed=1))
        pixels = torch.stack([o.image for o in found if o.image is not None])
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8) if pixels.is_floating_point() else pixels
        sets[name] = Images(name, [], torch.full((len(pixels),), -1), pixels)
    return sets


def judged(run: Run, classifier, sets: dict[str, Images]) -> dict[str, float]:
    """AUROC of energy and kNN distance between validation images and each set; accuracy on the former."""
    outputs = {name: collect(classifier, images) for name, images in sets.items()}
    bank = run.inputs.bank
    given = run.recipe.score_with.get("knn", {})
    knn = Neighbour(**given).fit(collect(classifier, bank), bank.labels)
    facts = {"val_accuracy": float((outputs["val"].logits.argmax(1) == sets["val"].labels).float().mean())}
    for label, score in (("energy", lambda o: -o.logits.logsumexp(1)), ("knn", knn)):
        id_ = score(outputs["val"])
        facts |= {f"{label}_{k}": ood_metrics(id_, score(o))["auroc"] for k, o in outputs.items() if k != "val"}
        facts[f"{label}_mean"] = float(np.mean([facts[f"{label}_{k}"] for k in sets if k != "val"]))
    return {k: round(v, 4) for k, v in facts.items()}


if __name__ == "__main__":
    main()
