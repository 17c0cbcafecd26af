"""Maximum logit, Hendrycks et al. (arXiv 1911.11132)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from outskirts.scores._shared import fp32
from outskirts.types import Outputs


@dataclass
class Score:
    """-max_k logit_k, any real number; the paper has the other sign. Nothing is fitted."""

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
        return self

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return -fp32(outputs.logits).amax(-1)
