"""Every synthesizer and baseline under one budget, on the digits: same classifier, number of outliers, training steps, 5 seeds.

    outskirts run compare --out runs/compare

The table, its intervals and how each difference stands against the best baseline are on the page comparison.html.
`compare_cifar10` is the same on CIFAR-10.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart

POST_HOC = (
    *("maxlogit", "entropy", "temperature", "gen", "odin", "gradnorm", "mahalanobis", "rmd", "vim"),
    *("react", "dice", "ash", "scale", "she", "klm", "openmax", "rankfeat"),
)
OWN = ("good", "GOOD image", "GOOD feature", "GOOD band", "GOOD (OE loss)", "GOOD (energy margin)", "GOOD (MixOE)")


def methods(steps: int, batch_size: int, k: int) -> Mapping[str, Mapping[str, Any]]:
    """GOOD's parts, and what it is held against. Samplers take `steps`; `k` is the neighbour of the feature level."""
    sampling = {"steps": steps, "batch_size": batch_size}
    good = {**sampling, "k": k}
    return {
        "GOOD image": {"synth": "good", "with": {**good, "guidance": ("image",)}},
        "GOOD feature": {"synth": "good", "with": {**good, "guidance": ("feature",)}},
        "GOOD band": {"synth": "good", "with": {**good, "guidance": ("image",), "band_width": 0.5}},
        "GOOD (OE loss)": {"of": "good", "train": {"loss": "oe_uniform", "lam": 0.5}},
        "unguided samples": {
            "synth": "good",
            "with": {**sampling, "guidance": ("image",), "image_grid": (0.0,), "strength": "literal"},
        },
        "uniform noise": {"synth": "noise", "with": {"kind": "uniform"}},
        "shuffled patches": {"synth": "shuffle"},
        "mixed images": {"synth": "mix"},
        "VOS": {"synth": "vos"},
        "NPOS": {"synth": "npos"},
        "Dream-OOD": {"synth": "dream", "with": sampling},
    }


def sona(steps: int, batch_size: int) -> Mapping[str, Mapping[str, Any]]:
    """SONA where the diffusion model knows the ID classes and no others: the class is taken out, no outside word is written in."""
    paper = {"loss": "oe_uniform", "lam": 0.5, "mi": 0.01}
    return {
        "SONA (no word)": {
            "synth": "sona",
            "with": {"toward": "null", "steps": steps, "batch_size": batch_size},
            "train": paper,
        },
        "SONA (no word, energy loss)": {"of": "SONA (no word)"},
    }


def recipe() -> Recipe:
    q = quickstart.recipe()
    return replace(
        q,
        name="compare",
        about="GOOD and every baseline on handwritten digits under one budget: 700 outliers, the same training, 5 seeds.",
        synth_with={**q.synth_with, "guidance": ("image", "feature")},
        methods={
            **methods(20, 128, 50),
            "GOOD (energy margin)": {"of": "good", "train": {"loss": "energy_margin", "lam": 0.1}},
            "GOOD (MixOE)": {"of": "good", "train": {"loss": "mixoe", "lam": 5.0}},
            **sona(20, 128),
        },
        own=(*OWN, *sona(20, 128)),
        plain_scores=POST_HOC,
        seeds=(0, 1, 2, 3, 4),
    )
