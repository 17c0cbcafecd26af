"""The tokenizer of MAGE: a VQGAN as MaskGIT trains it (arXiv 2202.04200), out of diffusers' Encoder and Decoder.

It differs from diffusers' own VQModel in four ways, which `folded` turns into weights: the encoder averages where diffusers
convolves with stride 2; residual convolutions have no bias; the encoder ends in a 1x1 convolution; and where a residual
block changes its width it returns h + W h, the shortcut applied to what the block computed and not to what it read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes; the defaults are RCG's."""

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Width at each resolution, from that of the image down; each halves the side."""
    layers: int = 2
    """Residual blocks at each."""
    codes: int = 1024
    code_dim: int = 256
    groups: int = 32
    """Of the group norms."""

    @property
    def patch(self) -> int:
        """Side of the square of pixels that a token stands for."""
        return 2 ** (len(self.channels) - 1)


class VQGAN(nn.Module):
    """Images [B, 3, H, W] in [0, 1] <-> tokens [B, H W / patch^2] in 0 .. codes - 1, row by row."""

    def __init__(self, config: VQGANConfig = VQGANConfig()):
        super().__init__()
        self.config = config
        n = len(config.channels)
        both = {
            "block_out_channels": config.channels,
            "norm_num_groups": config.groups,
            "mid_block_add_attention": False,
        }
        self.encoder = Encoder(
            3, config.code_dim, ("DownEncoderBlock2D",) * n, layers_per_block=config.layers, double_z=False, **both
        )
        # diffusers' decoder has a layer more than it is told
        self.decoder = Decoder(
            config.code_dim, 3, ("UpDecoderBlock2D",) * n, layers_per_block=config.layers - 1, **both
        )
        self.codebook = nn.Embedding(config.codes, config.code_dim)

    def tokens(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """The nearest code at each place of the grid. H and W are multiples of the patch."""
        features = self.encoder(images).flatten(2).mT
        return torch.cdist(features, self.codebook.weight[None]).argmin(-1)

    def images(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Square images in [0, 1]."""
        side = round(tokens.shape[1] ** 0.5)
        return self.decoder(self.codebook(tokens).mT.unflatten(2, (side, side))).clamp(0, 1)


def published_name(key: str, levels: int) -> str | None:
    """What RCG's checkpoint calls the weight `key` of a VQGAN of so many resolutions; None for one that it does not have."""
    added = (".conv1.bias", ".conv2.bias", ".conv_shortcut.bias", "encoder.conv_in.bias")
    if key.endswith(added) or ".downsamplers." in key:
        return None
    # RCG counts the decoder's resolutions from that of the image
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for ours, theirs in (
        ("down_blocks", "down"),
        ("resnets", "block"),
        ("upsamplers.0", "upsample"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("codebook", "quantize.embedding"),
    ):
        key = key.replace(ours, theirs)
    return key


def published_shape(key: str, ours: Tensor) -> Tensor:
    """A tensor of the shape that RCG's checkpoint has for our weight `key`."""
    if key.endswith("conv_shortcut.weight"):
        return ours.new_empty(len(ours), len(ours), 1, 1)
    return ours[..., :1, :1] if key == "encoder.conv_out.weight" else ours


def folded(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of RCG's VQGAN under our names -> those of ours, which computes the same; `expected` gives its shapes."""
    ours = dict(state)
    for key in (k for k in state if k.endswith(".conv_shortcut.weight")):
        block = key.removesuffix("conv_shortcut.weight")
        w, conv2 = state[key][:, :, 0, 0], state[f"{block}conv2.weight"]
        ours[f"{block}conv2.weight"] = conv2 + torch.einsum("op,pihw->oihw", w, conv2)  # h + W h = (I + W) h
        ours[key] = torch.zeros(expected[key].shape)  # nothing of what the block read
    ours["encoder.conv_out.weight"] = F.pad(state["encoder.conv_out.weight"], (1, 1, 1, 1))  # 1x1 in the middle of 3x3
    for key in expected.keys() - ours.keys():
        ours[key] = torch.zeros(expected[key].shape)
        if key.endswith(".downsamplers.0.conv.weight"):  # each channel's 2x2 average; the kernel's first corner
            ours[key][range(len(ours[key])), range(len(ours[key])), :2, :2] = 0.25
    return ours
