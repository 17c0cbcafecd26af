"""Learning the noise that sampling starts from, by gradients that skip the diffusion model: SynOOD, arXiv 2507.10225, eq. 7 and 9.

Each pass samples from the noise without a graph, decodes and classifies with one, and moves the noise by the gradient at the decoder's
input: eq. 9 with the sampler's Jacobian replaced by a constant (the skip gradient of ACA). `learn_noise` is that loop; what samples,
what judges and the loss are given to it.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.scores.energy import Score as Energy
from outskirts.types import Outputs

Loss = Callable[[Outputs], Tensor]
"""Outputs of B images -> [B], least where an image is as it should be."""
log = logging.getLogger("outskirts")


def energy_target(outputs: Outputs, target: float) -> Float[Tensor, "B"]:
    """Squared distance, nats^2, of E = -lse(logits) to `target`, from both sides.

    SynOOD eq. 7 as printed, relu(m_out - tau lse), pushes images away from the boundary: see test_the_printed_loss_has_the_wrong_sign.
    """
    return (Energy()(outputs) - target).square()


def hinge(outputs: Outputs, target: float) -> Float[Tensor, "B"]:
    """relu(m_out - E)^2, nats^2, with m_out = `target`: the energy loss of Liu et al. (arXiv 2010.03759) for OOD, in its right sign."""
    return (target - Energy()(outputs)).relu().square()


def release(outputs: Outputs, target: float) -> Float[Tensor, "B"]:
    """(target - (mean(logits) - lse(logits)))^2, nats^2. By Jensen mean - lse <= -ln K: -5 is out of reach above 148 classes."""
    return (target - (outputs.logits.mean(1) - outputs.logits.logsumexp(1))).square()


def msp(outputs: Outputs, target: float = 0.0) -> Float[Tensor, "B"]:
    """KL divergence, nats, of the softmax from the uniform distribution: mean -log p - ln K. Nothing is aimed at but uniformity.

    The release gives its KL function probabilities in the place of logarithms.
    """
    return -outputs.logits.log_softmax(1).mean(1) - math.log(outputs.logits.shape[1])


CENTRED = -5.0
"""What the release aims at, with mean(logits) - lse(logits)."""
LOSSES = {"energy_target": energy_target, "hinge": hinge, "release": release, "msp": msp}


def aim(loss: str, energies: Float[Tensor, "N"], quantile: float, classes: int) -> float:
    """The target of a loss where the user gives none: the quantile of ID `energies`, where the boundary lies; the release's own -5."""
    if loss == "release":
        if (most := -math.log(classes)) < CENTRED:
            log.warning(
                "loss=release aims at %g, but mean - lse of %d logits is at most %.2f: it pushes to the uniform distribution",
                CENTRED,
                classes,
                most,
            )
        return CENTRED
    return 0.0 if loss == "msp" else energies.double().quantile(quantile).item()


@dataclass(frozen=True)
class Learned:
    """What `learn_noise` leaves."""

    images: Float[Tensor, "B 3 H W"]
    """Of each sample's last pass, in [0, 1]."""
    eps: Float[Tensor, "B *S"]
    """The noise of that pass."""
    energies: list[list[float]]
    """-lse(logits) of each sample's passes, nats."""
    losses: Float[Tensor, "B"]
    """Of each sample's last pass."""


def learn_noise(
    generate: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    classify: Callable[[Tensor], Outputs],
    loss: Loss,
    eps: Float[Tensor, "B *S"],
    *,
    passes: int = 3,
    step: float = 5.0,
    tolerance: float = 0.0,
    at_a_time: int = 8,
) -> Learned:
    """`passes` times: sample from eps, decode, classify, eps <- eps - step * dL/du. `passes` generations have passes - 1 updates.

    generate    (eps [b, *S], rows [b] of the B samples) -> u [b, *S], what the decoder reads; called without a graph.
    decode      u -> images [b, 3, H, W] about [0, 1]; they are clamped, and clamped values pass no gradient.
    classify    images -> Outputs
    tolerance   a sample whose loss is at most the square of this is done, and takes part in no further pass.
    at_a_time   samples that are decoded and classified together; only memory depends on it.

    The gradient is of the sum over samples: a sample's path does not depend on its batch. The release takes the mean over two.
    """
    rows, last = torch.arange(len(eps), device=eps.device), passes - 1
    images, losses, energies = None, None, [[] for _ in range(len(eps))]
    eps = eps.clone()
    for k in range(passes):
        with torch.no_grad():
            u = generate(eps[rows], rows)
        seen = [_look(part, decode, classify, loss, k < last) for part in u.split(at_a_time)]
        found, energy, far, gradient = (torch.cat(parts) for parts in zip(*seen, strict=True))
        images = found if images is None else images.index_copy(0, rows, found)
        losses = far if losses is None else losses.index_copy(0, rows, far)
        for row, e in zip(rows.tolist(), energy.tolist(), strict=True):
            energies[row].append(e)
        if k == last:
            break
        left = ~(far <= tolerance**2)  # what is not finite stays, and is told by the caller
        rows = rows[left]
        if not len(rows):
            break
        eps[rows] = eps[rows] - step * gradient[left]  # SynOOD eq. 9, rho I in the place of the UNet's Jacobian
    return Learned(images, eps, energies, losses)


def _look(u: Tensor, decode, classify, loss: Loss, graph: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(images, energies, losses, gradient of the losses' sum with respect to u, or u where no `graph` is wanted)."""
    u = u.detach().requires_grad_(graph)
    with torch.set_grad_enabled(graph):
        images = decode(u).clamp(0, 1)
        outputs = classify(images)
        far = loss(outputs)
        gradient = torch.autograd.grad(far.sum(), u)[0] if graph else u
    return images.detach(), Energy()(outputs).detach(), far.detach(), gradient
