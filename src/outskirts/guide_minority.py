"""Minority guidance: samples are pushed to where a diffusion model cannot find them again.

A first estimate x0 of the data behind x_t is noised to a level s and estimated once more; where the data are rare, the second
estimate falls back towards denser regions. The distance between the two is the minority score (Um et al., arXiv 2301.12334; as a
guide of its own, arXiv 2407.11555), and Bad-OOD climbs it in a space of representations. docs/papers/badood.md maps equations to symbols and gives what was measured.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.types import Level, Prediction, Predictor

FORMS = ("unit", "adm", "sg_minority")
Strength = float | Float[Tensor, "B"]
Noisy = Callable[[], Tensor]
"""Standard normal draws like x, see `diffuse.Noise`."""


def minority(
    predictor: Predictor,
    second: Level,
    *,
    strength: Strength,
    noise: Noisy,
    form: str = "unit",
    distance: str = "l2",
    draws: int = 1,
    detach: str = "second",
) -> Predictor:
    """`predictor` guided up its own minority score, down it where `strength` is negative; scalar or [B].

    second    the level s of the second estimate.
    form      unit: a step of length strength / steps along the gradient, after the DDIM step, so that strength is the length
              of the whole path; adm: eps - w sqrt(1 - abar) g (Dhariwal & Nichol, arXiv 2105.05233); sg_minority: w sigma^2
              g / max|g|, sigma^2 the posterior variance (arXiv 2407.11555). In these two strength is w, at every step.
    draws     noises over which the second estimate's distance is averaged.
    detach    which estimate passes no gradient. The second, as here by default, is what works; without the first's the guidance
              turns round (`tests/test_guide_minority.py`).
    """
    if form not in FORMS:
        raise OutskirtsError(f"form={form!r}; accepted: {', '.join(FORMS)}")
    if draws < 1:
        raise OutskirtsError(f"draws={draws}; accepted: 1 or more")

    def guided(x: Tensor, level: Level) -> Prediction:
        eps = torch.stack(
            [noise() for _ in range(draws)]
        )  # unguided too: a sample's noise does not depend on its company
        w = _per_sample(strength, x)
        if not w.any():
            return predictor(x, level)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            p = predictor(x, level)
            score = minority_score(predictor, p.x0, second, eps, distance=distance, detach=detach)
            (g,) = torch.autograd.grad(score.sum(), x)  # summed: samples do not mix
        p = Prediction(p.x0.detach(), p.eps.detach(), None if p.shift is None else p.shift.detach())
        x = x.detach()
        if form == "adm":
            moved = p.eps - w * math.sqrt(1 - level.abar) * g  # minus in eps is plus in x: the paper's sign
            return Prediction((x - math.sqrt(1 - level.abar) * moved) / math.sqrt(level.abar), moved, p.shift)
        if form == "sg_minority":
            variance = (1 - level.abar_prev) / (1 - level.abar) * (1 - level.alpha)
            return p.with_shift(w * variance * g / _size(g, math.inf))
        return p.with_shift(w / level.steps * g / _size(g, 2))

    return guided


def minority_score(
    predictor: Predictor,
    x0: Float[Tensor, "B *S"],
    second: Level,
    eps: Float[Tensor, "m B *S"],
    *,
    distance: str = "l2",
    detach: str = "second",
) -> Float[Tensor, "B"]:
    """How far estimates are from those made again at level `second` with each noise of `eps`; larger where data are rare."""
    if detach not in ("second", "first", "none"):
        raise OutskirtsError(f"detach={detach!r}; accepted: second, first, none")
    if distance not in ("l2", "l1"):
        raise OutskirtsError(f"distance={distance!r}; accepted: l2, l1")
    m, start = len(eps), x0.detach() if detach == "second" else x0
    with torch.set_grad_enabled(detach != "second" and torch.is_grad_enabled()):
        x_s = math.sqrt(second.abar) * start + math.sqrt(1 - second.abar) * eps
        again = predictor(x_s.flatten(0, 1), second).x0.unflatten(0, (m, -1))
    apart = ((x0.detach() if detach == "first" else x0) - again).flatten(2)
    return apart.norm(p=2 if distance == "l2" else 1, dim=2).mean(0)  # Bad-OOD's minority score


def jitter(predictor: Predictor, *, strength: Strength, noise: Noisy) -> Predictor:
    """`predictor` with a step of length strength / steps in a random direction: what minority guidance is held against (Table 7)."""

    def jittered(x: Tensor, level: Level) -> Prediction:
        n = noise()
        return predictor(x, level).with_shift(_per_sample(strength, x) / level.steps * n / _size(n, 2))

    return jittered


def _size(g: Float[Tensor, "B *S"], p: float) -> Float[Tensor, "B ..."]:
    """The norm of each sample; nothing is divided by 0 where the gradient vanishes."""
    norm = g.flatten(1).norm(p=p, dim=1).clamp_min(torch.finfo(g.dtype).tiny)
    return norm.reshape(-1, *[1] * (g.ndim - 1))


def _per_sample(strength: Strength, x: Tensor) -> Tensor:
    s = torch.as_tensor(strength, dtype=x.dtype, device=x.device)
    if s.ndim and len(s) != len(x):
        raise OutskirtsError(f"{len(s)} strengths for {len(x)} samples; give one number, or one for each sample")
    return s.reshape(-1, *[1] * (x.ndim - 1)) if s.ndim else s
