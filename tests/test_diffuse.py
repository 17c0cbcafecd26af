"""The sampler against diffusers and against the closed-form mixture."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from outskirts.diffuse import Noise, ddim_levels, ddim_step, levels_from, prediction, sample
from outskirts.errors import OutskirtsError
from outskirts.toy import Mixture
from outskirts.types import Prediction

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_step_is_diffusers(kind, eta):
    scheduler = DDIMScheduler(**CONFIG, prediction_type=kind, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    levels = ddim_levels(scheduler.config, 10)
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x, output, z = (torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    for level in levels:
        ours = ddim_step(prediction(output, x, level, kind), level, eta=eta, z=z)
        theirs = scheduler.step(output, level.t, x, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)  # their schedule is float32 before the cast


def test_stable_diffusion_grid_has_every_step_once():
    levels = ddim_levels({**CONFIG, "_class_name": "PNDMScheduler", "skip_prk_steps": True}, 100)
    assert len({level.t for level in levels}) == 100
    assert levels[0].t == 991
    assert levels[-1].t == 1
    assert levels[-1].abar_prev == pytest.approx(0.99915)


@given(st.floats(0.01, 0.99), st.sampled_from(["epsilon", "v_prediction", "sample"]))
def test_prediction_types_are_one_relation(abar, kind):
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps, whatever the network speaks."""
    level = levels_from([500], [abar])[0]
    g = torch.Generator().manual_seed(1)
    x, output = (torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(2))
    p = prediction(output, x, level, kind)
    torch.testing.assert_close(math.sqrt(abar) * p.x0 + math.sqrt(1 - abar) * p.eps, x)


def mixture(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return Mixture(torch.randn(3, 2, 4, 4, generator=g, dtype=dtype), std=0.3)


def cosine_levels(steps):
    ts = [round(999 * (1 - i / steps)) for i in range(steps)]
    return levels_from(ts, [math.cos(math.pi / 2 * (t + 1) / 1001) ** 2 for t in ts])


def test_sampler_draws_the_mixture():
    """Deterministic sampling with the exact denoiser of one component ends in N(m, s^2)."""
    toy = mixture()
    toy = Mixture(toy.means[:1], std=0.3)
    x_T = torch.randn(400, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = sample(toy.predictor, x_T, cosine_levels(200))
    assert (x.mean(0) - toy.means[0]).abs().max() < 0.08
    assert x.std(0).mean() == pytest.approx(0.3, rel=0.05)


def test_ddim_is_first_order():
    """From one x_t in the middle, the error against a fine grid falls by half with each halving of the step."""
    toy = mixture()
    x_t = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def end(steps):
        angles = [0.45 * math.pi * (1 - i / steps) for i in range(steps)]
        return sample(toy.predictor, x_t, levels_from(range(steps, 0, -1), [math.cos(a) ** 2 for a in angles]))

    fine = end(1600)
    errors = [(end(n) - fine).square().mean().sqrt().item() for n in (25, 50, 100)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.8 < s < 1.3 for s in slopes), slopes


def test_noise_is_the_samples_own():
    a, b = Noise([1, 2, 3], (3, 2, 2)), Noise([3, 1], (3, 2, 2))
    first_a, first_b, second_a, second_b = a(), b(), a(), b()
    assert torch.equal(first_a[[2, 0]], first_b)
    assert torch.equal(second_a[[2, 0]], second_b)
    assert not torch.equal(first_a, second_a)


def test_recurrences_return_to_the_same_level():
    """With a predictor that always knows x0, re-noised steps end there too."""
    x0 = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)

    def oracle(x, level):
        return Prediction(x0, (x - math.sqrt(level.abar) * x0) / math.sqrt(1 - level.abar))

    noise = Noise(range(4), (3, 2, 2), dtype=torch.float64)
    seen = []
    x = sample(
        oracle,
        noise(),
        cosine_levels(5),
        noise=noise,
        recurrences=3,
        eta=0.5,
        callback=lambda x, level, p: seen.append(level.t),
    )
    torch.testing.assert_close(x, x0)
    assert [seen.count(t) for t in dict.fromkeys(seen)] == [3] * 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(lambda x, level: None, torch.zeros(1, 1), cosine_levels(3), eta=1.0), "need noise"),
        (lambda: sample(lambda x, level: None, torch.zeros(1, 1), cosine_levels(3)[::2]), "do not join"),
        (lambda: levels_from([3, 3, 1], [0.1, 0.1, 0.5]), "decrease strictly"),
        (lambda: ddim_levels(CONFIG, 5000), "takes 1 to 1000"),
        (lambda: prediction(torch.zeros(1), torch.zeros(1), cosine_levels(2)[0], "x0"), "accepted"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
