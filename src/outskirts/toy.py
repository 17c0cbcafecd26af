"""A mixture of Gaussians whose denoiser, score and classifier are exact: the sampler and the guides are tested on it.

For q(x0) = sum_k pi_k N(m_k, s^2 I), x_t = sqrt(abar) x0 + sqrt(1-abar) eps has q(x_t) = sum_k pi_k N(sqrt(abar) m_k, v I),
v = abar s^2 + 1 - abar, so E[x0 | x_t] is a posterior mean in closed form.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.types import Level, Outputs, Prediction


@dataclass(frozen=True)
class Mixture:
    """K equally likely Gaussians N(means[k], std^2 I) over samples of any shape."""

    means: Float[Tensor, "K *S"]
    std: float = 0.1

    def draw(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n *S"], Int[Tensor, "n"]]:
        labels = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn((n, *self.means.shape[1:]), generator=generator, dtype=self.means.dtype)
        return self.means[labels] + self.std * noise, labels

    def logits(self, x: Float[Tensor, "B *S"], abar: float = 1.0) -> Float[Tensor, "B K"]:
        """log q(k | x_t) + log q(x_t), up to one constant: logsumexp of these is the log density."""
        v = abar * self.std**2 + 1 - abar
        flat, means = x.flatten(1), math.sqrt(abar) * self.means.flatten(1)
        return -(flat[:, None] - means).square().sum(-1) / (2 * v) - 0.5 * means.shape[1] * math.log(v)

    def predictor(self, x: Float[Tensor, "B *S"], level: Level, cond: Int[Tensor, "B"] | None = None) -> Prediction:
        """The exact E[x0 | x_t] and its eps; with class labels `cond`, those of one component."""
        abar, a = level.abar, math.sqrt(level.abar)
        v = abar * self.std**2 + 1 - abar
        if cond is None:
            m = torch.einsum("bk,k...->b...", self.logits(x, abar).softmax(-1), self.means)
        else:
            m = self.means[cond]
        x0 = m + (a * self.std**2 / v) * (x - a * m)
        return Prediction(x0, (x - a * x0) / math.sqrt(1 - abar))

    def __call__(self, x: Float[Tensor, "B *S"]) -> Outputs:
        """The Bayes classifier, its energy the exact negative log density; features are the pixels themselves."""
        return Outputs(self.logits(x), x.flatten(1))
