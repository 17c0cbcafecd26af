"""How much outliers differ from each other: classes that a judge sees in them, and the size of JPEG files (Bad-OOD Fig. 4)."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from PIL import __version__ as PILLOW
from torch import Tensor

from outskirts.images import Images
from outskirts.shard import picture

SIDE, QUALITY = 256, 95
"""Pixels and quality of the files, without which their sizes mean nothing."""
ENCODER = f"{SIDE} px, quality {QUALITY}, Pillow {PILLOW}"


def jpeg_bytes(pixels: UInt8[Tensor, "3 H W"]) -> int:
    """Size of the image as a JPEG file of SIDE x SIDE."""
    buffer = io.BytesIO()
    picture(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell()


def mean_jpeg_bytes(images: Images) -> float:
    """Mean size of the images' files: larger = more detail in each. What Bad-OOD writes."""
    return float(np.mean([jpeg_bytes(images.pixels[i]) for i in range(len(images))]))


def mean_image_jpeg_bytes(images: Images, labels: Sequence[int | None]) -> float:
    """Size of the file of each class's mean image, mean over classes: *smaller* = more diverse. The ImageNet paper's measure."""
    classes = sorted({y for y in labels if y is not None}) or [None]
    masks = [torch.tensor([y == c for y in labels]) for c in classes]
    means = [images.pixels[mask].float().mean(0).round().to(torch.uint8) for mask in masks]
    return float(np.mean([jpeg_bytes(m) for m in means]))


def class_ratio(predicted: Sequence[int], n_id: int) -> float:
    """Classes that the judge sees in the outliers, for each ID class; above 1 where it knows more classes than those."""
    return len(set(predicted)) / n_id


def measures(images: Images, labels: Sequence[int | None], predicted: Sequence[int], n_id: int) -> dict[str, Any]:
    """All three, of images of one size."""
    return {
        "n": len(images),
        "class_ratio": class_ratio(predicted, n_id),
        "mean_jpeg_bytes": mean_jpeg_bytes(images),
        "mean_image_jpeg_bytes": mean_image_jpeg_bytes(images, labels),
    }


def by_band(
    distance: Float[np.ndarray, " N"], p_id: Float[np.ndarray, " N"], band: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Of each band: n, mean and median distance to the ID images (Bad-OOD Table 11, whose high confidence is that of P(OOD))."""
    at, ok = np.array([b or "" for b in band]), np.isfinite(distance) & np.isfinite(p_id)
    found = [(name, distance[(at == name) & ok]) for name in ("low", "mid", "high")]
    return [
        {
            "band": name,
            "n": len(v),
            "mean": float(v.mean()) if len(v) else None,
            "median": float(np.median(v)) if len(v) else None,
        }
        for name, v in found
    ]
