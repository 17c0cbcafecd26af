"""A linear patch codec: natural images as a small grid of whitened principal components, exactly differentiable.

32x32x3 diffusion is out of reach of a laptop's CPU; pixel_unshuffle(4) and the 20 leading components of the 48-dimensional
patches make it 8x8x20, a step 6 to 12 times cheaper, and keep 99.9 % of the variance of CIFAR-10.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outskirts.errors import OutskirtsError


class PatchPCA(nn.Module):
    """images [B,3,H,W] in [0,1] <-> grid [B,c,H/p,W/p] of components with mean 0 and variance 1 over the training images."""

    def __init__(self, patch: int, components: int):
        super().__init__()
        d = 3 * patch * patch
        if not 1 <= components <= d:
            raise OutskirtsError(f"{components} components of {patch}x{patch} patches; accepted: 1 to {d}")
        self.patch, self.components = patch, components
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("basis", torch.eye(d)[:, :components].contiguous())  # [d, c], orthonormal columns
        self.register_buffer("scale", torch.ones(components))  # standard deviation along each

    def fit(self, images: Float[Tensor, "N 3 H W"]) -> "PatchPCA":
        """Principal components of all patches, in float64. `explained` is then the share of variance kept."""
        d = len(self.mean)
        rows = self._patches(images).permute(0, 2, 3, 1).reshape(-1, d).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))  # ascending
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if values[self.components - 1] <= 1e-12 * values[0]:
            raise OutskirtsError(
                f"patches have fewer than {self.components} directions of variance; take fewer components"
            )
        self.explained = float(values[: self.components].sum() / values.sum())
        for name, value in (("mean", mean), ("basis", vectors), ("scale", values.sqrt())):
            getattr(self, name).copy_(value[..., : self.components] if name != "mean" else value)
        return self

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c h w"]:
        centred = self._patches(images) - self.mean[:, None, None]
        return torch.einsum("bdhw,dc->bchw", centred, self.basis) / self.scale[:, None, None]

    def decode(self, grid: Float[Tensor, "B c h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images of a grid; not clamped, so that guidance has a gradient everywhere."""
        patches = torch.einsum("bchw,dc->bdhw", grid * self.scale[:, None, None], self.basis)
        return F.pixel_shuffle(patches + self.mean[:, None, None], self.patch)

    def _patches(self, images: Tensor) -> Float[Tensor, "B d h w"]:
        if images.shape[-1] % self.patch or images.shape[-2] % self.patch:
            raise OutskirtsError(f"images of {tuple(images.shape[-2:])} do not divide into patches of {self.patch}")
        return F.pixel_unshuffle(images, self.patch)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "codec.safetensors")
        (folder / "config.json").write_text(json.dumps({"patch": self.patch, "components": self.components}))

    @staticmethod
    def load(folder: str | Path) -> "PatchPCA":
        codec = PatchPCA(**json.loads((Path(folder) / "config.json").read_text()))
        codec.load_state_dict(load_file(Path(folder) / "codec.safetensors"))
        return codec
