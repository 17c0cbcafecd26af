"""Which outlier training to take, chosen on ID validation images and held-out synthetic outliers, never on a test set.

    outskirts synth quickstart --out runs/q
    python benchmarks/choose_training.py runs/q --json results/choose-training_quickstart_cpu.json

Every setting is trained with seeds that no recipe uses. The rule, fixed beforehand: of the settings whose validation accuracy
is within one standard error of the best one's, the highest AUROC of the energy between validation images and held-out
outliers; of those within 0.001 of it, the fewest steps, then the smallest learning rate. Where the best makes no error, as on
the digits, the standard error is 0, and only settings without any remain.
"""

import dataclasses
import itertools
import json
import math
import tempfile
from pathlib import Path

import click
import numpy as np

from outskirts.methods import methods
from outskirts.metrics import ood_metrics
from outskirts.run import Run, load_run
from outskirts.stages import split_outliers
from outskirts.stamp import stamp
from outskirts.train import energies, train


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--lr", default="1e-3,3e-3,1e-2,3e-2", show_default=True)
@click.option("--epochs", default="5,10,20", show_default=True)
@click.option("--lam", default="2.5", show_default=True)
@click.option("--seeds", default="100,101,102", show_default=True)
@click.option("--json", "json_", type=click.Path(), default=None)
def main(folder, lr, epochs, lam, seeds, json_):
    run = Run(load_run(folder), Path(folder), progress=False)
    parts, (mine, apart) = run.inputs.parts, split_outliers(run, methods(run.recipe)[0])
    seeds = [int(s) for s in seeds.split(",")]
    grids = [[float(x) for x in lr.split(",")], [int(x) for x in epochs.split(",")], [float(x) for x in lam.split(",")]]
    lines = []
    for rate, n, weight in itertools.product(*grids):
        settings = dataclasses.replace(run.recipe.train, lr=rate, epochs=n, lam=weight)
        found = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as out:
                after = train(
                    run.inputs.classifier(), parts["train"], mine, parts["val"], apart, out, settings, seed,
                    device=run.recipe.device, progress=False,
                )  # fmt: skip
                log = json.loads((Path(out) / "log.json").read_text())
            auroc = ood_metrics(energies(after, parts["val"]), energies(after, apart))["auroc"]
            found.append((log["epochs"][-1]["val_accuracy"], auroc, log["energy_check"]["inverted"]))
        accuracy, auroc, inverted = (float(x) for x in np.mean(found, axis=0))
        lines.append({"lr": rate, "epochs": n, "lam": weight, "val_accuracy": accuracy, "auroc_held_out": auroc, "inverted": inverted})  # fmt: skip
        print(json.dumps(lines[-1]), flush=True)
    facts = {"what": f"outlier training of {run.recipe.name}", "seeds": seeds, "n_val": len(parts["val"]), "n_held_out": len(apart), "settings": lines, "chosen": choose(lines, len(parts["val"]))}  # fmt: skip
    print("chosen:", json.dumps(facts["chosen"]))
    if json_:
        Path(json_).write_text(json.dumps(facts | {"stamp": stamp(seeds=seeds)}, indent=1) + "\n")


def choose(lines: list[dict], n_val: int) -> dict:
    """The rule of the module's docstring."""
    best = max(line["val_accuracy"] for line in lines)
    error = math.sqrt(best * (1 - best) / n_val)
    able = [line for line in lines if line["val_accuracy"] >= best - error]
    top = max(line["auroc_held_out"] for line in able)
    return min((x for x in able if x["auroc_held_out"] >= top - 0.001), key=lambda x: (x["epochs"], x["lr"], x["lam"]))


if __name__ == "__main__":
    main()
