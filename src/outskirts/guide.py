"""Guides: functions from predictor to predictor. They compose by nesting: `tfg(clip(cfg(model, ...)), target, ...)`.

cfg    classifier-free guidance, both halves in one network call            Ho & Salimans, arXiv 2207.12598
clip   x0 clamped to the data range, pixel space only
tfg    training-free guidance by a target log f                             Ye et al., arXiv 2409.15761; GOOD, arXiv 2510.17131

A *target* maps x0 [B, *S] to log f [B]. GOOD's targets are OOD scores of the classifier at the decoded x0 (`score_target`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.types import Level, Prediction, Predictor

Target = Callable[[Tensor], Tensor]
Model = Callable[[Tensor, Level, Tensor | None], Prediction]
SCHEDULES = ("increase", "decrease", "constant")


def cfg(model: Model, cond: Tensor | None, null: Tensor | None = None, scale: float = 1.0) -> Predictor:
    """Predictor eps_u + s (eps_c - eps_u) for conditions `cond` [B, ...] and their null `null`, s = `scale`.

    GOOD writes (1 + g) eps_c - g eps_u: the same with s = 1 + g. At s = 1 the unconditional half is not computed.
    """
    if scale == 1.0:
        return lambda x, level: model(x, level, cond)
    if null is None:
        raise OutskirtsError(f"guidance scale {scale} needs a model with a null condition; this one has none: use 1")
    both = torch.cat([null, cond])

    def predictor(x: Tensor, level: Level) -> Prediction:
        p = model(torch.cat([x, x]), level, both)
        (x0_u, x0_c), (eps_u, eps_c) = p.x0.chunk(2), p.eps.chunk(2)
        # x0 and eps are affine in each other at fixed x, so combining both is combining either
        return Prediction(x0_u + scale * (x0_c - x0_u), eps_u + scale * (eps_c - eps_u))

    return predictor


def clip(predictor: Predictor, bound: float = 1.0) -> Predictor:
    """`predictor` with x0 clamped to +-bound and eps made consistent with it. Clipped entries pass no gradient."""

    def clipped(x: Tensor, level: Level) -> Prediction:
        p = predictor(x, level)
        x0 = p.x0.clamp(-bound, bound)
        return Prediction(x0, (x - math.sqrt(level.abar) * x0) / math.sqrt(1 - level.abar), p.shift)

    return clipped


def schedule_weights(levels: Sequence[Level], schedule: str = "increase") -> Float[Tensor, "T"]:
    """TFG's weight of each step, mean 1 over the grid: s(i) T / sum s, s = alpha, 1 - alpha or 1."""
    alpha = torch.tensor([level.alpha for level in levels], dtype=torch.float64)
    match schedule:
        case "increase":
            s = alpha
        case "decrease":
            s = 1 - alpha
        case "constant":
            s = torch.ones_like(alpha)
        case _:
            raise OutskirtsError(f"schedule {schedule!r}; accepted: {', '.join(SCHEDULES)}")
    return s * len(levels) / s.sum()


def guided_steps(
    levels: Sequence[Level], interval: tuple[float, float] = (0.0, 1.0), every: int = 1
) -> Bool[Tensor, "T"]:
    """Which steps are guided: every n-th of those whose position (0 noise, 1 image) lies in the interval."""
    if every < 1 or not 0 <= interval[0] < interval[1] <= 1:
        raise OutskirtsError(f"interval={interval}, every={every}; accepted: 0 <= from < to <= 1 and every >= 1")
    inside = torch.tensor([interval[0] <= level.position < interval[1] for level in levels])
    # counted back from the image: the last steps, where x0 is sharp, are the ones worth keeping
    nth = (len(levels) - 1 - torch.arange(len(levels))) % every == 0
    if not (inside & nth).any():
        raise OutskirtsError(f"interval={interval}, every={every} guide none of the {len(levels)} steps; widen them")
    # at zero signal-to-noise x0 does not depend on x_t, and 1 / sqrt(alpha) has no meaning
    return inside & nth & torch.tensor([level.alpha > 0 for level in levels])


