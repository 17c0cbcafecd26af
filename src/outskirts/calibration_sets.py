"""What P(ID) is calibrated against: OOD images constructed from held-out ID images, and ID classes that a second scout does not know.

Bad-OOD calibrates on real OOD images (31,807 of ImageNet-OOD), so it is not free of auxiliary OOD data. These are for who has none.
"""

import itertools

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from outskirts.calibration import NEEDED
from outskirts.errors import OutskirtsError
from outskirts.images import Images, unlabelled
from outskirts.mixing import cutmix, mixup
from outskirts.outlier_sets import HELD_OUT
from outskirts.synth._shared import to_uint8
from outskirts.synth.shuffle import cycle, shuffled

KINDS = ("patches", "mixup", "cutmix", "blur", "noise", "negative")
"""Ways in which an ID image is spoilt, in turn."""
GRIDS = (2, 3, 4)
"""Patches along a side, of shuffled ones."""


def constructed(images: Images, size: tuple[int, int] | None = None, *, seed: int = 0) -> Images:
    """As many OOD images as there are labelled ID `images`, each made from its own, in equal parts of KINDS.

    Shuffled patches (2x2 to 4x4), mix-up and CutMix with an image of another class (share 0.3 to 0.7), strong blur or noise, negatives.
    """
    size = images.size or size
    if size is None:
        raise OutskirtsError(f"{images.name}: images may differ in size and the classifier takes any; give size=H,W")
    if len(images.labels.unique()) < 2:
        raise OutskirtsError(
            f"{images.name} has images of one class; calibration=constructed mixes images of two or more"
        )
    pixels, generator = images.resized(size).pixels, torch.Generator().manual_seed(seed)
    kind = torch.randperm(len(pixels), generator=generator) % len(KINDS)
    other = _of_another_class(images.labels, generator)
    share = 0.3 + 0.4 * torch.rand(len(pixels), generator=generator)
    place, strength = (torch.rand(len(pixels), n, generator=generator) for n in (2, 1))  # strength of blur and noise
    result, x = pixels.clone(), pixels.float() / 255
    for number, name in enumerate(KINDS):
        rows = (kind == number).nonzero()[:, 0]
        if name == "patches":
            result[rows] = _patches(pixels[rows], generator)
        elif name == "mixup":
            result[rows] = to_uint8(mixup(x[rows], x[other[rows]], share[rows]))
        elif name == "cutmix":
            result[rows] = to_uint8(cutmix(x[rows], x[other[rows]], share[rows], place[rows])[0])
        elif name == "blur":
            for row, by in zip(rows.tolist(), strength[rows, 0].tolist(), strict=True):
                result[row] = _blurred(pixels[row], 4 + int(4 * by))
        elif name == "noise":
            result[rows] = _noisy(x[rows], 0.2 + 0.3 * strength[rows, 0], generator)
        else:
            result[rows] = 255 - pixels[rows]
    return Images(f"constructed from {images.name}", [], unlabelled(len(result)), result)


def enough_apart(label: str, n: int, scouts: int = 1) -> None:
    """Raise OutskirtsError where of `n` outliers each scout leaves out fewer than a calibration on them needs."""

    def apart(n: int) -> int:
        others = n if scouts == 1 else n - -(-n // scouts)  # of several scouts, each trains on the others' parts
        return round(HELD_OUT * others)

    if apart(n) < NEEDED:
        enough = next(i for i in itertools.count(n) if apart(i) >= NEEDED)
        raise OutskirtsError(
            f"filter of {label}: calibration=synthetic calibrates on outliers that {'the' if scouts == 1 else 'each'} scout leaves out, {apart(n)} of "
            f"{n}, and {NEEDED} are needed; give {enough} or more, n_outliers={enough}{', or filter.cross_fit=1' if scouts > 1 else ''}, or give "
            "filter.calibration=rank"
        )


def classes_out(K: int, share: float | None = None) -> list[int]:
    """Which of K classes a scout is not told of: a share of them (0.15), one at least, evenly spread."""
    n = max(1, round((0.15 if share is None else share) * K))
    if K - n < 2:
        raise OutskirtsError(
            f"calibration=held_out_classes leaves {n} of {K} classes out, and a classifier needs 2; give a smaller filter.classes_out, or "
            "calibration=constructed"
        )
    return sorted({round(i) for i in np.linspace(0, K - 1, n + 2)[1:-1]} if n > 1 else {K // 2})


def _of_another_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each image, the row of one of another class."""
    partner = torch.empty_like(labels)
    for y in labels.unique():
        mine, others = (rows.nonzero()[:, 0] for rows in (labels == y, labels != y))
        partner[mine] = others[torch.randint(len(others), (len(mine),), generator=generator)]
    return partner


def _patches(pixels: UInt8[Tensor, "B 3 H W"], generator: torch.Generator) -> UInt8[Tensor, "B 3 H W"]:
    result = pixels.clone()
    for i, grid in enumerate(GRIDS):
        rows = torch.arange(i, len(pixels), len(GRIDS))
        side = max(1, min(pixels.shape[2:]) // grid)
        n = (pixels.shape[2] // side) * (pixels.shape[3] // side)
        if len(rows) and n > 1:
            orders = torch.stack([cycle(n, generator) for _ in rows])
            result[rows] = shuffled(pixels[rows], orders, side)
    return result


def _noisy(
    x: Float[Tensor, "B 3 H W"], sd: Float[Tensor, " B"], generator: torch.Generator
) -> UInt8[Tensor, "B 3 H W"]:
    """Gaussian noise of 0.2 to 0.5, alike in all channels of a grey image."""
    grey = (x == x[:, :1]).flatten(1).all(1)[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator)
    return to_uint8(x + sd[:, None, None, None] * torch.where(grey, noise[:, :1], noise))


def _blurred(pixels: UInt8[Tensor, "3 H W"], by: int) -> UInt8[Tensor, "3 H W"]:
    """What is left of the image at a `by`-th of its side."""
    h, w = pixels.shape[1:]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    small = image.resize((max(2, w // by), max(2, h // by)), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small.resize((w, h), Image.Resampling.BICUBIC))).permute(2, 0, 1)
