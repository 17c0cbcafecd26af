"""The loop over the initial noise, with an identity for a sampler and a linear classifier: every step has a closed form."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outskirts.initial_noise import LOSSES, aim, energy_target, hinge, learn_noise, msp, release
from outskirts.types import Outputs

WEIGHT = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
TARGET = -2.0


def classify(images):
    """Three logits of the values of pictures [B, 3, 2, 2]."""
    return Outputs(images.flatten(1) @ WEIGHT.T, images.flatten(1))


def learn(eps, *, loss=None, **options):
    loss = loss or partial(energy_target, target=TARGET)
    return learn_noise(lambda e, rows: 0.5 + 0.1 * e, lambda u: u, classify, loss, eps, **options)


def noises(n, seed=0):
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def energy(images):
    return -classify(images).logits.logsumexp(1)


def test_the_noise_moves_by_step_times_the_gradient_at_the_decoder_s_input():
    eps = noises(3)
    u = (0.5 + 0.1 * eps).requires_grad_()
    gradient = torch.autograd.grad((energy(u.clamp(0, 1)) - TARGET).square().sum(), u)[0]
    learned = learn(eps, passes=2, step=3.0)
    torch.testing.assert_close(learned.eps, eps - 3.0 * gradient)  # and no factor 0.1 of the way from eps to u
    torch.testing.assert_close(learned.images, (0.5 + 0.1 * learned.eps).clamp(0, 1))
    assert torch.equal(eps, noises(3))


def test_one_pass_leaves_the_noise_and_asks_for_no_gradient():
    eps = noises(3)

    def blind(images):
        assert not torch.is_grad_enabled()
        return classify(images)

    learned = learn_noise(lambda e, rows: 0.5 + 0.1 * e, lambda u: u, blind, partial(hinge, target=5.0), eps, passes=1)
    assert torch.equal(learned.eps, eps)
    assert [len(e) for e in learned.energies] == [1, 1, 1]


@pytest.mark.parametrize("at_a_time", [1, 2, 8])
def test_a_batch_is_its_samples_one_by_one(at_a_time):
    eps = noises(5)
    together = learn(eps, passes=4, step=0.5, at_a_time=at_a_time, tolerance=0.05)
    for i in range(5):
        alone = learn(eps[i : i + 1], passes=4, step=0.5, tolerance=0.05)
        torch.testing.assert_close(alone.images[0], together.images[i])
        assert alone.energies[0] == pytest.approx(together.energies[i])


def test_the_energy_goes_to_the_target_from_both_sides():
    eps = torch.stack([noises(1)[0] - 3, noises(1)[0] + 3])
    learned = learn(eps, passes=30, step=1.0)
    for trace in map(torch.tensor, learned.energies):
        far = (trace - TARGET).abs()
        assert far[-1] < 0.05 < 0.2 < far[0]
        assert (far.diff() < 1e-6).all()
    assert learned.energies[0][0] > TARGET > learned.energies[1][0] or learned.energies[1][0] > TARGET


def test_a_sample_at_its_target_is_done_and_the_others_go_on():
    asked = []

    def generate(eps, rows):
        asked.append(rows.tolist())
        return 0.5 + 0.1 * eps

    eps = noises(4)
    tolerance = (
        float((energy((0.5 + 0.1 * eps).clamp(0, 1)) + 1.2).abs().sort().values[1]) + 1e-6
    )  # two of them are near
    loss = partial(energy_target, target=-1.2)
    learned = learn_noise(generate, lambda u: u, classify, loss, eps, passes=3, step=0.01, tolerance=tolerance)
    near = [abs(e[0] + 1.2) <= tolerance for e in learned.energies]
    assert sum(near) == 2
    assert asked[0] == [0, 1, 2, 3]
    assert asked[1] == [i for i in range(4) if not near[i]]
    assert all((len(e) == 1) == n for e, n in zip(learned.energies, near, strict=True))
    for i, n in enumerate(near):
        assert torch.equal(learned.eps[i], eps[i]) == n


def test_hinge_stops_at_the_boundary():
    learned = learn(noises(6), loss=partial(hinge, target=-2.9), passes=150, step=0.05)
    inside = [e for e in learned.energies if e[0] < -2.9]
    assert 0 < len(inside) < 6
    assert all(e[-1] == pytest.approx(-2.9, abs=0.05) if e in inside else e[-1] == e[0] for e in learned.energies)


def test_the_printed_loss_has_the_wrong_sign():
    """SynOOD eq. 7 as printed, relu(m_out - tau lse)^2: its descent raises lse, so it lowers E = -lse, into the distribution."""
    printed = lambda outputs: (20.0 - outputs.logits.logsumexp(1)).relu().square()  # noqa: E731
    for loss, moves_out in ((printed, False), (partial(hinge, target=5.0), True)):
        learned = learn(noises(4), loss=loss, passes=2, step=0.1)
        assert all((last > first) == moves_out for first, last in learned.energies)


def test_clamped_values_pass_no_gradient():
    eps = torch.zeros(1, 3, 2, 2)
    eps[0, 0, 0, 0] = 100.0
    learned = learn(eps, passes=2)
    assert learned.eps[0, 0, 0, 0] == 100.0
    assert (learned.eps.flatten()[1:] != 0).all()


def test_losses_are_what_they_say():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs, e = Outputs(logits, logits), -logits.exp().sum(1).log()
    torch.testing.assert_close(energy_target(outputs, -3.0), (e + 3) ** 2)
    torch.testing.assert_close(hinge(outputs, -1.0), torch.where(e < -1, (-1 - e) ** 2, 0))
    torch.testing.assert_close(release(outputs, -5.0), (-5 - (logits.mean(1) + e)) ** 2)
    uniform = torch.full_like(logits, 1 / 7)
    kl = torch.nn.functional.kl_div(logits.log_softmax(1), uniform, reduction="none").sum(1)
    torch.testing.assert_close(msp(outputs), kl)
    assert set(LOSSES) == {"energy_target", "hinge", "release", "msp"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=200))
def test_the_release_s_energy_is_at_most_minus_ln_k(logits):
    logits = torch.tensor([logits], dtype=torch.float64)
    assert logits.mean() - logits.logsumexp(1) <= -math.log(logits.shape[1]) + 1e-9


def test_targets_by_default(caplog):
    energies = torch.arange(101.0)
    assert aim("energy_target", energies, 0.95, 10) == aim("hinge", energies, 0.95, 10) == pytest.approx(95.0)
    assert aim("release", energies, 0.95, 148) == -5.0
    assert not caplog.text
    assert aim("release", energies, 0.95, 149) == -5.0  # ln 149 > 5
    assert "of 149 logits is at most -5.00" in caplog.text
