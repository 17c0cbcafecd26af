"""Maximum softmax probability, the baseline of Hendrycks and Gimpel (arXiv 1610.02136)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from outskirts.scores._shared import Unfitted, fp32
from outskirts.types import Outputs


@dataclass
class Score(Unfitted):
    """1 - max_k softmax_k, from 0 (certain) to 1 - 1/K; the paper has the other sign. Nothing is fitted."""

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        p = fp32(outputs.logits).softmax(-1)
        # the probability of all other classes: 1 - max p would round to 0, and tie, wherever the classifier is certain
        return p.scatter(-1, p.argmax(-1, keepdim=True), 0.0).sum(-1)
