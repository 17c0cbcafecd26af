"""From a score to a decision: the conformal threshold, which needs nothing but scores of held-out ID images."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from outskirts.errors import OutskirtsError


@dataclass(frozen=True)
class Threshold:
    """Scores above `value` are called OOD. Of new ID images, a share of at least `keep` stays at or below it, on average.

    The guarantee is split-conformal (Vovk et al. 2005) and exact for any classifier and score, however small the sample,
    as long as the held-out images are drawn like the new ones and were used neither to train nor to fit the score.
    """

    scores: Float64[Tensor, " N"]
    """Scores of held-out ID images, ascending."""
    keep: float = 0.95

    @staticmethod
    def from_id(scores: Float[Tensor, " N"], keep: float = 0.95) -> "Threshold":
        """The threshold that keeps the share `keep` (0 to 1) of ID images.

        Raises OutskirtsError where N is too small for it: 19 scores are needed for 95 %, 99 for 99 %.
        """
        if not 0 < keep < 1:
            raise OutskirtsError(f"keep={keep}; the share of ID images to keep is above 0 and below 1, e.g. 0.95")
        bad = int((~scores.isfinite()).sum())
        if bad:
            raise OutskirtsError(
                f"{bad} of {len(scores)} held-out ID scores are NaN or infinite; a threshold needs finite ones"
            )
        n, needed = len(scores), math.ceil(1 / (1 - _exact(keep)) - 1)
        if n < needed:
            raise OutskirtsError(
                f"{n} held-out ID scores cannot keep {100 * keep:g} % of ID images; give at least {needed}, or keep less"
            )
        return Threshold(scores.detach().double().cpu().sort().values, float(keep))

    @property
    def value(self) -> float:
        rank = math.ceil((len(self.scores) + 1) * _exact(self.keep))  # the finite-sample rank, 1 .. N
        return self.scores[rank - 1].item()

    def is_ood(self, scores: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """True above the threshold: the same as p_value <= 1 - keep."""
        return scores.detach().double().cpu() > self.value

    def p_value(self, scores: Float[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Share of ID images that score at least this high, 1 / (N + 1) to 1: small means OOD."""
        n = len(self.scores)
        at_least = n - torch.searchsorted(self.scores, scores.detach().double().cpu())
        return (1 + at_least).double() / (n + 1)


def _exact(share: float) -> Fraction:
    return Fraction(str(float(share)))  # 0.95 as it was written: in binary, (n + 1) * 0.95 can land on the wrong rank
