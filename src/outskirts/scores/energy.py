"""Free energy, the image-level score and guidance target of GOOD (arXiv 2510.17131), from Liu et al. (arXiv 2010.03759)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from outskirts.scores._shared import Unfitted, fp32
from outskirts.types import Outputs


@dataclass
class Score(Unfitted):
    """E = -logsumexp(logits), in nats, any real number; the published baseline has the other sign. Nothing is fitted."""

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return -fp32(outputs.logits).logsumexp(-1)  # GOOD eq. 3: log f = E, no temperature, no normalisation
