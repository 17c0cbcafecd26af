"""NPOS: outliers around the ID features at the boundary of their class, found by kNN distance, with no distribution assumed.

Tao et al., arXiv 2303.02966 (ICLR 2023), eq. 4 to 6; numbers from the authors' code and OpenOOD's. Outliers are features. What
differs: the paper trains an encoder on the unit sphere along with them, here the classifier's own features are used as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from outskirts.data import require_labels
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.images import Images
from outskirts.scores._shared import head_of
from outskirts.scores.knn import kth_distance
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import feature_outliers, seed_of
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """Gaussian steps from a boundary feature of a class; of `candidates` steps, the one that ends farthest from the class.

    Distances are those to the k-th nearest feature of the class, all of unit length. A step is taken from the feature at
    unit length, as in the paper, and scaled back by its length, which the head is used to read.
    """

    k: int = 50
    """Neighbour by whose distance the boundary is found and candidates are compared; 300 of 1000 in OpenOOD."""
    boundary: int = 200
    """Features of each class, those of the largest distance, from which steps are taken; the whole class where it has fewer."""
    sigma: float = 0.1
    """Standard deviation of a step in every dimension, in units of the feature's length."""
    candidates: int = 600
    """Steps tried for each outlier."""
    rows: int = 1000
    """Features held for each class at most; the paper's queue."""
    batch_size: int = 64
    """Outliers made at a time."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "label", "classifier"})
    makes_features: ClassVar[bool] = True
    per_class: ClassVar[bool] = True
    """Neighbours are looked for among the images of one class."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "k", "boundary", "sigma", "candidates", "rows", "batch_size")

    def fit(self, images: Images, classifier, *, val: Images | None = None) -> "Synthesizer":
        """Finds the boundary; raises OutskirtsError for a class with no k-th neighbour, or a network without linear head."""
        self.head_ = head_of(classifier, "npos")
        self.features_, labels = collect(classifier, images).features, require_labels(images).labels
        self.banks_, self.sources_ = [], []
        for label, name in enumerate(images.classes):
            held = some((labels == label).nonzero()[:, 0], self.rows)
            if len(held) <= self.k:
                raise OutskirtsError(
                    f"class {name!r} has {len(held)} images held, too few for neighbour k={self.k}; give synth.k below {len(held)}"
                )
            bank = normalize(self.features_[held], dim=1)
            distance = kth_distance(bank, bank, self.k + 1)  # each is its own first neighbour
            self.banks_.append(bank)
            self.sources_.append(held[distance.topk(min(self.boundary, len(held))).indices])  # NPOS eq. 4
        self.state = {"rows": sum(map(len, self.banks_))}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` (1000) requests, as many for each class, over its boundary in a seeded order."""
        generator, K = torch.Generator().manual_seed(seed % 2**63), len(self.sources_)
        orders = [rows[torch.randperm(len(rows), generator=generator)].tolist() for rows in self.sources_]
        sources = [orders[i % K][(i // K) % len(orders[i % K])] for i in range(1000 if n is None else n)]
        return [Request(i, seed_of(seed, i), i % K, row) for i, row in enumerate(sources)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        found = [self._farthest(r) for r in requests]
        features, distances = (torch.stack(x) for x in zip(*found, strict=True))
        yield from feature_outliers(requests, features, self.head_, [{"class_distance": d} for d in distances.tolist()])

    def _farthest(self, request: Request) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
        """(the candidate farthest from the class, its distance)."""
        feature, bank = self.features_[request.source], self.banks_[request.label]
        generator = torch.Generator().manual_seed(request.seed)
        steps = torch.randn(self.candidates, len(feature), generator=generator)
        candidates = normalize(feature, dim=0) + self.sigma * steps  # NPOS eq. 5
        distance = kth_distance(candidates, bank, self.k)
        best = distance.argmax()  # NPOS eq. 6
        return candidates[best] * feature.norm(), distance[best]


def some(rows: Int[Tensor, " N"], most: int) -> Int[Tensor, " n"]:
    """`most` of the rows, drawn evenly with a fixed seed; all where there are not more."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].sort().values]
