"""Relative Mahalanobis distance, Ren et al. (arXiv 2106.09022)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.scores import mahalanobis
from outskirts.scores._gaussian import squared_distances, whitener
from outskirts.scores._shared import class_means, known_rows, learned
from outskirts.types import Outputs


@dataclass
class Score(mahalanobis.Score):
    """min_k MD_k - MD_0, any real number: Mahalanobis to the nearest class less Mahalanobis to one Gaussian of all ID features.

    In float64 with pseudo-inverses, see `outskirts.scores.mahalanobis`; `shrinkage` is of both covariances.
    """

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
    ) -> "Score":
        """Rows labelled -1, and classes without rows, are left out."""
        super().fit(train, labels)
        train, _ = known_rows(train, labels)
        everything = torch.zeros(len(train), dtype=torch.long, device=train.features.device)
        mean, _ = class_means(train.features, everything, 1)
        self.background_ = whitener(train.features, mean, everything, self.shrinkage)
        self.background_mean_ = mean @ self.background_
        return self

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        z = outputs.features.double()
        background, mean = (learned(self, name).to(z) for name in ("background_", "background_mean_"))
        return super().__call__(outputs) - squared_distances(z @ background, mean).squeeze(-1)
