"""Maximum logit, Hendrycks et al. (arXiv 1911.11132)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from outskirts.scores._shared import Unfitted, fp32
from outskirts.types import Outputs


@dataclass
class Score(Unfitted):
    """-max_k logit_k, any real number; the paper has the other sign. Nothing is fitted."""

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return -fp32(outputs.logits).amax(-1)
