"""ODIN: softmax at a high temperature, of images nudged towards their predicted class, Liang et al. (arXiv 1706.02690)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.scores._shared import Unfitted, observed
from outskirts.types import Look, Outputs


@dataclass
class Score(Unfitted):
    """-max_k softmax_k(logits(x - eps sign(grad_x(-log max_k softmax_k))) / T), from -1 to -1/K. An Observer: reads the images.

    The images are nudged in [0, 1], where one step is the same in every channel: in the normalised images of the published
    code that is eps / std. Costs a backward and a forward pass beside the one that all scores share.
    """

    eps: float = 0.0014
    """Size of the nudge, for images in [0, 1]."""
    temperature: float = 1000.0

    differentiable = False
    gradient = True

    @property
    def observes(self) -> str:
        return f"odin eps={self.eps:g} temperature={self.temperature:g}"

    def observe(self, look: Look) -> Float[Tensor, " B"]:
        """Losses are summed, not averaged, so that an image's gradient does not depend on its batch."""
        loss = -(look.outputs.logits / self.temperature).log_softmax(-1).amax(-1).sum()
        (gradient,) = torch.autograd.grad(loss, look.images, retain_graph=True)  # for an ODIN of other settings
        with torch.no_grad():
            nudged = look.classifier(look.images - self.eps * gradient.sign())
        return -(nudged.logits.double() / self.temperature).softmax(-1).amax(-1)

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        return observed(self, outputs)
