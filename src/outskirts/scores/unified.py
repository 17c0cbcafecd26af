"""GOOD's unified score, energy and kNN distance weighted by how far a test set is shifted (arXiv 2510.17131, eq. 9)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.scores._shared import fp32, learned, need
from outskirts.scores.knn import bank_of, index_of, kth_distance, saved_index
from outskirts.threshold import Threshold
from outskirts.types import Outputs

MODES = ("synthetic", "fixed", "transductive", "stream")
NO_OUTLIERS = (
    "unified mode 'synthetic' needs outliers (held out, synthetic); none were given; train against some, pass fit(..., outliers=Outputs), or take a mode "
    "that needs none: fixed with w from 0 to 1 (score.unified.mode=fixed score.unified.w=0.5), or transductive, as published, which reads the test set "
    "itself (score.unified.mode=transductive)"
)
SMALLEST_WINDOW = 200
"""Images before a stream says anything about its shift: with 20, KL is 0.66 +- 0.46 where it should be 0.54."""


@dataclass
class Score:
    """(1 - w) E' + w D: E' the energy scaled to [0, 1], D the kNN distance as it is (0 to 2), w = 1 - exp(-a KL).

    The KL divergence between the distances of shifted and of ID images says how far the shift is: near, the energy counts,
    far, the distance. Where the shifted images come from is the `mode`:

    - synthetic: from synthetic outliers held out from training, given to `fit`. w and the range of E are then frozen, and
      E' is clipped to [0, 1]. The default: it needs nothing that a deployed detector does not have.
    - fixed: w is given, the range of E is that of the ID validation images.
    - transductive: from the OOD test set itself, with the ID test set as reference, as the paper's numbers were made. Use
      `pair`. No deployed detector has this; 13 of the 31 points of FPR95 that GOOD gains come from it.
    - stream: from a rolling window of the images seen, which `update` moves; w = 0 until it holds 200 of them. The scale of
      the score moves with w: decide with `p_value` or `threshold()`, which follow it.
    """

    mode: str = "synthetic"
    k: int = 100
    """Neighbour of D."""
    a: float = 0.5
    """How fast w grows with the divergence."""
    w: float | None = None
    """Share of the kNN distance, 0 to 1; mode fixed only."""
    bins: int = 10
    window: int = 1000
    """Images the stream looks back on; mode stream only."""
    keep: float = 0.95
    """Share of ID images that `threshold()` keeps; mode stream only."""
    backend: str = "auto"
    """Of the kNN search, see `outskirts.scores.knn`."""

    def __post_init__(self):
        if self.mode not in MODES:
            raise OutskirtsError(f"no unified mode {self.mode!r}; accepted: {', '.join(MODES)}")
        if (self.mode == "fixed") != (self.w is not None):
            raise OutskirtsError(
                f"w={self.w} with mode={self.mode!r}; mode='fixed' needs w from 0 to 1, the other modes find it themselves"
            )
        if self.w is not None and not 0 <= self.w <= 1:
            raise OutskirtsError(f"w={self.w}; the share of the kNN distance is 0 to 1")
        if self.window < SMALLEST_WINDOW:
            raise OutskirtsError(f"window={self.window} images; a stream needs at least {SMALLEST_WINDOW}")

    @property
    def differentiable(self) -> bool:
        return self.mode in ("synthetic", "fixed")

    @property
    def transductive(self) -> bool:
        return self.mode == "transductive"

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
    ) -> "Score":
        """Stores the bank and, unless transductive, the range of E from `val`, and in mode synthetic w from `outliers`.

        `val` are held-out ID images, `outliers` synthetic ones that were not trained on.
        """
        self.bank_ = bank_of(train, self.k)
        self.index_ = index_of(self.bank_, self.backend)
        if self.transductive:
            return self
        e, d = self._parts(need(val, "val (held-out ID images)", f"unified mode {self.mode!r}"))
        if self.mode == "synthetic":
            if outliers is None or not len(outliers):
                raise OutskirtsError(NO_OUTLIERS)
            e_out, d_out = self._parts(outliers)
            self._range(torch.cat([e, e_out]))
            self.w_ = self._weight(smoothed_kl(d_out, d, self.bins))
            return self
        self._range(torch.quantile(e, torch.tensor([0.01, 0.99], dtype=e.dtype, device=e.device)))
        self.w_ = 0.0 if self.w is None else float(self.w)
        if self.mode == "stream":
            self.val_energy_, self.val_distance_, self.window_ = e, d, d[:0]
        return self

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        if self.transductive:
            raise OutskirtsError(
                "unified mode 'transductive' scores whole test sets; call pair(id_outputs, ood_outputs), or use another mode"
            )
        learned(self, "w_")
        return self._mix(*self._parts(outputs))

    def pair(self, id_outputs: Outputs, ood_outputs: Outputs) -> tuple[Float[Tensor, " M"], Float[Tensor, " B"]]:
        """Scores of an ID test set and of an OOD test set, with w and the range of E read from these very sets."""
        if not self.transductive:
            raise OutskirtsError(
                f"pair with mode={self.mode!r}; only mode='transductive' reads the test sets, call the score itself"
            )
        (e_id, d_id), (e_ood, d_ood) = self._parts(id_outputs), self._parts(ood_outputs)
        w = self._weight(equal_bins_kl(d_ood, d_id, self.bins))
        pooled = torch.cat([e_id, e_ood])
        scores = (1 - w) * (pooled - pooled.min()) / (pooled.max() - pooled.min()) + w * torch.cat(
            [d_id, d_ood]
        )  # GOOD eq. 9
        return scores[: len(e_id)], scores[len(e_id) :]

    def update(self, outputs: Outputs) -> "Score":
        """Mode stream: moves the window over the images just seen, and w with it."""
        self._stream()
        _, d = self._parts(outputs)
        self.window_ = torch.cat([self.window_.to(d), d.detach()])[-self.window :]
        if len(self.window_) >= SMALLEST_WINDOW:
            self.w_ = self._weight(smoothed_kl(self.window_, self.val_distance_, self.bins))
        return self

    def threshold(self) -> Threshold:
        """Mode stream: the conformal threshold at the present w."""
        self._stream()
        return Threshold.from_id(self._mix(self.val_energy_, self.val_distance_), self.keep)

    def p_value(self, outputs: Outputs) -> Float[Tensor, " B"]:
        """Mode stream: the rank among held-out ID images at the present w; small means OOD, whatever w is."""
        return self.threshold().p_value(self(outputs))

    def _stream(self) -> None:
        if self.mode != "stream":
            raise OutskirtsError(f"mode={self.mode!r} has no window; use mode='stream'")
        learned(self, "window_")

    def _parts(self, outputs: Outputs) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        self.bank_ = learned(self, "bank_").to(outputs.features.device)
        d = kth_distance(outputs.features, self.bank_, self.k, self.backend, saved_index(self))
        return -fp32(outputs.logits).logsumexp(-1), d

    def _range(self, e: Float[Tensor, " M"]) -> None:
        self.low_, self.high_ = e.min().item(), e.max().item()
        if not self.high_ > self.low_:
            raise OutskirtsError(
                f"energies from {self.low_:g} to {self.high_:g} give no range to scale by; are the logits finite and not constant?"
            )

    def _mix(self, e: Float[Tensor, " B"], d: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        e = (e - self.low_) / (self.high_ - self.low_)
        if self.mode == "synthetic":
            e = e.clamp(0, 1)
        return (1 - self.w_) * e + self.w_ * d  # GOOD eq. 9

    def _weight(self, kl: float) -> float:
        return 1 - math.exp(-self.a * kl)  # the paper's w, as in its code


def equal_bins_kl(test: Float[Tensor, " M"], reference: Float[Tensor, " N"], bins: int = 10) -> float:
    """KL(test || reference) in nats over equal bins of the pooled range, as GOOD's code has it.

    Where the reference has no mass, 1e-9 decides: a well separated set gives about 20 whatever its distance.
    """
    test, reference = test.detach().double(), reference.detach().double()
    pooled = torch.cat([test, reference])
    p, q = (
        (torch.histc(x, bins, pooled.min().item(), pooled.max().item()) + 1e-9) / (len(x) + 1e-8)
        for x in (test, reference)
    )
    return (p * (p / q).log()).sum().item()


def smoothed_kl(test: Float[Tensor, " M"], reference: Float[Tensor, " N"], bins: int = 10) -> float:
    """KL(test || reference) in nats over the reference's quantile bins, half a count added to each.

    We depart from the paper's bins for every mode but the transductive: this one is stable and bounded by about log(bins).
    """
    test, reference = test.detach().double(), reference.detach().double()
    inner = torch.arange(1, bins, dtype=torch.float64, device=test.device) / bins
    edges = torch.quantile(reference, inner)
    p, q = (
        (torch.bincount(torch.bucketize(x, edges), minlength=bins) + 0.5) / (len(x) + 0.5 * bins)
        for x in (test, reference)
    )
    return (p * (p / q).log()).sum().item()
