import math

import numpy as np
import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.losses import EnergyLogistic, EnergyMargin, MixOE, OEUniform, margins, outlier_loss, population_mean
from outskirts.recipe import TrainSettings

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


def placed(name, **fields):
    """The loss around the energies of LOGITS."""
    energy = -LOGITS.logsumexp(1)
    return outlier_loss(TrainSettings(loss=name, **fields), energy[IS_ID] - 20, energy[~IS_ID])


SOFT = (torch.arange(9) % 5, torch.linspace(0, 1, 9))


@pytest.mark.parametrize("name", ["energy_logistic", "oe_uniform", "energy_margin", "mixoe"])
def test_bfloat16_autocast_keeps_float32_losses_and_gradients(name):
    loss, soft = placed(name), SOFT if name == "mixoe" else ()
    logits = LOGITS.clone().requires_grad_(True)
    exact = loss(logits, IS_ID, *soft)
    with torch.autocast("cpu", torch.bfloat16):
        values = loss(logits, IS_ID, *soft)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact)
    population_mean(values, IS_ID).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[4:].abs().sum() > 0


def test_energy_margin_is_that_of_pytorch_ood():
    loss = pytest.importorskip("pytorch_ood.loss")
    labels = torch.where(IS_ID, torch.arange(9) % 5, -1)
    logits = LOGITS * 3
    theirs = loss.EnergyRegularizedLoss(alpha=0.1, margin_in=-6.0, margin_out=-3.0)(logits, labels)
    hinges = population_mean(EnergyMargin(-6.0, -3.0)(logits, IS_ID), IS_ID)
    assert hinges > 0
    ours = torch.nn.functional.cross_entropy(logits[IS_ID], labels[IS_ID]) + 0.1 * hinges
    torch.testing.assert_close(ours, theirs)


def test_energies_beyond_their_margin_cost_nothing():
    logits = torch.tensor([[9.0], [7.0], [1.0], [3.0]])  # one class: the energy is minus the logit
    values = EnergyMargin(-8.0, -2.0)(logits, torch.tensor([True, True, False, False]))
    assert values.tolist() == [0, 1, 0, 1]


def test_margins_are_the_plain_classifier_s_mean_energies_where_none_are_given():
    assert margins(TrainSettings(loss="energy_margin"), -20.0, -5.0) == (-20, -5)
    assert margins(TrainSettings(loss="energy_margin", m_in=-23.0), -20.0, -5.0) == (-23, -5)
    assert margins(TrainSettings(loss="energy_margin", m_in=-23.0, m_out=-7.0), 0.0, -5.0) == (-23, -7)
    with pytest.raises(OutskirtsError, match="m_in must be the lower; give both"):
        margins(TrainSettings(loss="energy_margin", m_in=-3.0), -20.0, -5.0)


def test_outliers_that_start_with_less_energy_do_not_stop_a_comparison_but_are_told(caplog):
    assert margins(TrainSettings(loss="energy_margin"), -5.0, -20.0) == (-20, -5)
    assert "outliers start with less energy (-20) than ID images (-5)" in caplog.text


def test_mixoe_is_the_cross_entropy_to_soft_labels():
    labels, share = SOFT
    soft = share[:, None] * torch.nn.functional.one_hot(labels, 5) + (1 - share[:, None]) / 5
    values = MixOE()(LOGITS, IS_ID, labels, share)
    expected = torch.nn.functional.cross_entropy(LOGITS, soft, reduction="none")
    torch.testing.assert_close(values[4:], expected[4:])
    assert (values[:4] == 0).all()
    torch.testing.assert_close(MixOE()(LOGITS, IS_ID, labels, torch.zeros(9)), OEUniform()(LOGITS, IS_ID))


def test_pushes_energies_apart():
    logits = LOGITS.clone().requires_grad_(True)
    population_mean(EnergyLogistic(centre=3.0, scale=1.0)(logits, IS_ID), IS_ID).backward()
    push = logits.grad.sum(1)  # descending lowers ID energy (raises logits) and raises that of outliers
    assert (push[:4] < 0).all()
    assert (push[4:] > 0).all()


def test_the_loss_is_placed_by_the_energies():
    loss = placed("energy_logistic")
    middle = -torch.stack([(-LOGITS.logsumexp(1))[IS_ID].mean() - 20, (-LOGITS.logsumexp(1))[~IS_ID].mean()]).mean()
    assert abs(loss.log_odds(middle[None, None]).item()) < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"m_in": -5.0}, "m_in is -5.0, which only loss=energy_margin reads, and loss is energy_logistic"),
        ({"loss": "oe_uniform", "mix": "mixup"}, "only loss=mixoe reads"),
        ({"loss": "energy_margin", "mix_beta": 1.0}, "only loss=mixoe reads"),
        ({"loss": "energy_margin", "m_in": -5.0, "m_out": -5.0}, "m_in must be the lower"),
        ({"loss": "mixoe", "mix_beta": 0.0}, "mix_beta"),
    ],
)
def test_wrong_settings_are_one_line(fields, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        TrainSettings(**fields)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("monotone", [False, True])
def test_phi_turns_round_where_outliers_have_less_energy_unless_it_is_held(monotone):
    torch.manual_seed(0)
    loss = EnergyLogistic(centre=9.0, monotone=monotone)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9)
    logits = torch.cat([torch.full((40, 1), 8.0), torch.full((40, 1), 10.0)])  # -E of ID images, then of outliers
    for _ in range(200):
        optimizer.zero_grad()
        population_mean(loss(logits, torch.arange(80) < 40), torch.arange(80) < 40).backward()
        optimizer.step()
    loss(logits, torch.arange(80) < 40)
    odds = loss.log_odds(torch.linspace(0, 20, 50)[:, None]).detach()
    assert (odds.diff() >= -1e-6).all() == monotone
    assert (odds[20] > odds[25]) != monotone  # where the images are
