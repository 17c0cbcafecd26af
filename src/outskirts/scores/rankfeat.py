"""RankFeat: energy after the largest singular direction of the feature map is removed, Song et al. (arXiv 2209.08590)."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.passes import hooked, outputs_of
from outskirts.scores._shared import Unfitted, fp32, observed
from outskirts.types import Look, Outputs

PLACES: "WeakKeyDictionary[Any, dict[tuple, list[tuple[str, bool]]]]" = WeakKeyDictionary()
"""Of each classifier, what `places` found."""


@dataclass
class Score(Unfitted):
    """-logsumexp of the logits from X - s1 u1 v1^T, X the last feature map before pooling. An Observer: reads the feature map.

    Needs a network with maps of channels first [B, C, h, w]. A map that only the mean over places and the linear head follow
    is taken from the pass that all scores share; every other one costs a forward pass.
    """

    layers: str = ""
    """Modules whose maps lose their first direction, separated by commas; the logits of several are averaged, as the paper does
    with the last two blocks. None named: the last map before pooling, the paper's Block 4."""

    differentiable = False

    @property
    def observes(self) -> str:
        return f"rankfeat {self.layers}".strip()

    def watches(self, classifier, images: Float[Tensor, "B 3 H W"]) -> list[str]:
        return [name for name, last in places(classifier, images, self.layers) if last]

    @torch.no_grad()
    def observe(self, look: Look) -> Float[Tensor, " B"]:
        logits = [
            _head_logits(look.classifier, look.maps[name]) if last else _own_pass(look.classifier, look.images, name)
            for name, last in places(look.classifier, look.images, self.layers)
        ]
        return -fp32(torch.stack(logits).mean(0)).logsumexp(-1)

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return observed(self, outputs)


@torch.no_grad()
def places(classifier, images: Float[Tensor, "B 3 H W"], layers: str) -> list[tuple[str, bool]]:
    """The modules `layers`, and whether only the mean over places and the head follow each: found once for each size of images."""
    found, key = PLACES.setdefault(classifier, {}), (layers, images.shape[1:])
    if key not in found:
        noise = torch.rand(2, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
        names = layers.split(",") if layers else [last_map(classifier, noise)]
        found[key] = [(name, _is_last(classifier, noise, name)) for name in names]
    return found[key]


def last_map(classifier, images: Float[Tensor, "B 3 H W"]) -> str:
    """The module whose output is the last one with more than one place; raises OutskirtsError unless it is [B, C, h, w]."""
    seen: list[tuple[str, torch.Size]] = []

    def look(name: str, y) -> None:
        if isinstance(y, Tensor) and y.ndim >= 3 and y.shape[2:].numel() > 1:
            seen.append((name, y.shape))

    with hooked(classifier.net, {n: lambda y, n=n: look(n, y) for n, _ in classifier.net.named_modules() if n}):
        classifier(images)
    name, shape = seen[-1] if seen else ("", ())
    if len(shape) != 4 or shape[1] != classifier.feature_dim:
        found = f"{name!r} gives {tuple(shape)}" if seen else "there is none"
        raise OutskirtsError(
            f"rankfeat needs a map [B, {classifier.feature_dim}, h, w] that is pooled into the features, and the last of this "
            f"network is not one: {found}; name a module with layers=, or take another score"
        )
    return name


def without_rank_one(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Each map, as a matrix [C, h w], less its largest singular value's part."""
    m = x.flatten(2).double()
    # X - s1 u1 v1^T = X - u1 u1^T X = X - X v1 v1^T: an eigenvector of the smaller Gram matrix, 10 to 30 times as fast as SVDs
    if m.shape[1] < m.shape[2]:
        u = torch.linalg.eigh(m @ m.mT).eigenvectors[..., -1:]
        less = m - u @ (u.mT @ m)
    else:
        v = torch.linalg.eigh(m.mT @ m).eigenvectors[..., -1:]
        less = m - m @ v @ v.mT
    return less.to(x.dtype).view_as(x)


def _is_last(classifier, images: Tensor, name: str) -> bool:
    """Whether the mean of the map and the head give what a pass of its own gives, on these images."""
    own = _own_pass(classifier, images, name)
    with outputs_of(classifier.net, [name]) as maps:
        classifier(images)
    if not isinstance(classifier.head, nn.Linear) or maps[name].shape[1] != classifier.feature_dim:
        return False
    return torch.allclose(_head_logits(classifier, maps[name]), own, rtol=0, atol=1e-4 * own.abs().max().item())


def _head_logits(classifier, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
    return classifier.head(without_rank_one(x).mean((2, 3))).float()


def _own_pass(classifier, images: Tensor, name: str) -> Float[Tensor, "B K"]:
    with hooked(classifier.net, {name: lambda y: without_rank_one(_map(y, name))}):
        return classifier(images).logits


def _map(y, name: str) -> Float[Tensor, "B C h w"]:
    if not isinstance(y, Tensor) or y.ndim != 4:
        raise OutskirtsError(f"rankfeat: layer {name!r} gives no map [B, C, h, w]; name one that does")
    return y
