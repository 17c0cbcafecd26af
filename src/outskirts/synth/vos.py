"""VOS: virtual outliers, low-likelihood draws from class-conditional Gaussians of the classifier's features.

Du et al., arXiv 2202.01197 (ICLR 2022), eq. 2 to 5. Outliers are features: they join behind the penultimate layer. The
classifier is frozen while they are made; the paper draws again at every step, from the features of that step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from scipy.special import betaincinv, gammainccinv
from torch import Tensor

from outskirts.data import require_labels
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.images import Images
from outskirts.scores._shared import head_of
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import feature_outliers, seed_of
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """mu_y + L z, where z is among the `keep` least likely of `candidates` draws and L L^T is the classes' shared covariance.

    The likelihood of mu + L z falls with |z| and depends on nothing else, so the least likely draws are those of the largest
    |z|, and a direction is as good as another. Hence |z| can be drawn as what it is, an order statistic of chi-distributed
    norms, and the direction uniformly: `exact`, the same distribution at 1 / candidates of the cost. Each outlier stands
    for a batch of candidates of its own, so it depends on its own request alone, where the paper keeps several of one batch.
    """

    candidates: int = 10_000
    """Draws per class of which the least likely are kept; 10,000 in the paper."""
    keep: int = 1
    """How many of them are kept; each outlier is one of these, evenly. 1 in the paper's classification code."""
    draw: Literal["exact", "candidates"] = "exact"
    """exact: norm and direction from their distributions; candidates: make every candidate and look for the largest norm."""
    ridge: float = 1e-4
    """Added to the diagonal of the covariance, in units of its mean: features that never vary stay possible, and D > N is no
    matter. The paper adds 1e-4 as it is, which is nothing to features of one network and much to those of another."""
    batch_size: int = 256
    """Outliers made at a time."""

    requires: ClassVar[frozenset[str]] = frozenset({"label", "classifier"})
    makes_features: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "candidates", "keep", "ridge", "batch_size")
        if self.keep > self.candidates:
            raise OutskirtsError(f"keep is {self.keep}, of {self.candidates} candidates; give fewer")

    def fit(self, images: Images, classifier, *, val: Images | None = None) -> "Synthesizer":
        """Collects the features of `images`; raises OutskirtsError where the network does not end in a linear layer."""
        self.head_ = head_of(classifier, "vos")
        outputs, K = collect(classifier, images), len(images.classes)
        self.means_, self.factor_ = gaussians(outputs.features, require_labels(images).labels, K, self.ridge)
        self.state = {"dimensions": len(self.factor_), "rows": len(images)}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` (1000) requests, as many for each class."""
        return [Request(i, seed_of(seed, i), i % len(self.means_)) for i in range(1000 if n is None else n)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        make = exact if self.draw == "exact" else least_likely
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        z = torch.stack([make(len(self.factor_), self.candidates, self.keep, g) for g in generators])
        features = self.means_[torch.tensor([r.label for r in requests])] + z @ self.factor_.T  # VOS eq. 5
        yield from feature_outliers(requests, features, self.head_, [{"norm": r} for r in z.norm(dim=1).tolist()])


def gaussians(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], K: int, ridge: float
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "D D"]]:
    """(class means, lower Cholesky factor of the covariance that the classes share), in float64. VOS eq. 3"""
    x = features.double()
    counts = torch.bincount(labels, minlength=K)
    if (counts == 0).any():
        raise OutskirtsError(f"class {int(counts.argmin())} has no training image, so no Gaussian; give it some")
    means = torch.zeros(K, x.shape[1], dtype=x.dtype).index_add_(0, labels, x) / counts[:, None]
    centred = x - means[labels]
    covariance = centred.T @ centred / len(x)
    scale = covariance.diagonal().mean()
    if not (scale > 0 and scale.isfinite()):
        raise OutskirtsError(
            f"features vary by {scale.item():g} within classes; give more images, or another classifier"
        )
    return means, torch.linalg.cholesky(covariance + ridge * scale * torch.eye(len(covariance), dtype=x.dtype))


def exact(D: int, candidates: int, keep: int, generator: torch.Generator) -> Float[Tensor, " D"]:
    """A z whose |z| is one of the `keep` largest of `candidates` standard normal vectors, evenly, in any direction."""
    z = torch.randn(D, generator=generator, dtype=torch.float64)
    u = torch.rand((), generator=generator, dtype=torch.float64).clamp(1e-16).item()
    j = 1 + int(torch.randint(keep, (), generator=generator))
    # the share of norms beyond the j-th largest of n is Beta(j, n - j + 1); |z|^2 is chi-squared of D degrees
    beyond = betaincinv(j, candidates - j + 1, u)
    return z / z.norm() * math.sqrt(2 * gammainccinv(D / 2, beyond))


def least_likely(D: int, candidates: int, keep: int, generator: torch.Generator) -> Float[Tensor, " D"]:
    """The same, looked for among `candidates` draws."""
    z = torch.randn(candidates, D, generator=generator)
    rows = largest(z, keep)
    return z[rows[torch.randint(keep, (), generator=generator)]].double()


def largest(z: Float[Tensor, "n D"], keep: int) -> Int[Tensor, " k"]:
    """Rows of the `keep` least likely of mu + L z, whatever mu and L are: log p = const - |z|^2 / 2."""
    return z.square().sum(1).topk(keep).indices
