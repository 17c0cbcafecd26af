"""MoCo v3 (arXiv 2104.02057) as RCG uses it: a timm vision transformer, then the projector, which RCG keeps."""

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MoCoV3Config:
    """Sizes; the defaults are those of ViT-L/16."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 16
    size: int = 224
    """Side of what the transformer reads."""
    crop: int = 256
    """Side of what is taken from the image before; RCG resizes twice."""
    hidden: int = 4096
    """Of the projector."""
    dim: int = 256


class MoCoV3(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> projections [B, dim], as they leave the projector."""

    def __init__(self, config: MoCoV3Config = MoCoV3Config()):
        super().__init__()
        self.config = config
        self.vit = VisionTransformer(
            img_size=config.size,
            patch_size=config.patch,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",
        )
        self.head = nn.Sequential(
            nn.Linear(config.width, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.dim, bias=False),
            nn.BatchNorm1d(config.dim, affine=False),
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.head(self.vit(self.preprocess(images)))

    def preprocess(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 s s"]:
        """Normalised; first the centre at `crop`, antialiased, then, as RCG does it, bicubic to `size` and not antialiased."""
        side = self.config.crop
        if tuple(images.shape[2:]) != (side, side):
            images = tv.resize(images, [side], tv.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
            images = tv.center_crop(images, [side, side])
        images = tv.normalize(images, list(MEAN), list(STD))
        return F.interpolate(images, self.config.size, mode="bicubic", align_corners=False)


def published_name(key: str) -> str:
    """What RCG's own module calls the weight `key`; the projector has its name, the transformer has no prefix."""
    return key.removeprefix("vit.")


def spelt(key: str) -> str:
    """A key of the published ViT-L checkpoint without its misspellings in two blocks."""
    for wrong, right in (
        ("blocks.13.norm13.", "blocks.13.norm1."),
        ("blocks.13.mlp.fc13.", "blocks.13.mlp.fc1."),
        ("blocks.14.norm14.", "blocks.14.norm2."),
        ("blocks.14.mlp.fc14.", "blocks.14.mlp.fc2."),
    ):
        key = key.replace(wrong, right)
    return key
