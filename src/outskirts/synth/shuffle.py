"""Patch-shuffled ID images: the colours and textures of the classes, without their shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import from_sources, id_size, pixels_of
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """Each outlier is one training image, cut into square patches that change places: none stays where it was."""

    patch: float = 0.25
    """Side of a patch: below 1 as a share of the image's shorter side, from 1 on in pixels."""
    batch_size: int = 256
    """Images made at a time."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "label"})
    coded: ClassVar[bool] = True
    """Its pixels are those of ID images, which were in their lossy format already: `recode` leaves them alone."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "patch", "batch_size")

    def fit(self, images: Images, classifier=None, *, val: Images | None = None) -> "Synthesizer":
        """Raises OutskirtsError where the images hold fewer than two patches."""
        self.images_, self.size_ = images, id_size(images, classifier)
        side = self.patch if self.patch >= 1 else self.patch * min(self.size_)
        self.side_ = max(1, round(side))
        if (self.size_[0] // self.side_) * (self.size_[1] // self.side_) < 2:
            raise OutskirtsError(
                f"patch={self.patch:g} is {self.side_} pixels, and images of {self.size_[0]}x{self.size_[1]} hold fewer than two such patches; give a smaller one"
            )
        self.state = {"side": self.side_}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` (1000) requests over the training images in a seeded order, all of them before any one twice."""
        return from_sources(self.images_, n, seed)

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        sources = pixels_of(self.images_, [r.source for r in requests], self.size_)
        patches = (self.size_[0] // self.side_) * (self.size_[1] // self.side_)
        orders = torch.stack([cycle(patches, torch.Generator().manual_seed(r.seed)) for r in requests])
        images = shuffled(sources, orders, self.side_)
        for request, source, image in zip(requests, sources, images, strict=True):
            if torch.equal(source, image):
                yield Outlier(request, notes={"failed": "all patches of the image are alike"})
            else:
                yield Outlier(request, image)


def cycle(n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """A uniformly drawn permutation of one cycle: nothing stays in its place, and equal images have equal patches only."""
    order = torch.randperm(n, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def shuffled(images: UInt8[Tensor, "B 3 H W"], orders: Int[Tensor, "B n"], side: int) -> UInt8[Tensor, "B 3 H W"]:
    """Patch i of the result is patch orders[i] of the image, row by row; a rim that holds no whole patch stays as it is."""
    rows, columns = (s // side for s in images.shape[2:])
    top, left = ((s - k * side) // 2 for s, k in zip(images.shape[2:], (rows, columns), strict=True))
    whole = (..., slice(top, top + rows * side), slice(left, left + columns * side))
    cut = images[whole].unflatten(3, (columns, side)).unflatten(2, (rows, side))  # [B, 3, rows, side, columns, side]
    patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, n, 3, side, side]
    moved = patches[torch.arange(len(images))[:, None], orders]
    result = images.clone()
    result[whole] = moved.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return result
