"""Outlier losses: logits [B, K] and which rows are ID -> one value per sample, float32 also under autocast.

`population_mean` turns the values into the term of the training loss: each population averaged over itself, so that the
weight of the outliers does not depend on how many are in a batch. GOOD is arXiv 2510.17131.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean


class EnergyLogistic(nn.Module):
    """GOOD eq. 8: -log p(own population), where a small MLP phi turns +logsumexp(logits) = -E into the log-odds of ID.

    The paper's text calls phi the likelihood of OOD; its formula and its code make it that of ID, as here. phi is
    Linear(1, 512), ReLU, Linear(512, 2) as in the code, class 1 = ID, and learns with the classifier.

    Nothing keeps a learned phi increasing, so energy can end up inverted (`train` checks it). It *starts* increasing:
    every unit's output weight has the sign of its input weight, and the sizes are scaled so that the log-odds are 0 at
    logsumexp = `centre` and rise by about 1 per `scale`. torch's own initialisation has either sign with equal chance.
    """

    def __init__(self, *, centre: float = 0.0, scale: float = 1.0, hidden: int = 512):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        first, last = self.phi[0], self.phi[2]
        with torch.no_grad():
            slope = first.weight[:, 0].clone()
            kink = 3 * (2 * torch.rand(hidden) - 1)  # in units of scale; a kinks' spread over where energies are
            size = last.weight[1].abs() * slope.sign()
            size /= (size * slope).sum()  # half of the units are active anywhere: rises by 1 per unit of scale
            first.weight[:, 0] = slope / scale
            first.bias[:] = -slope * (centre / scale + kink)
            last.weight[:] = torch.stack([-size, size])
            at_centre = (size * (-slope * kink).relu()).sum()
            last.bias[:] = torch.stack([at_centre, -at_centre])

    def log_odds(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """phi(-E) as one number: log p(ID) - log p(OOD)."""
        ood, id_ = self._phi(logits).unbind(1)
        return id_ - ood

    def forward(self, logits: Float[Tensor, "B K"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        return F.cross_entropy(self._phi(logits), is_id.long(), reduction="none")  # GOOD eq. 8

    def _phi(self, logits: Tensor) -> Float[Tensor, "B 2"]:
        with torch.autocast(logits.device.type, enabled=False):  # bfloat16 resolves an energy of 20 to 0.1
            return self.phi(logits.float().logsumexp(1, keepdim=True))


class OEUniform(nn.Module):
    """Outlier exposure (Hendrycks et al. 2019, arXiv 1812.04606): cross-entropy from uniform to softmax; 0 for ID rows."""

    def __init__(self, *, centre: float = 0.0, scale: float = 1.0):
        super().__init__()  # needs neither; all losses are made alike

    def forward(self, logits: Float[Tensor, "B K"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        return -logits.float().log_softmax(1).mean(1) * ~is_id


LOSSES = {"energy_logistic": EnergyLogistic, "oe_uniform": OEUniform}


def outlier_loss(name: str, *, centre: float = 0.0, scale: float = 1.0) -> nn.Module:
    """The loss called `name`, for logits whose logsumexp lies around `centre`, spread by `scale`."""
    if name not in LOSSES:
        raise OutskirtsError(f"no outlier loss {name!r}{did_you_mean(name, LOSSES)}; known: {', '.join(LOSSES)}")
    return LOSSES[name](centre=centre, scale=scale)


def population_mean(values: Float[Tensor, " B"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the ID rows plus mean over the outliers: the two expectations of GOOD eq. 8.

    GOOD's released code takes one mean over the joint batch: half of this where both are of one size.
    """
    return values[is_id].mean() + values[~is_id].mean()
