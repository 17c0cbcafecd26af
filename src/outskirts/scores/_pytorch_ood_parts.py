"""A classifier in the parts that pytorch-ood's detectors are made with. All take images that have been through `preprocess`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outskirts.passes import batches, hooked, outputs_of

BATCH = 256
"""Images that a detector is fitted on at a time."""


class Says(nn.Module):
    """Images -> the classifier's `logits` or `features`."""

    def __init__(self, classifier, what: str):
        super().__init__()
        self.classifier, self.what = classifier, what
        self.training = False  # MCD turns dropout on only in what is in eval mode

    def forward(self, x: Float[Tensor, "B 3 h w"]) -> Tensor:
        return getattr(self.classifier.classify(x), self.what)


class Rooted(Says):
    """The same with a graph that begins at the images: where parameters ask for no gradient, no layer would have one."""

    def forward(self, x: Float[Tensor, "B 3 h w"]) -> Tensor:
        return super().forward(x.detach().requires_grad_())


class Tap(nn.Module):
    """One of modules that are called in a row, each on what the one before gave, as in a network that is a plain sequence.

    The first runs the whole network, whatever its shape; the others give what there was at their place, the last one the logits.
    """

    def __init__(self, classifier, names: Sequence[str], place: int, kept: list[Tensor]):
        super().__init__()
        self.classifier, self.names, self.place, self.kept = classifier, names, place, kept

    def forward(self, x: Tensor) -> Tensor:
        if self.place == 0:
            with outputs_of(self.classifier.net, self.names) as maps:
                logits = self.classifier.classify(x).logits
            self.kept[:] = [*(maps[name] for name in self.names), logits]
        return self.kept[self.place]


def taps(classifier, names: Sequence[str]) -> tuple[list[Tap], Tap]:
    """(the named modules, what follows the last of them), to be called in that order."""
    kept: list[Tensor] = []
    *layers, head = (Tap(classifier, names, place, kept) for place in range(len(names) + 1))
    return layers, head


class Cut:
    """A classifier in two at a module: the map that it gives, and the logits where it gives another map."""

    def __init__(self, classifier, name: str):
        self.classifier, self.name, self.x = classifier, name, None

    def before(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h2 w2"]:
        with outputs_of(self.classifier.net, [self.name]) as maps:
            self.classifier.classify(x)
        self.x = x  # whatever goes around the module starts from it again
        return maps[self.name].contiguous()

    def after(self, y: Float[Tensor, "B C h2 w2"]) -> Float[Tensor, "B K"]:
        with hooked(self.classifier.net, {self.name: lambda _: y}):
            return self.classifier.classify(self.x).logits


@dataclass(frozen=True)
class Loader:
    """Labelled images in [0, 1] as batches (preprocessed, labels), in order, as often as a detector wants them."""

    classifier: Any
    images: Any
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Int[Tensor, " B"]]]:
        device = next((p.device for p in self.classifier.parameters()), torch.device("cpu"))
        parts = batches(self.images, BATCH, self.classifier.size)
        for (x, _), y in zip(parts, self.labels.split(BATCH), strict=True):
            yield self.classifier.preprocess(x.to(device)), y
