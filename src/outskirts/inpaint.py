"""In-painting models of Stable Diffusion (a UNet with 9 input channels) as predictors: everything is painted anew, and nothing is shown.

The mask is one everywhere and the masked image mid-grey, as SynOOD (arXiv 2507.10225) uses them: an ID image then enters only through the
noised latents that sampling starts from.
"""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.denoisers import LatentDiffusion
from outskirts.errors import OutskirtsError

CHANNELS = 9
"""Input channels: the noised latents, the mask, the latents of the masked image, in this order."""


class Inpainting(LatentDiffusion):
    """Stable Diffusion's in-painting model with a mask of ones; used as `LatentDiffusion` is, with prompts."""

    def beside(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B C h w"]:
        return torch.cat([x, self.blank.expand(len(x), -1, -1, -1)], dim=1)

    @cached_property
    @torch.no_grad()
    def blank(self) -> Float[Tensor, "1 c1 h w"]:
        """The mask and the latents of a grey picture: the mean of their posterior, where diffusers draws from it at every call."""
        grey = self.encode(torch.full((1, 3, *self.image_size), 0.5, device=self.device))
        return torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1)


def require_inpainting(name: str, channels: int) -> None:
    """Raises OutskirtsError unless the UNet of the latent model `name`, which reads so many channels, in-paints."""
    if channels != CHANNELS:
        raise OutskirtsError(
            f"diffusion model {name!r} is no in-painting model (its UNet reads {channels} channels, not {CHANNELS}); give one, e.g. "
            "sd2-community/stable-diffusion-2-inpainting, or a pixel model"
        )
