"""Distance to the k-th nearest training feature, Sun et al. (arXiv 2204.06507); GOOD's feature-level score (arXiv 2510.17131)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from outskirts.errors import OutskirtsError
from outskirts.scores import _faiss
from outskirts.scores._shared import fp32, learned
from outskirts.types import Outputs

BACKENDS = ("auto", "torch", "faiss")
GROUP = 16
"""Rows of the bank that are first looked at together."""
CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Query-bank products held at a time; on a CPU, more of them leave the cache and the search takes longer."""


@dataclass
class Score:
    """D_k, the distance between an image's feature and the k-th nearest of the training features, all of unit length: 0 to 2.

    Differentiable: the neighbour is searched without gradient, then the distance to that one stored row is computed with it.
    A training image is its own first neighbour. For guidance, log f = s * D_k; s is the guide's matter, see `auto_scale`.
    """

    k: int = 100
    """Which neighbour; GOOD finds 50 to 500 all alike, on banks of 50,000 rows and more. With fewer images, half of the smallest class at most: from the
    size of a class on it is a neighbour of another one. A bench, `Detector.fit` and the adaptors warn, and say the value to set."""
    backend: str = "auto"
    """torch: every row, in chunks, on any device; faiss: on the CPU, where it is installed, every row of a small bank and, from
    500,000 rows, the nearest cells of an index made by `fit`; auto: faiss on a CPU with such a bank, else torch, which looks at
    every row 2 to 2.5 times as fast as faiss does (`benchmarks/knn.py`)."""

    differentiable: ClassVar[bool] = True
    transductive: ClassVar[bool] = False

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
    ) -> "Score":
        """Stores the bank. Fit again after the classifier was trained: a bank belongs to one set of weights."""
        self.bank_ = bank_of(train, self.k)
        self.index_ = index_of(self.bank_, self.backend)
        return self

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        self.bank_ = learned(self, "bank_").to(outputs.features.device)  # moves once, then stays
        return kth_distance(outputs.features, self.bank_, self.k, self.backend, saved_index(self))


def bank_of(train: Outputs, k: int) -> Float[Tensor, "N D"]:
    """The training features, each of unit length; raises OutskirtsError where there is no k-th row."""
    if not 1 <= k <= len(train):
        raise OutskirtsError(
            f"k={k} neighbours in a bank of {len(train)} images; k must be 1 to {len(train)}: give a smaller k or more images"
        )
    return normalize(fp32(train.features.detach()), dim=-1)


def index_of(bank: Float[Tensor, "N D"], backend: str = "auto") -> UInt8[Tensor, " M"]:
    """What faiss needs to search a large bank; empty where every row is looked at."""
    large = len(bank) >= _faiss.LARGE and bank.device.type == "cpu" and _faiss.installed()
    return _faiss.index_of(bank) if backend == "faiss" or (backend == "auto" and large) else _faiss.NO_INDEX


def saved_index(score) -> UInt8[Tensor, " M"]:
    """The index of a fitted score; those that were saved before there was one have none."""
    return getattr(score, "index_", _faiss.NO_INDEX)


def kth_distance(
    features: Float[Tensor, "B D"],
    bank: Float[Tensor, "N D"],
    k: int,
    backend: str = "auto",
    index: UInt8[Tensor, " M"] = _faiss.NO_INDEX,
) -> Float[Tensor, " B"]:
    """Distance of each normalised feature to the k-th nearest row of `bank` (unit rows), with gradient. GOOD eq. 6"""
    phi = normalize(fp32(features), dim=-1)
    nearest = bank[kth_neighbour(phi.detach().to(bank.dtype), bank, k, backend, index)]
    # torch.cdist would lose its precision, and its gradient, near 0
    return (phi - nearest).square().sum(-1).clamp(min=1e-12).sqrt()


@torch.no_grad()
def kth_neighbour(
    phi: Float[Tensor, "B D"],
    bank: Float[Tensor, "N D"],
    k: int,
    backend: str = "auto",
    index: UInt8[Tensor, " M"] = _faiss.NO_INDEX,
) -> Int[Tensor, " B"]:
    """Row of `bank` that is the k-th nearest to each of `phi`, all rows of unit length: the k-th largest product."""
    if backend not in BACKENDS:
        raise OutskirtsError(f"no kNN backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    if not 1 <= k <= len(bank):
        raise OutskirtsError(
            f"k={k} neighbours in a bank of {len(bank)} rows; k must be 1 to {len(bank)}: give a smaller k or more images"
        )
    indexed = len(index) > 0 and bank.device.type == "cpu" and _faiss.installed()
    if backend == "faiss" or (backend == "auto" and indexed):
        return _faiss.neighbour(phi, bank, k, index)
    if torch.compiler.is_compiling():  # while it is traced, for export, a batch has no size to cut it by
        return _kth_largest(phi @ bank.T, k)
    rows = max(1, CHUNK.get(bank.device.type, CHUNK["cpu"]) // len(bank))
    return torch.cat([_kth_largest(part @ bank.T, k) for part in phi.split(rows)])


def _kth_largest(products: Float[Tensor, "B N"], k: int) -> Int[Tensor, " B"]:
    """Column of the k-th largest of each row."""
    n = products.shape[1]
    groups = n // GROUP
    if groups < 4 * k:
        top = products.topk(k, sorted=False)
        return top.indices.gather(1, top.values.argmin(1, keepdim=True)).squeeze(1)
    # the k largest are all in the k groups whose maxima are the largest, so only those need to be looked through
    best = products[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amax(1).topk(k, sorted=False).indices
    members = best[:, None] + groups * torch.arange(GROUP, device=best.device)[:, None]
    rest = torch.arange(groups * GROUP, n, device=best.device).expand(len(best), -1)
    columns = torch.cat([members.flatten(1), rest], 1)
    top = products.gather(1, columns).topk(k, sorted=False)
    return columns.gather(1, top.indices.gather(1, top.values.argmin(1, keepdim=True))).squeeze(1)


def auto_scale(classifier, images: Float[Tensor, "N 3 H W"], energy, knn, *, batch_size: int = 64) -> float:
    """The s that makes s * D_k push as hard as the energy does: median |grad E| / median |grad D_k| over ID images.

    GOOD multiplies its kNN distances by a fixed factor (10 is the best guess from its grid), but the ratio depends on the
    network's feature and weight norms, so measure it. `images` in [0, 1], a few hundred suffice; `energy` and `knn` are the
    two scores, `knn` fitted. The gradients are those with respect to the images.
    """
    e, d = (
        torch.cat([_grad_norm(classifier, part, score) for part in images.split(batch_size)]).median().item()
        for score in (energy, knn)
    )
    if not (e > 0 and d > 0 and e < float("inf") and d < float("inf")):
        raise OutskirtsError(
            f"no kNN scale from median gradients {e:g} (energy) and {d:g} (kNN); both must be positive: give a number, e.g. 10"
        )
    return e / d


def _grad_norm(classifier, images: Float[Tensor, "B 3 H W"], score) -> Float[Tensor, " B"]:
    images = images.detach().requires_grad_()
    (grad,) = torch.autograd.grad(score(classifier(images)).sum(), images)  # summed: images do not mix in eval mode
    return grad.flatten(1).norm(dim=1)
