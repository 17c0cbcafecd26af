"""SONA's guide: the ID class taken out where the network writes it, an outside word written in, the rest of the image kept.

Yoon et al., arXiv 2408.14841 (AAAI 2025). psi_c = eps(x, c) - eps(x, null) is what a condition changes. Where |psi_ID| is large
lies the semantics of the ID class, where it is small the nuisance. docs/papers/sona.md maps equations to symbols.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outskirts.diffuse import Noise
from outskirts.errors import OutskirtsError
from outskirts.guide import Model
from outskirts.settings import check_types
from outskirts.types import Level, Prediction

WARM_UP = {"nuisance": 20, "id": 10, "ood": 10}
"""SEGA's steps before a term joins, from the sample's own start, as SONA's release sets them."""
MOMENTUM, BETA = 0.3, 0.6
"""SEGA's momentum scale and decay, likewise (arXiv 2301.12247)."""
DRAWS = 16
"""Noise images over which classes of a pixel model are compared."""


class Masks(NamedTuple):
    """Where each term acts: semantics and nuisance of the ID class, semantics of the outside word."""

    s_id: Bool[Tensor, "B *S"]
    n_id: Bool[Tensor, "B *S"]
    s_ood: Bool[Tensor, "B *S"]


Watch = Callable[[Level, Prediction, Masks | None], None]


@dataclass(frozen=True)
class Terms:
    """Which parts of the guidance are on (Table 3), how wide the regions are, and how strong it is."""

    lam: float = 0.2
    """Share of positions that are semantic, and share that are nuisance; below 0.5."""
    scale: float = 10.0
    """s, the strength of the sum of all terms."""
    scope: Literal["channel", "sample"] = "channel"
    """What shares are counted over: the positions of each channel, or a sample's positions and channels together."""
    use_id: bool = True
    """Take the ID class out of its semantic region."""
    use_nuisance: bool = True
    """Hold the ID class in its nuisance region."""
    use_ood: bool = True
    """Write the outside word into its semantic region."""
    nuisance_filter: bool = True
    """Keep the outside word out of the ID nuisance region."""
    global_guidance: bool = False
    """The outside word everywhere and nothing else: plain guidance, the first row of Table 3."""
    sega: bool = False
    """The release's preset: terms join after a warm-up, and momentum. A sample that starts late gets no guidance at all."""

    def __post_init__(self):
        check_types(self)
        if not 0 < self.lam < 0.5:
            raise OutskirtsError(
                f"lam is {self.lam}; give above 0 and below 0.5, as the semantic and the nuisance region may not overlap"
            )
        if self.scale < 0 or not math.isfinite(self.scale):
            raise OutskirtsError(f"scale is {self.scale}; give 0 or more")
        if self.global_guidance and self.sega:
            raise OutskirtsError("global_guidance has no terms that sega could let in one by one; give one of the two")
        if not (self.global_guidance or self.use_id or self.use_nuisance or self.use_ood):
            raise OutskirtsError("use_id, use_nuisance and use_ood are all false; leave one on, or give scale=0")


def masks(
    psi_id: Float[Tensor, "B *S"], psi_ood: Float[Tensor, "B *S"], lam: float = 0.2, scope: str = "channel"
) -> Masks:
    """The regions of SONA eq. 3, each sample's own. Any multiple of psi has the same.

    eta_p is read as the value that a share p exceeds: otherwise the regions would overlap.
    """
    low, high = _thresholds(psi_id, lam, scope)
    return Masks(
        psi_id.abs() >= high,  # SONA eq. 3, M_S
        psi_id.abs() <= low,  # SONA eq. 3, M_N
        psi_ood.abs() >= _thresholds(psi_ood, lam, scope)[1],
    )


