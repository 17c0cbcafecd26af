"""Guides on the closed-form mixture: direction, exactness of the shared gradient, invariances."""

import math

import pytest
import torch

from outskirts.diffuse import Noise, sample
from outskirts.errors import OutskirtsError
from outskirts.guide import band, cfg, clip, guided_steps, schedule_weights, score_target, strengths, tfg
from outskirts.scores.energy import Score as Energy
from outskirts.scores.knn import Score as KNN
from outskirts.types import Outputs, Prediction
from test_diffuse import cosine_levels, mixture

S = (2, 4, 4)


def noise_of(seeds):
    return Noise(seeds, S, dtype=torch.float64)


def run(rho=0.0, mu=0.0, *, seeds=range(8), toward="ood", steps=20, eta=0.0, **kwargs):
    toy, levels, noise = mixture(), cosine_levels(steps), noise_of(seeds)
    x_T = noise()
    target = score_target(Energy(), toy, lambda x: x, toward=toward)
    x = sample(
        tfg(toy.predictor, target, levels, rho=rho, mu=mu, noise=noise, **kwargs), x_T, levels, noise=noise, eta=eta
    )
    return x, Energy()(toy(x))


@pytest.mark.parametrize(
    "kwargs", [{"rho": 0.02}, {"mu": 0.02}, {"rho": 0.02, "mu": 0.02}, {"mu": 0.02, "sigma": 0.1, "draws": 3}]
)
def test_guidance_raises_the_energy_and_towards_id_lowers_it(kwargs):
    _, plain = run()
    _, away = run(**kwargs)
    _, closer = run(**kwargs, toward="id")
    assert (away > plain + 0.1).all()
    assert (closer < plain).all()


def test_mean_energy_rises_with_strength():
    means = [run(rho=s, mu=s)[1].mean().item() for s in (0.0, 0.005, 0.01, 0.02, 0.04)]
    assert means == sorted(means)


def naive(toy, x, level, w, rho, mu, iterations):
    """The step as GOOD's algorithm 1 writes it, with two gradients of its own and no sharing."""
    x = x.detach().requires_grad_()
    p = toy.predictor(x, level)
    delta_t = rho * w * torch.autograd.grad(Energy()(toy(p.x0)).sum(), x)[0]
    n = p.x0.detach()
    for _ in range(iterations):
        n = n.detach().requires_grad_()
        n = n + mu * w * torch.autograd.grad(Energy()(toy(n)).sum(), n)[0]
    return delta_t / math.sqrt(level.alpha) + math.sqrt(level.abar_prev) * (n - p.x0).detach()


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_shared_gradient_is_exact(iterations):
    toy, levels = mixture(), cosine_levels(10)
    x = noise_of(range(5))()
    guided = tfg(
        toy.predictor, score_target(Energy(), toy, lambda x: x), levels, rho=0.3, mu=0.2, iterations=iterations
    )
    weights = schedule_weights(levels)
    for level in levels[1::4]:
        shift = naive(toy, x, level, weights[level.index], 0.3, 0.2, iterations)
        torch.testing.assert_close(guided(x, level).shift, shift)


def test_a_sample_does_not_depend_on_its_batch():
    rho, mu = torch.tensor([0.0, 0.01, 0.02, 0.05]), torch.tensor([0.03, 0.0, 0.02, 0.01])
    together, _ = run(rho, mu, seeds=[5, 6, 7, 8], sigma=torch.tensor([0.1, 0.0, 0.05, 0.1]), draws=2, eta=1.0)
    for i, seed in enumerate([5, 6, 7, 8]):
        alone, _ = run(
            rho[i : i + 1],
            mu[i : i + 1],
            seeds=[seed],
            sigma=torch.tensor([[0.1, 0.0, 0.05, 0.1][i]]),
            draws=2,
            eta=1.0,
        )
        torch.testing.assert_close(alone[0], together[i])


def test_one_infinite_gradient_stays_with_its_sample():
    toy, levels = mixture(), cosine_levels(5)
    x = noise_of(range(3))()

    def target(x0):
        return Energy()(toy(x0)) * torch.tensor([1.0, math.inf, 1.0])

    p = tfg(toy.predictor, target, levels, rho=0.1, mu=0.1)(x, levels[2])
    finite = p.shift.isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, False, True]


