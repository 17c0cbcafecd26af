"""Bad-OOD where some ID classes have few images (its Table 10), on CIFAR-10: all of the airplanes, a thirteenth of the trucks.

    outskirts run badood_imbalanced_cifar10 --out runs/badood_imbalanced_cifar10

Beside it Dream-OOD's idea, as in the paper, with the diffusion model of `good_cifar10`, which saw the classes in equal number. Reads the
image pack in ../shared/data and weights/cifar10-diffusion. Half an hour on two CPU cores.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import badood_cifar10, good_cifar10

K = 35
"""Half of what the smallest class has among the images that scores are fitted on."""


def recipe() -> Recipe:
    return replace(
        good_cifar10.recipe(),
        name="badood_imbalanced_cifar10",
        about="Bad-OOD on CIFAR-10 with unequal classes (Table 10): 0 to 92 % of a class's training images are left out.",
        imbalance=1 / 13,
        synth="badood",
        synth_with=badood_cifar10.LATENT,
        methods={"Dream-OOD": {"synth": "dream", "with": {"steps": 25, "batch_size": 64}}},
        own=("badood",),
        score_with={"knn": {"k": K}, "unified": {"k": K}},
    )
