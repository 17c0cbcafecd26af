"""Outlier losses: logits [B, K] and which rows are ID -> one value per sample, float32 also under autocast.

`population_mean` turns the values into the term of the training loss: each population averaged over itself, so that the
weight of the outliers does not depend on how many are in a batch. GOOD is arXiv 2510.17131.
"""

import logging

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.recipe import TrainSettings

log = logging.getLogger("outskirts")


class EnergyLogistic(nn.Module):
    """GOOD eq. 8: -log p(own population), where a small MLP phi turns +logsumexp(logits) = -E into the log-odds of ID.

    The paper's text calls phi the likelihood of OOD; its formula and its code make it that of ID, as here. phi is
    Linear(1, 512), ReLU, Linear(512, 2) as in the code, class 1 = ID, and learns with the classifier.

    Nothing keeps a learned phi increasing, so energy can end up inverted (`train` checks it). It *starts* increasing:
    every unit's output weight has the sign of its input weight, and the sizes are scaled so that the log-odds are 0 at
    logsumexp = `centre` and rise by about 1 per `scale`. torch's own initialisation has either sign with equal chance.

    `monotone` keeps it increasing: after each step, an output weight whose sign is not that of its input weight becomes 0.
    """

    def __init__(self, *, centre: float = 0.0, scale: float = 1.0, hidden: int = 512, monotone: bool = False):
        super().__init__()
        self.monotone = monotone
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

    @torch.no_grad()
    def _project(self) -> None:
        rising = self.phi[0].weight[:, 0].sign() * torch.tensor([[-1.0], [1.0]], device=self.phi[0].weight.device)
        last = self.phi[2].weight
        last.copy_((last * rising).relu() * rising)

    def _phi(self, logits: Tensor) -> Float[Tensor, "B 2"]:
        if self.monotone:
            self._project()
        with torch.autocast(logits.device.type, enabled=False):  # bfloat16 resolves an energy of 20 to 0.1
            return self.phi(logits.float().logsumexp(1, keepdim=True))


class OEUniform(nn.Module):
    """Outlier exposure (Hendrycks et al. 2019, arXiv 1812.04606): cross-entropy from uniform to softmax; 0 for ID rows."""

    def forward(self, logits: Float[Tensor, "B K"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        return -logits.float().log_softmax(1).mean(1) * ~is_id


class EnergyMargin(nn.Module):
    """Liu et al. 2020 (arXiv 2010.03759) eq. 8: squared hinges, E below `m_in` for ID rows and above `m_out` for outliers."""

    def __init__(self, m_in: float, m_out: float):
        super().__init__()
        self.m_in, self.m_out = m_in, m_out

    def forward(self, logits: Float[Tensor, "B K"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        energy = -logits.float().logsumexp(1)
        return torch.where(is_id, energy - self.m_in, self.m_out - energy).relu().square()


class MixOE(nn.Module):
    """Zhang et al. 2021 (arXiv 2106.03917) eq. 4: cross-entropy from soft labels to softmax; 0 for ID rows.

    An outlier row is an ID image mixed with an outlier, `share` of it the former: its label is that share of the ID image's
    class and the rest uniform.
    """

    def forward(
        self,
        logits: Float[Tensor, "B K"],
        is_id: Bool[Tensor, " B"],
        labels: Int64[Tensor, " B"],
        share: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        log_p = logits.float().log_softmax(1)
        of_class = log_p.gather(1, labels[:, None])[:, 0]
        return -torch.lerp(log_p.mean(1), of_class, share.float()) * ~is_id


def outlier_loss(settings: TrainSettings, id_: Float[Tensor, " N"], ood: Float[Tensor, " M"]) -> nn.Module:
    """The loss that `settings` name, placed by the plain classifier's energies of ID images and of outliers."""
    if settings.loss == "oe_uniform":
        return OEUniform()
    if settings.loss == "mixoe":
        return MixOE()
    if settings.loss == "energy_margin":
        return EnergyMargin(*margins(settings, id_.mean().item(), ood.mean().item()))
    centre = -(id_.mean() + ood.mean()).item() / 2
    scale = max(torch.cat([id_, ood]).std().item(), 1e-3)
    return EnergyLogistic(centre=centre, scale=scale, monotone=settings.phi == "monotone")


def margins(settings: TrainSettings, mean_id: float, mean_ood: float) -> tuple[float, float]:
    """(m_in, m_out): as `settings` give them, otherwise the mean energies, as the authors choose theirs (-23 to -27 and -5 to -7
    belong to their networks).

    Where outliers start with the lower energy of the two, and neither margin is given, the lower mean is still m_in: training has
    to turn them round, and the log says so. Raises OutskirtsError where one margin is given and the other does not fit to it.
    """
    if settings.m_in is None and settings.m_out is None and mean_ood < mean_id:
        log.warning(
            "outliers start with less energy (%.3g) than ID images (%.3g): they are the margins, the lower one for ID images",
            mean_ood,
            mean_id,
        )
        return mean_ood, mean_id
    m_in, m_out = (mean if m is None else m for m, mean in ((settings.m_in, mean_id), (settings.m_out, mean_ood)))
    if not m_in < m_out:
        raise OutskirtsError(
            f"no energy margins from mean energies {mean_id:.3g} of ID images and {mean_ood:.3g} of outliers: m_in would be {m_in:.3g} and "
            f"m_out {m_out:.3g}, and m_in must be the lower; give both train.m_in and train.m_out, or outliers of higher energy"
        )
    return m_in, m_out


def population_mean(values: Float[Tensor, " B"], is_id: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the ID rows plus mean over the outliers: the two expectations of GOOD eq. 8.

    GOOD's released code takes one mean over the joint batch: half of this where both are of one size.
    """
    return values[is_id].mean() + values[~is_id].mean()
