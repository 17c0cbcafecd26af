"""Entropy of the softmax."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from outskirts.scores._shared import fp32
from outskirts.types import Outputs


@dataclass
class Score:
    """-sum_k p_k log p_k, in nats, from 0 (certain) to log K. Nothing is fitted."""

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
        log_p = fp32(outputs.logits).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
