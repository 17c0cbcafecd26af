"""A small synthesizer of a user's own, given by its dotted path: speckled images of any seed, as slow as asked for."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    contrast: float = 1.0
    batch_size: int = 4
    seconds: float = 0.0
    """Pause before each batch."""
    fail: int = -1
    """Id of a request that cannot be made."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def fit(self, images, classifier, *, val=None, state=None):
        self.size = images.size
        self.state = state or {"scale": {"unit": 0.5 * self.contrast}}
        return self

    def requests(self, n, *, seed):
        return [
            Request(i, seed * 1000 + i, i % 3, dials={"strength": float(i % 5)}) for i in range(12 if n is None else n)
        ]

    def __call__(self, requests):
        time.sleep(self.seconds)
        for r in reversed(requests):
            noise = torch.rand(3, *self.size, generator=torch.Generator().manual_seed(r.seed))
            image = (noise * 255 * self.state["scale"]["unit"] * 2).clamp(0, 255).to(torch.uint8)
            yield (
                Outlier(r, notes={"failed": "NaN in guidance"})
                if r.id == self.fail
                else Outlier(r, image, notes={"mean": float(noise.mean())})
            )
