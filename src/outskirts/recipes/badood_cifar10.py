"""Bad-OOD on CIFAR-10 and its ablations, with the classifier, test sets and training steps of `good_cifar10`, 3 seeds.

    outskirts run badood_cifar10 --out runs/badood_cifar10

Reads the image pack in ../shared/data. Outliers are features of the classifier (`decoder=none`): a small decoder needs tens of thousands of
steps on natural images, and what it paints on a CPU are textures; `pictures` has them all the same (Table 13). Beside the recipe's own:
random steps at the same ratios (Table 7), bands (2), calibrators (6), levels (4), weights of the loss (5). An hour on two CPU cores.
On a GPU: synth.decoder=small synth.decoder_steps=40000 synth.decoder_channels=128,256 device=cuda, or an existing decoder.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.recipe import Recipe
from outskirts.recipes import badood_beta, badood_filter, badood_level, compare, good_cifar10

LATENT = {"decoder": "none", "batch_size": 256}
PICTURES = {"decoder": "small", "decoder_steps": 3000, "batch_size": 64}
LEVELS = (200, 300, 400)
LENGTH = (11.25,)
"""Of the guided paths at these levels, 0.15 for each of 75 steps: with the paper's 0.05 outliers lie denser than ID images do, at ratios
of 0.94 to 0.95, in 128 dimensions."""


def methods() -> Mapping[str, Mapping[str, Any]]:
    """What the recipe's own is held against."""
    random = {"guidance": "noise"}
    return {
        "random steps": {"synth": "badood", "with": {**LATENT, **random}},
        "pictures": {"synth": "badood", "with": PICTURES},
        "random steps, pictures": {"synth": "badood", "with": {**PICTURES, **random}},
        **badood_filter.methods(),
        **badood_level.methods(LEVELS, {**LATENT, "strengths": LENGTH}),
        **badood_beta.methods(),
    }


def recipe() -> Recipe:
    every = methods()
    return replace(
        good_cifar10.recipe(),
        name="badood_cifar10",
        about="Bad-OOD on CIFAR-10 in feature space and its ablations: representations pushed to where they are rare, beside random steps and noise.",
        diffusion="digits",  # none is used
        synth="badood",
        synth_with=LATENT,
        methods=every,
        own=("badood", *(label for label in every if not label.startswith("random"))),
        filter=FilterSettings(band="none"),
        analyse=AnalyseSettings(shift_map="none"),
        stages=compare.FILTERED,
    )
