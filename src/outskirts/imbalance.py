"""Classes of unequal size, made of classes of equal size: what Bad-OOD's Table 10 trains on."""

import math

import numpy as np
import torch

from outskirts.errors import OutskirtsError
from outskirts.images import Images


def imbalanced(images: Images, last: float, *, seed: int = 0) -> Images:
    """`images` with all of the first class, the share `last` in (0, 1] of the last one, and in between shares in even steps.

    Which ones stay is drawn by `seed`; order and labels stay. Bad-OOD Table 10 removes 0 to 1200 of 1300 images: last = 1/13. Raises
    OutskirtsError where a class would keep fewer than two.
    """
    if not 0 < last <= 1:
        raise OutskirtsError(
            f"imbalance is {last:g}; give the share of its images that the last class keeps, above 0 and up to 1"
        )
    labels, stay = images.labels.numpy(), []
    for label, share in enumerate(np.linspace(1, last, len(images.classes))):
        rows = np.flatnonzero(labels == label)
        n = math.floor(share * len(rows) + 0.5)
        if n < 2:
            raise OutskirtsError(
                f"imbalance={last:g} leaves {n} of {len(rows)} images of class {images.classes[label]!r}; give a larger share, or more images"
            )
        # Every class has a generator of its own, as in `split`: another share of one does not move the others.
        stay.append(np.random.default_rng([seed, label + 1]).permutation(rows)[:n])
    return images.subset(torch.from_numpy(np.sort(np.concatenate(stay))))
