"""Every synthesizer and baseline under one budget, on the digits: same classifier, number of outliers, training steps, 5 seeds.

    outskirts run compare --out runs/compare

The table, its intervals and how each difference stands against the best baseline are on the page comparison.html.
`compare_cifar10` is the same on CIFAR-10.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits, quickstart, synood_digits

POST_HOC = (
    *("maxlogit", "entropy", "temperature", "gen", "odin", "gradnorm", "mahalanobis", "rmd", "vim"),
    *("react", "dice", "ash", "scale", "she", "klm", "openmax", "rankfeat"),
)
GOOD = ("good", "GOOD image", "GOOD feature", "GOOD band", "GOOD (OE loss)", "GOOD (energy margin)", "GOOD (MixOE)")
FILTERED = ("classifier", "diffusion", "synth", "train:scout", "filter", "train", "bench", "report")
UNFILTERED = FilterSettings(band="none", calibration="rank")
"""By rank, the middle band keeps the share that Bad-OOD keeps, 77 %, so that budgets stay near each other; `badood_filter` has the others."""


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


def others(
    sampling: Mapping[str, Any], synood: Mapping[str, Any], badood: Mapping[str, Any]
) -> Mapping[str, Mapping[str, Any]]:
    """SONA, SynOOD and Bad-OOD, the last with random steps beside it (Table 7), and the filter on theirs and on Dream-OOD's.

    SONA where the diffusion model knows the ID classes and no others: the class is taken out, no outside word is written in.
    """
    paper, mid = {"loss": "oe_uniform", "lam": 0.5, "mi": 0.01}, {"band": "mid"}
    return {
        "SONA (no word)": {"synth": "sona", "with": {"toward": "null", **sampling}, "train": paper},
        "SynOOD": {"synth": "synood", "with": synood},
        "Bad-OOD": {"synth": "badood", "with": badood},
        "random steps": {"synth": "badood", "with": {**badood, "guidance": "noise"}},
        "GOOD, filtered": {"of": "good", "filter": mid},
        "SONA (no word), filtered": {"of": "SONA (no word)", "train": paper, "filter": mid},
        "Bad-OOD, filtered": {"of": "Bad-OOD", "filter": mid},
        "Dream-OOD, filtered": {"of": "Dream-OOD", "filter": mid},
    }


def own(labels: Iterable[str]) -> tuple[str, ...]:
    """Those of `labels` that are one of the four systems, which all others are the baselines of."""
    return tuple(label for label in labels if label in GOOD or label.startswith(("GOOD", "SONA", "SynOOD", "Bad-OOD")))


def recipe() -> Recipe:
    q, sampling = quickstart.recipe(), {"steps": 20, "batch_size": 128}
    synood, badood = synood_digits.recipe().synth_with, badood_digits.recipe().synth_with
    every = {
        **methods(20, 128, 50),
        "GOOD (energy margin)": {"of": "good", "train": {"loss": "energy_margin", "lam": 0.1}},
        "GOOD (MixOE)": {"of": "good", "train": {"loss": "mixoe", "lam": 5.0}},
        **others(sampling, synood, badood),
        "SONA (no word, energy loss)": {"of": "SONA (no word)"},
        "Bad-OOD features": {"synth": "badood", "with": {**badood, "decoder": "none"}},
    }
    return replace(
        q,
        name="compare",
        about="The four systems and every baseline on handwritten digits under one budget: 700 outliers, the same training, 5 seeds.",
        synth_with={**q.synth_with, "guidance": ("image", "feature")},
        methods=every,
        own=own(("good", *every)),
        filter=UNFILTERED,
        analyse=AnalyseSettings(shift_map="none"),
        stages=FILTERED,
        plain_scores=POST_HOC,
        seeds=(0, 1, 2, 3, 4),
    )
