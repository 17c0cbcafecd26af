import math

import numpy as np
import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.losses import EnergyLogistic, OEUniform, outlier_loss, population_mean

LOGITS = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)) * 3
IS_ID = torch.arange(9) < 4


def naive_energy_logistic(loss, logits, is_id):
    """GOOD eq. 8 sample by sample in float64: -log sigmoid(phi) for ID, -log sigmoid(-phi) for outliers."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in loss.phi.parameters())
    values = []
    for row, one_is_id in zip(logits.double().numpy(), is_id.tolist(), strict=True):
        minus_energy = math.log(sum(math.exp(f) for f in row))
        hidden = np.maximum(w1[:, 0] * minus_energy + b1, 0)
        ood, id_ = w2 @ hidden + b2
        phi = id_ - ood
        values.append(-math.log(1 / (1 + math.exp(-phi if one_is_id else phi))))
    return torch.tensor(values, dtype=torch.float32)


def test_energy_logistic_is_equation_8():
    loss = EnergyLogistic(centre=2.0, scale=1.5)
    torch.testing.assert_close(loss(LOGITS, IS_ID), naive_energy_logistic(loss, LOGITS, IS_ID), rtol=1e-4, atol=1e-5)


def test_phi_has_the_papers_shape():
    shapes = [tuple(p.shape) for p in EnergyLogistic().phi.parameters()]
    assert shapes == [(512, 1), (512,), (2, 512), (2,)]


@pytest.mark.parametrize(("centre", "scale"), [(0.0, 1.0), (8.0, 2.0), (-3.0, 0.1), (40.0, 12.0)])
def test_phi_starts_increasing_with_unit_slope(centre, scale):
    loss = EnergyLogistic(centre=centre, scale=scale)
    places = torch.linspace(-5, 5, 41) * scale + centre  # one class: logsumexp is the logit
    odds = loss.log_odds(places[:, None]).detach()
    assert (odds.diff() > 0).all()
    assert abs(loss.log_odds(torch.tensor([[centre]])).item()) < 1e-3
    assert 1.4 < odds[24] - odds[16] < 2.6  # from -1 to +1 scale: about 2


def test_oe_uniform_is_the_cross_entropy_to_uniform():
    values = OEUniform()(LOGITS, IS_ID)
    uniform = torch.full((5, 5), 1 / 5)
    torch.testing.assert_close(values[4:], torch.nn.functional.cross_entropy(LOGITS[4:], uniform, reduction="none"))
    assert (values[:4] == 0).all()
    assert torch.isclose(OEUniform()(torch.zeros(1, 5), torch.tensor([False])), torch.tensor(math.log(5.0)))


def test_each_population_is_averaged_over_itself():
    values = torch.tensor([1.0, 3.0, 10.0])
    is_id = torch.tensor([True, True, False])
    assert population_mean(values, is_id) == 2 + 10
    more = torch.cat([values, torch.tensor([10.0] * 7)])
    assert population_mean(more, torch.tensor([True] * 2 + [False] * 8)) == 2 + 10  # more outliers weigh no more


@pytest.mark.parametrize("name", ["energy_logistic", "oe_uniform"])
def test_bfloat16_autocast_keeps_float32_losses_and_gradients(name):
    loss = outlier_loss(name, centre=2.0, scale=1.0)
    logits = LOGITS.clone().requires_grad_(True)
    exact = loss(logits, IS_ID)
    with torch.autocast("cpu", torch.bfloat16):
        values = loss(logits, IS_ID)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact)
    population_mean(values, IS_ID).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[4:].abs().sum() > 0


def test_pushes_energies_apart():
    logits = LOGITS.clone().requires_grad_(True)
    population_mean(EnergyLogistic(centre=3.0, scale=1.0)(logits, IS_ID), IS_ID).backward()
    push = logits.grad.sum(1)  # descending lowers ID energy (raises logits) and raises that of outliers
    assert (push[:4] < 0).all()
    assert (push[4:] > 0).all()


def test_unknown_loss_is_one_line():
    with pytest.raises(OutskirtsError, match="did you mean 'energy_logistic'"):
        outlier_loss("energy_logistics")
