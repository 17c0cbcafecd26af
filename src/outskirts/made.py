"""Image sets that are computed: photograph patches, negatives, shuffled pixels, noise; and outliers of a run. All are OOD, label -1.

The computed ones have the size, the count and the greyness of the set they are held against (`like`), the same on every machine.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.images import Images, unlabelled


def photos(rest: str, classes: str | None, like: Images | None, size: tuple[int, int] | None) -> Images:
    """Patches of scikit-learn's two sample photographs, china.jpg and flower.jpg, at five scales.

    A scale is the photograph resized; the largest is the photograph as it is, at the smallest a patch spans most of it.
    """
    from sklearn.datasets import load_sample_images

    h, w = _size("photos", rest, classes, like, size)
    photographs = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() for p in load_sample_images().images]
    smallest = max(max(h / p.shape[-2], w / p.shape[-1]) for p in photographs)
    scales = [max(smallest, 1.0) if smallest >= 1 else smallest ** (j / 5) for j in range(5)]
    views = [_at_scale(p, s, h, w) for s in scales for p in photographs]
    rng = np.random.default_rng(0)
    counts = np.diff(np.linspace(0, len(like), len(views) + 1).astype(int))
    patches = torch.cat([_windows(v, n, h, w, rng) for v, n in zip(views, counts, strict=True)])
    patches = patches[torch.from_numpy(rng.permutation(len(patches)))]  # any first n are of all scales
    if is_grey(like):
        patches = patches.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return _ood("photos", patches.round().to(torch.uint8))


def invert(rest: str, classes: str | None, like: Images | None, size: tuple[int, int] | None) -> Images:
    """255 - v for every pixel of NAME, or of `like` where no name is given."""
    return _ood(f"invert:{rest}" if rest else "invert", 255 - _base("invert", rest, classes, like, size))


def shuffle(rest: str, classes: str | None, like: Images | None, size: tuple[int, int] | None) -> Images:
    """The pixels of NAME, or of `like`, in a random order of each image's own; the three channels stay together."""
    pixels = _base("shuffle", rest, classes, like, size)
    flat = pixels.flatten(2)
    order = np.random.default_rng(0).random((len(flat), flat.shape[-1])).argsort(1)
    order = torch.from_numpy(order)[:, None].expand_as(flat)
    return _ood(f"shuffle:{rest}" if rest else "shuffle", flat.gather(2, order).view_as(pixels))


def noise(rest: str, classes: str | None, like: Images | None, size: tuple[int, int] | None) -> Images:
    """Independent pixels: `gaussian` with mean 0.5 and standard deviation 0.25, clipped to [0, 1]; `uniform` on [0, 1]."""
    kind = rest or "gaussian"
    if kind not in ("gaussian", "uniform"):
        close = did_you_mean(kind, ["gaussian", "uniform"])
        raise OutskirtsError(f"no noise {kind!r}{close}; known: gaussian, uniform")
    h, w = _size("noise", "", classes, like, size)
    rng = np.random.default_rng(0)
    shape = (len(like), 1 if is_grey(like) else 3, h, w)
    values = rng.normal(0.5, 0.25, shape) if kind == "gaussian" else rng.random(shape)
    pixels = torch.from_numpy(np.round(values.clip(0, 1) * 255).astype(np.uint8))
    return _ood(f"noise:{kind}", pixels.expand(-1, 3, -1, -1))


def store(rest: str, classes: str | None, like: Images | None, size: tuple[int, int] | None) -> Images:
    """The outliers in FOLDER, the folder of a run, of one of its `3-synth` steps, or a store itself; without those that a filter dropped."""
    from outskirts.store import Store

    if not rest or classes:
        raise OutskirtsError(
            f"write store:FOLDER, the folder of a run or of its outliers{', without classes' if classes else ''}"
        )
    places = (Path(rest).expanduser() / below for below in ("3-synth/store", "store", ""))
    folder = next((str(p) for p in places if (p / "store.json").is_file()), rest)
    _, images = Store(folder).images(size or (like.size if like is not None else None))
    return replace(images, name=f"store:{rest}")


MADE = {"photos": photos, "invert": invert, "shuffle": shuffle, "noise": noise, "store": store}


def is_grey(images: Images) -> bool:
    """True when the three channels are equal in each of the first 64 images."""
    return all(bool((x == x[:1]).all()) for x, _ in (images[i] for i in range(min(64, len(images)))))


def _size(kind, rest, classes, like, size):
    if like is None:
        raise OutskirtsError(
            f"{kind} takes its count and size from another set; give the in-distribution images as `like`"
        )
    if rest or classes:
        raise OutskirtsError(f"{kind} has no {rest or classes!r}; write {kind!r} alone")
    size = size or like.size
    if size is None:
        raise OutskirtsError(f"{kind} needs a size: {like.name} has images of different sizes; give size=(H, W)")
    return size


def _base(kind, rest, classes, like, size) -> UInt8[Tensor, "N 3 H W"]:
    """The pixels to be altered: as many as `like` has, where it is given, and of its size."""
    from outskirts.data import load

    if not rest and like is None:
        raise OutskirtsError(f"{kind} of what? Write {kind}:NAME, or give the in-distribution images as `like`")
    images = load(rest, classes=classes) if rest else like
    if like is not None and len(images) > len(like):
        rows = np.random.default_rng(0).permutation(len(images))[: len(like)]
        images = images.subset(torch.from_numpy(np.sort(rows)))
    size = size or (like.size if like is not None else None) or images.size
    if size is None:
        raise OutskirtsError(f"{kind} needs a size: {images.name} has images of different sizes; give size=(H, W)")
    return images.resized(size).pixels


def _at_scale(photograph, scale, h, w):
    target = [max(round(n * scale), least) for n, least in zip(photograph.shape[-2:], (h, w), strict=True)]
    return torch.nn.functional.interpolate(photograph, target, mode="bicubic", antialias=True)[0].clamp(0, 255)


def _windows(view, n, h, w, rng):
    """n windows [n, 3, h, w] of a view [3, *, *], at random places, by one gather."""
    top = torch.from_numpy(rng.integers(0, view.shape[1] - h + 1, n))
    left = torch.from_numpy(rng.integers(0, view.shape[2] - w + 1, n))
    rows, columns = top[:, None, None] + torch.arange(h)[:, None], left[:, None, None] + torch.arange(w)
    return view[:, rows, columns].transpose(0, 1)


def _ood(name, pixels):
    return Images(name, [], unlabelled(len(pixels)), pixels.contiguous())