def strengths(
    levels: Sequence[Level],
    *,
    schedule: str = "increase",
    reference_steps: int | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    every: int = 1,
) -> Float[Tensor, "T"]:
    """What rho and mu are multiplied by at each step.

    The total push of TFG is strength * T: half the steps, half the push. `reference_steps` keeps the total that many steps
    would have, and steps left out by `interval` or `every` are made up for by the others.
    """
    guided = guided_steps(levels, interval, every)
    w = schedule_weights(levels, schedule) * guided / guided.double().mean()
    return w if reference_steps is None else w * (reference_steps / len(levels))


def tfg(
    predictor: Predictor,
    target: Target,
    levels: Sequence[Level],
    *,
    rho: float | Float[Tensor, "B"] = 0.0,
    mu: float | Float[Tensor, "B"] = 0.0,
    sigma: float | Float[Tensor, "B"] = 0.0,
    draws: int = 1,
    iterations: int = 1,
    noise: Callable[[], Tensor] | None = None,
    noise_schedule: str = "decrease",
    schedule: str = "increase",
    reference_steps: int | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    every: int = 1,
) -> Predictor:
    """One whole training-free-guidance step as a predictor: x0 and eps stay unguided, both pushes are the shift.

    target      x0 [B, *S] -> log f [B], pushed upwards. Evaluate it in eval mode with frozen weights.
    rho         variance guidance, through the network (GOOD eq. 4): strength of grad_{x_t} log f(x0(x_t)); scalar or [B].
    mu          mean guidance, on x0 alone (GOOD eq. 5): strength of grad_{x0} log f(x0); scalar or [B].
    sigma       smoothing (GOOD's gamma), scalar or [B]: log f is averaged, as log-mean-exp, over `draws` points
                x0 + std_t N(0, I), std_t = sigma sqrt(1 - abar) ("decrease") or sigma ("constant"); takes `noise`.
    iterations  N_iter mean-guidance steps.
    schedule, reference_steps, interval, every: see `strengths`.

    For N_iter = 1 one target gradient g = grad_{x0} L serves both: Delta_0 = mu g and, by the chain rule,
    Delta_t = rho J^T g with J = dx0/dx_t; the target is never evaluated twice. Samples do not mix.
    """
    if iterations < 1 or draws < 1:
        raise OutskirtsError(f"iterations={iterations}, draws={draws}; accepted: 1 or more")
    # a tensor of sigmas draws for every sample, smoothed or not: its later noise must not depend on its neighbours'
    smooth = isinstance(sigma, Tensor) or sigma > 0
    if smooth and noise is None:
        raise OutskirtsError(f"sigma={sigma} needs noise; give noise=Noise(seeds, shape)")
    if noise_schedule not in ("decrease", "constant"):
        raise OutskirtsError(f"noise_schedule {noise_schedule!r}; accepted: decrease, constant")
    weight = strengths(
        levels, schedule=schedule, reference_steps=reference_steps, interval=interval, every=every
    ).tolist()
    rho_on, mu_on = _any(rho), _any(mu)
    if rho_on:
        _check_first_steps(levels, weight, schedule)

    def guided(x: Tensor, level: Level) -> Prediction:
        eps = None
        if smooth:  # drawn on unguided steps too: a sample's later noise does not depend on which steps are guided
            std = _per_sample(sigma, x) * (math.sqrt(1 - level.abar) if noise_schedule == "decrease" else 1.0)
            eps = torch.stack([std * noise() for _ in range(draws)])
        if weight[level.index] == 0 or not (rho_on or mu_on):
            return predictor(x, level)
        with torch.set_grad_enabled(rho_on):
            x = x.detach().requires_grad_(rho_on)
            p = predictor(x, level)
        rho_t, mu_t = (_per_sample(s, x) * weight[level.index] for s in (rho, mu))

        x0 = p.x0.detach()
        g = target_gradient(target, x0, eps)
        delta_0 = mu_t * g
        for _ in range(iterations - 1 if mu_on else 0):
            delta_0 = delta_0 + mu_t * target_gradient(target, x0 + delta_0, eps)
        # GOOD alg. 1 line 11: x_prev + Delta_t / sqrt(alpha) + sqrt(abar_prev) Delta_0
        shift = math.sqrt(level.abar_prev) * delta_0
        if rho_on:
            (jtg,) = torch.autograd.grad(p.x0, x, g)
            shift = shift + rho_t * jtg / math.sqrt(level.alpha)
        before = None if p.shift is None else p.shift.detach()
        return Prediction(x0, p.eps.detach(), before).with_shift(shift)

    return guided


