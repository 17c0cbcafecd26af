"""Every synthesizer and baseline under one budget, on CIFAR-10: same classifier, number of outliers, training steps, 3 seeds.

    outskirts run compare_cifar10 --out runs/compare_cifar10

Reads the image pack in ../shared/data and weights/cifar10-diffusion, as `good_cifar10` does. Two hours on two CPU cores.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.filter_settings import AnalyseSettings
from outskirts.recipe import Recipe
from outskirts.recipes import badood_cifar10, compare, good_cifar10, synood_cifar10

PACK = good_cifar10.PACK
REAL = "real (CIFAR-100 train)"  # the classes of the near test set, so what no one has in deployment: a ceiling
STRONGER = 0.995  # of guidance, chosen on validation data: results/why-good_cifar10_*.json
LEFT_OUT = ("GOOD band", "GOOD (OE loss)", "Dream-OOD, filtered")
"""`compare` measures them on the digits; here each is five minutes more."""
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "OE loss": {"loss": "oe_uniform", "lam": 0.5},
    "energy margin": {"loss": "energy_margin", "lam": 0.1},
    "MixOE": {"loss": "mixoe", "lam": 5.0},
}


def recipe() -> Recipe:
    base = good_cifar10.recipe()
    sampling = {"steps": 25, "batch_size": 64}
    every = {
        **compare.methods(25, 64, 100),
        "GOOD, stronger": {"synth": "good", "with": {**base.synth_with, "quantile": STRONGER}},
        REAL: {"outliers": f"parquet:{PACK}/cifar100-train.parquet"},
        **{f"{REAL}, {name}": {"of": REAL, "train": train} for name, train in LOSSES.items()},
        **compare.others(sampling, synood_cifar10.recipe().synth_with, badood_cifar10.LATENT),
    }
    methods = {label: m for label, m in every.items() if label not in LEFT_OUT}
    return replace(
        base,
        name="compare_cifar10",
        about="Every synthesizer and baseline on CIFAR-10 under one budget: 600 outliers, 120 steps of training, 3 seeds.",
        methods=methods,
        own=compare.own(("good", *methods)),
        filter=compare.UNFILTERED,
        analyse=AnalyseSettings(shift_map="none"),
        stages=compare.FILTERED,
        plain_scores=compare.POST_HOC,
    )
