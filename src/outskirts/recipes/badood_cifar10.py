"""Bad-OOD on CIFAR-10, in the classifier's feature space, with the classifier, test sets and training steps of `good_cifar10`.

    outskirts run badood_cifar10 --out runs/badood_cifar10

Reads the image pack in ../shared/data. Without a decoder: a small one needs tens of thousands of steps on natural images, so on a CPU it would
paint textures (docs/papers/badood.md). `random steps` is guidance without direction at the same ratios (Table 7). On a GPU:
synth.decoder=small synth.decoder_steps=40000 synth.decoder_channels=128,256 device=cuda, or an existing decoder.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import good_cifar10

LATENT = {"decoder": "none", "batch_size": 256}


def recipe() -> Recipe:
    return replace(
        good_cifar10.recipe(),
        name="badood_cifar10",
        about="Bad-OOD on CIFAR-10 in feature space: representations pushed to where they are rare, beside random steps and the noise floor.",
        diffusion="digits",  # none is used
        synth="badood",
        synth_with=LATENT,
        methods={"random steps": {"synth": "badood", "with": {**LATENT, "guidance": "noise"}}},
        own=("badood",),
    )