@torch.enable_grad()
def target_gradient(
    target: Target, x0: Float[Tensor, "B *S"], eps: Float[Tensor, "m B *S"] | None
) -> Float[Tensor, "B *S"]:
    """Gradient at x0 of log mean_j exp(log f(x0 + eps_j)), each sample its own (the sum over the batch does not mix them)."""
    x0 = x0.detach().requires_grad_()
    if eps is None:
        log_f = target(x0)
    else:
        m = len(eps)
        log_f = target((x0 + eps).flatten(0, 1)).unflatten(0, (m, -1)).logsumexp(0) - math.log(m)
    return torch.autograd.grad(log_f.sum(), x0)[0]


def score_target(
    score, classifier, decode: Callable[[Tensor], Tensor], *, toward: str = "ood", scale: float = 1.0
) -> Target:
    """log f = +-scale * score(classifier(decode(x0))): up towards OOD (GOOD eq. 3 and 6) or down towards ID."""
    if toward not in ("ood", "id"):
        raise OutskirtsError(f"toward={toward!r}; accepted: ood, id")
    if not score.differentiable:
        raise OutskirtsError(
            f"{type(score).__module__.rsplit('.', 1)[-1]} is not differentiable; guide by energy or knn"
        )
    sign = scale if toward == "ood" else -scale
    return lambda x0: sign * score(classifier(decode(x0)))


def band(score: Float[Tensor, "B"], centre: float, width: float) -> Float[Tensor, "B"]:
    """log f = -(E - Q)^2 / (2 tau^2): towards the value Q = `centre` rather than ever upwards; tau = `width`, as the score."""
    if width <= 0:
        raise OutskirtsError(f"band width {width}; accepted: above 0, in units of the score")
    return -((score - centre) ** 2) / (2 * width**2)


def _check_first_steps(levels: Sequence[Level], weight: Sequence[float], schedule: str) -> None:
    """TFG's factor of the rho push, weight / sqrt(alpha), explodes where alpha is tiny and the weight does not vanish with it."""
    factors = [w / math.sqrt(level.alpha) if w else 0.0 for w, level in zip(weight, levels, strict=True)]
    worst = max(range(len(levels)), key=factors.__getitem__)
    if factors[worst] > 100 * max(weight):
        raise OutskirtsError(
            f"schedule={schedule!r} multiplies rho by {factors[worst]:.0f} at step {worst + 1} of {len(levels)}, where alpha is "
            f"{levels[worst].alpha:.1e}; use schedule='increase', or leave the first steps out with interval, e.g. (0.1, 1)"
        )


def _any(strength) -> bool:
    return bool(torch.as_tensor(strength).ne(0).any())


def _per_sample(strength, x: Tensor) -> Tensor:
    s = torch.as_tensor(strength, dtype=x.dtype, device=x.device)
    if s.ndim and len(s) != len(x):
        raise OutskirtsError(f"{len(s)} strengths for {len(x)} samples; give one number, or one for each sample")
    return s.reshape(-1, *[1] * (x.ndim - 1)) if s.ndim else s
