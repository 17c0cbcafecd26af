"""SynOOD on CIFAR-10, in its pixel form, with the classifier, diffusion model, test sets and training steps of `good_cifar10`.

    outskirts run synood_cifar10 --out runs/synood_cifar10

Reads the image pack in ../shared/data and weights/cifar10-diffusion, as `good_cifar10` does. A pixel model has no mask and reads no prompt:
outliers start from noised ID images whose class is not said, and only the learned noise leads out.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import good_cifar10


def recipe() -> Recipe:
    return replace(
        good_cifar10.recipe(),
        name="synood_cifar10",
        about="SynOOD's pixel form on CIFAR-10: outliers from ID images at the classifier's boundary, beside the noise floor.",
        synth="synood",
        synth_with={"per_class": 100, "batch_size": 64, "decode_batch": 64},
        own=("synood",),
    )
