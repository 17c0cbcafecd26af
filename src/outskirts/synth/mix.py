"""Mixed ID images: two training images of different classes in one, neither of which is there whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from outskirts.data import require_labels
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.mixing import cutmix, mixup
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import from_sources, id_size, pixels_of, to_uint8
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """Each outlier starts from one training image (`source`) and takes the rest from one of another class (in the notes)."""

    kind: Literal["mixup", "cutmix"] = "mixup"
    """mixup: a weighted mean; cutmix: a box of the other image is pasted in."""
    share: tuple[float, float] = (0.4, 0.6)
    """Of the source image, of its weight (mixup) or area (cutmix): drawn evenly between these."""
    batch_size: int = 256
    """Images made at a time."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "label"})
    coded: ClassVar[bool] = True
    """Made of the pixels of ID images, which were in their lossy format already: `recode` leaves it alone."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "batch_size")
        if not 0 < self.share[0] <= self.share[1] < 1:
            raise OutskirtsError(f"share is {self.share!r}; accepted: two numbers, 0 < from <= to < 1")

    def fit(self, images: Images, classifier=None, *, val: Images | None = None) -> "Synthesizer":
        self.images_, self.size_, self.state = require_labels(images), id_size(images, classifier), {}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` (1000) requests over the training images in a seeded order, all of them before any one twice."""
        return from_sources(self.images_, n, seed)

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        labels, others, draws = self.images_.labels, [], []
        for r in requests:
            g = torch.Generator().manual_seed(r.seed)
            candidates = (labels != r.label).nonzero()[:, 0]
            others.append(int(candidates[torch.randint(len(candidates), (), generator=g)]))
            draws.append(torch.rand(3, generator=g))
        draws = torch.stack(draws)
        share = self.share[0] + (self.share[1] - self.share[0]) * draws[:, 0]
        first, second = (
            pixels_of(self.images_, rows, self.size_).float() / 255 for rows in ([r.source for r in requests], others)
        )
        if self.kind == "mixup":
            mixed = mixup(first, second, share)
        else:
            mixed, share = cutmix(first, second, share, draws[:, 1:])
        for r, image, other, s in zip(requests, to_uint8(mixed), others, share.tolist(), strict=True):
            yield Outlier(r, image, notes={"other": other, "other_label": int(labels[other]), "share": round(s, 6)})
