"""Covariate shift by degrees: blur, noise, contrast, JPEG and colour, each from 0 (none) to 7."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from outskirts.recode import recode

KINDS = ("blur", "noise", "contrast", "jpeg", "colour")
LEVELS = 8


def corrupt(pixels: UInt8[Tensor, "N 3 H W"], severity: int, *, seed: int = 0) -> UInt8[Tensor, "N 3 H W"]:
    """The images at a severity from 0 (as they are) to 7; the kind of each is drawn with `seed`, the same at every severity.

    Colour is taken away; grey images, which have none, are made brighter instead.
    """
    if severity == 0:
        return pixels
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(KINDS), (len(pixels),), generator=generator)
    result, part = pixels.clone(), severity / (LEVELS - 1)
    for number, kind in enumerate(KINDS):
        rows = (kinds == number).nonzero()[:, 0]
        if len(rows):
            result[rows] = _of_kind(pixels[rows], kind, part, generator)
    return result


def _of_kind(
    x: UInt8[Tensor, "n 3 H W"], kind: str, part: float, generator: torch.Generator
) -> UInt8[Tensor, "n 3 H W"]:
    """`part` of the strongest, above 0 and up to 1."""
    from torchvision.transforms.v2 import functional as tv  # two seconds, which only those who spoil images wait for

    side = min(x.shape[2:])
    grey = bool((x == x[:, :1]).all())
    if kind == "blur":
        sigma = part * side / 8
        return tv.gaussian_blur(x, 2 * min(max(1, round(2 * sigma)), (side - 1) // 2) + 1, sigma)
    if kind == "noise":
        noise = torch.randn(len(x), 1 if grey else 3, *x.shape[2:], generator=generator)
        return (x + 110 * part * noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "contrast":
        return tv.adjust_contrast(x, 1 - 0.9 * part)
    if kind == "jpeg":
        return torch.stack([recode(one, f"jpeg:{max(2, round(70 * (1 - part)))}") for one in x])
    return (x + 160 * part).clamp(0, 255).to(torch.uint8) if grey else tv.adjust_saturation(x, 1 - part)