def test_reference_steps_keep_the_total_push():
    for steps, kwargs in ((100, {}), (20, {}), (50, {"every": 3}), (50, {"interval": (0.3, 0.8)})):
        w = strengths(cosine_levels(steps), reference_steps=100, schedule="constant", **kwargs)
        assert w.sum().item() == pytest.approx(100)


def test_unguided_steps_cost_nothing():
    toy, levels = mixture(), cosine_levels(10)
    calls = []

    def target(x0):
        calls.append(1)
        return Energy()(toy(x0))

    sample(tfg(toy.predictor, target, levels, rho=0.1, mu=0.1, every=2, interval=(0.4, 1.0)), noise_of([1])(), levels)
    assert len(calls) == 3
    assert guided_steps(levels, (0.4, 1.0), 2).nonzero().flatten().tolist() == [5, 7, 9]


def test_cfg_in_one_call_is_both_halves():
    toy, level = mixture(), cosine_levels(10)[5]
    x, y = noise_of([1, 2])(), torch.tensor([0, 2])
    calls = []

    def model(x, level, cond):
        calls.append(len(x))
        null = cond < 0
        c, u = toy.predictor(x, level, cond.clamp_min(0)), toy.predictor(x, level)
        pick = null[:, None, None, None]
        return Prediction(torch.where(pick, u.x0, c.x0), torch.where(pick, u.eps, c.eps))

    p = cfg(model, y, torch.full_like(y, -1), 3.0)(x, level)
    u, c = toy.predictor(x, level), toy.predictor(x, level, y)
    torch.testing.assert_close(p.eps, u.eps + 3.0 * (c.eps - u.eps))
    torch.testing.assert_close(math.sqrt(level.abar) * p.x0 + math.sqrt(1 - level.abar) * p.eps, x)
    assert calls == [4]


def test_clip_keeps_x0_and_eps_consistent():
    toy, level = mixture(), cosine_levels(10)[5]
    x = 3 * noise_of([1, 2])()
    p = clip(toy.predictor, 0.5)(x, level)
    assert p.x0.abs().max() == 0.5
    torch.testing.assert_close(math.sqrt(level.abar) * p.x0 + math.sqrt(1 - level.abar) * p.eps, x)


def test_band_pulls_from_both_sides():
    e = torch.tensor([-3.0, 1.0, 2.0], requires_grad=True)
    (g,) = torch.autograd.grad(band(e, 1.0, 0.5).sum(), e)
    assert g.sign().tolist() == [1, 0, -1]


def test_knn_guides_too():
    toy, levels = mixture(), cosine_levels(20)
    images, labels = toy.draw(200, torch.Generator().manual_seed(0))
    knn = KNN(k=10).fit(toy(images), labels)
    x_T = noise_of(range(6))()
    target = score_target(knn, toy, lambda x: x, scale=10.0)
    plain, guided = (
        knn(toy(sample(tfg(toy.predictor, target, levels, rho=s, mu=s), x_T, levels))) for s in (0.0, 0.02)
    )
    assert (guided > plain).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, ls: tfg(len, t, ls, sigma=0.1), "needs noise"),
        (lambda t, ls: tfg(len, t, ls, schedule="up"), "accepted: increase"),
        (lambda t, ls: tfg(len, t, ls, draws=0), "1 or more"),
        (lambda t, ls: tfg(len, t, ls, rho=0.1, schedule="constant"), "multiplies rho"),
        (lambda t, ls: tfg(len, t, ls, interval=(0.99, 1.0)), "guide none"),
        (
            lambda t, ls: tfg(mixture().predictor, t, ls, rho=torch.ones(3))(torch.zeros(2, *S), ls[3]),
            "3 strengths for 2",
        ),
        (lambda t, ls: cfg(len, torch.zeros(1), None, 2.0), "null condition"),
        (lambda t, ls: score_target(Energy(), len, len, toward="up"), "accepted: ood, id"),
        (lambda t, ls: band(torch.zeros(1), 0.0, 0.0), "above 0"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        call(lambda x0: x0.flatten(1).sum(1), cosine_levels(10))
    assert "\n" not in str(e.value)


def test_outputs_slice():
    out = Outputs(torch.zeros(4, 2), torch.zeros(4, 3))
    assert len(out[:2]) == 2
    assert len(Outputs.cat([out, out])) == 8