def deltas(
    psi_id: Float[Tensor, "B *S"], psi_ood: Float[Tensor, "B *S"], m: Masks, nuisance_filter: bool = True
) -> tuple[Float[Tensor, "B *S"], Float[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """The terms of SONA's guidance (alg. 2): ID semantics, nuisance, outside word."""
    d_id = -(m.s_id * psi_id)
    d_n = m.n_id * psi_id
    d_ood = (m.s_ood & ~m.n_id if nuisance_filter else m.s_ood) * psi_ood
    return d_id, d_n, d_ood


class Sona:
    """Predictor eps_null + s (D_ID + D_N + D_OOD) (SONA alg. 2) that keeps account of every sample.

    cond_id, cond_ood, null  conditions [B, ...] of `model`; cond_ood None writes no outside word in, and costs no rows.
    watch                    is told every step's level, prediction and masks, None with global guidance: for pictures.

    Called with the first n of the B samples: samples may join late, see `diffuse.sample_from`. Each call is one network
    call of 3 n rows, 2 n without an outside word. After sampling, `facts` says what was done to each.
    """

    def __init__(
        self,
        model: Model,
        cond_id: Tensor,
        cond_ood: Tensor | None,
        null: Tensor,
        terms: Terms,
        watch: Watch | None = None,
    ):
        if cond_ood is None and (terms.global_guidance or not (terms.use_id or terms.use_nuisance)):
            raise OutskirtsError("without an outside word only use_id and use_nuisance guide; leave one of them on")
        self.model, self.terms, self.watch = model, terms, watch
        self.conditions = [c for c in (null, cond_id, cond_ood) if c is not None]
        self.has_word = cond_ood is not None
        B = len(null)
        self.steps, self.guided = torch.zeros(B, dtype=torch.long), torch.zeros(B, dtype=torch.long)
        self.shares = torch.zeros(B, 3, dtype=torch.float64)
        self.nu: Tensor | None = None  # SEGA's momentum, in units of eps

    def __call__(self, x: Float[Tensor, "n *S"], level: Level) -> Prediction:
        n, t = len(x), self.terms
        p = self.model(torch.cat([x] * len(self.conditions)), level, torch.cat([c[:n] for c in self.conditions]))
        x0, *conditioned = p.x0.chunk(len(self.conditions))
        eps = p.eps[:n]
        # psi in units of x0: -sqrt(1 - abar) / sqrt(abar) times that of eps, so masks and terms are the same ones; eps of a
        # network that predicts v would be rounding at almost pure noise
        psi_id = conditioned[0] - x0
        psi_ood = conditioned[1] - x0 if self.has_word else torch.zeros_like(psi_id)
        to_eps = -math.sqrt(level.abar) / math.sqrt(1 - level.abar)
        if t.global_guidance:
            push = t.scale * psi_ood
            self._count(n, torch.full((n,), t.scale > 0), None)
            return self._told(level, Prediction(x0 + push, eps + to_eps * push), None)
        m = masks(psi_id, psi_ood, t.lam, t.scope)
        terms = torch.stack(deltas(psi_id, psi_ood, m, t.nuisance_filter))  # [3, n, *S]
        weight = self._weights(n).to(terms)
        push = t.scale * torch.einsum("cb,cb...->b...", weight, terms)  # SONA alg. 2
        push_eps = to_eps * push
        if t.sega:
            extra = self._momentum(t.scale * to_eps * terms[self._on()].sum(0), n)
            push_eps = push_eps + extra
            push = push + (extra / to_eps if to_eps else 0.0)
        self._count(n, (weight > 0).any(0).cpu() & (t.scale > 0), m)
        return self._told(level, Prediction(x0 + push, eps + push_eps), m)

    def facts(self) -> list[dict]:
        """Of each sample: steps taken, steps guided, mean share of each region; `flag` where no step was guided."""
        means = (self.shares / self.steps.clamp_min(1)[:, None]).tolist()
        found = []
        for steps, guided, (s_id, n_id, s_ood) in zip(self.steps.tolist(), self.guided.tolist(), means, strict=True):
            fact = {"steps": steps, "guided_steps": guided}
            if not self.terms.global_guidance:
                fact |= {"mask_id": round(s_id, 4), "mask_nuisance": round(n_id, 4)}
                fact |= {"mask_ood": round(s_ood, 4)} if self.has_word and self.terms.use_ood else {}
            found.append(fact | ({} if guided else {"flag": "no guided step: an ID image, not an outlier"}))
        return found

    def _told(self, level: Level, found: Prediction, m: Masks | None) -> Prediction:
        if self.watch is not None:
            self.watch(level, found, m)
        return found

    def _on(self) -> list[int]:
        """Which of the three terms are in use."""
        t = self.terms
        return [i for i, on in enumerate((t.use_id, t.use_nuisance, t.use_ood and self.has_word)) if on]

    def _ready(self, n: int) -> Bool[Tensor, "3 n"]:
        """Which terms in use are past their warm-up, sample by sample."""
        ready = torch.zeros(3, n, dtype=torch.bool)
        for i in self._on():
            waits = WARM_UP[("id", "nuisance", "ood")[i]] if self.terms.sega else 0
            ready[i] = self.steps[:n] >= waits
        return ready

    def _weights(self, n: int) -> Float[Tensor, "3 n"]:
        """1 for each term; SEGA: while some are in their warm-up, the mean of the others."""
        ready = self._ready(n)
        count = ready.sum(0)
        some = count < len(self._on())
        return ready / torch.where(some, count.clamp_min(1), 1)

    def _momentum(self, g: Float[Tensor, "n *S"], n: int) -> Float[Tensor, "n *S"]:
        """What SEGA's momentum adds to samples past every warm-up; it builds up from the start, from all terms `g`."""
        nu = torch.zeros_like(g)
        if self.nu is not None:
            nu[: len(self.nu)] = self.nu  # late ones start at 0
        self.nu = BETA * nu + (1 - BETA) * (g + MOMENTUM * nu)
        whole = (self._ready(n).sum(0) == len(self._on())).to(g)
        return whole.reshape(-1, *[1] * (g.ndim - 1)) * MOMENTUM * nu

    def _count(self, n: int, guided: Bool[Tensor, "n"], m: Masks | None) -> None:
        self.steps[:n] += 1
        self.guided[:n] += guided
        if m is not None:
            filtered = m.s_ood & ~m.n_id if self.terms.nuisance_filter else m.s_ood
            parts: Sequence[Tensor] = (m.s_id, m.n_id, filtered)
            self.shares[:n] += torch.stack([part.flatten(1).double().mean(1) for part in parts], 1).cpu()


@torch.no_grad()
def likeness(model, a: Sequence[int], b: Sequence[int], level: Level) -> Float[Tensor, "a b"]:
    """Cosine of the mean images that a pixel model holds of its classes `a` and `b`, less that of no class.

    At almost pure noise what a network says is there is the mean of all images under its condition.
    """
    cond, null = model.condition(labels=[*a, *b])
    noise, psi = Noise([0], model.shape, model.device), 0
    for _ in range(DRAWS):
        x = noise().expand(2 * len(cond), *model.shape)
        conditioned, unconditioned = model(x, level, torch.cat([cond, null])).x0.chunk(2)
        psi = psi + conditioned - unconditioned
    psi = torch.nn.functional.normalize(psi.flatten(1), dim=1)
    return psi[: len(a)] @ psi[len(a) :].T


def _thresholds(psi: Float[Tensor, "B *S"], lam: float, scope: str) -> tuple[Tensor, Tensor]:
    """The lam and 1 - lam quantiles of |psi| over the scope, in the shape of psi; torch.quantile takes no large tensors."""
    start = 2 if scope == "channel" else 1
    ordered = psi.abs().to(torch.promote_types(psi.dtype, torch.float32)).flatten(start).sort(-1).values

    def quantile(q: float) -> Tensor:
        place = q * (ordered.shape[-1] - 1)
        low = math.floor(place)
        value = torch.lerp(ordered[..., low], ordered[..., math.ceil(place)], place - low)
        return value.reshape(*value.shape, *[1] * (psi.ndim - start)).to(psi.dtype)

    return quantile(lam), quantile(1 - lam)
