"""Entropy of the softmax."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from outskirts.scores._shared import Unfitted, fp32
from outskirts.types import Outputs


@dataclass
class Score(Unfitted):
    """-sum_k p_k log p_k, in nats, from 0 (certain) to log K. Nothing is fitted."""

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        log_p = fp32(outputs.logits).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
