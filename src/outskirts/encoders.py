"""Encoders: images to embeddings, by name: `classifier`, `timm:ID`, `clip:ID`. And the embeddings of a whole set, kept on disk."""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from outskirts.architectures import build, check_timm
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.progress import track
from outskirts.stamp import short_hash
from outskirts.tensors import content_hash

HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


@runtime_checkable
class Encoder(Protocol):
    """Images [B, 3, H, W] in [0, 1] -> embeddings [B, dim], not normalised; an image does not depend on its batch.

    It may have a `size` (H, W), to which images that differ in size are brought.
    """

    name: str
    dim: int

    @property
    def weights_hash(self) -> str:
        """Of the weights and all that decides what the embeddings are."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]: ...


class Features:
    """The penultimate features of a classifier."""

    name = "classifier"

    def __init__(self, classifier):
        self.classifier, self.dim, self.size = classifier, classifier.feature_dim, classifier.size

    @cached_property
    def weights_hash(self) -> str:
        return self.classifier.fingerprint()

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]:
        return self.classifier(images.to(next(self.classifier.parameters()).device)).features


class Network:
    """A network that makes embeddings of normalised images of one size (H, W)."""

    def __init__(self, name: str, net: nn.Module, embed: Callable[[Tensor], Tensor], size, mean, std, mode: str):
        self.name, self.net, self.embed, self.size, self.mode = (
            name,
            net.eval().requires_grad_(False),
            embed,
            size,
            mode,
        )
        self.mean, self.std = list(mean), list(std)
        self.dim = self.encode(torch.zeros(1, 3, *size)).shape[1]

    @cached_property
    def weights_hash(self) -> str:
        return short_hash([content_hash(self.net), self.size, self.mean, self.std, self.mode])

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]:
        return self.raw(tv.normalize(self._sized(images), self.mean, self.std))

    @torch.no_grad()
    def raw(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B d"]:
        """Of pixels as the network takes them."""
        own = next(self.net.parameters())
        return self.embed(pixels.to(own.device, own.dtype)).float()

    def to(self, device, dtype=None) -> "Network":
        self.net.to(device, dtype)
        return self

    def _sized(self, images: Tensor) -> Tensor:
        """Shorter side first, then the centre, as everywhere."""
        if tuple(images.shape[-2:]) == tuple(self.size):
            return images
        H, W = images.shape[-2:]
        scale = max(self.size[0] / H, self.size[1] / W)
        whole = [max(s, round(side * scale)) for s, side in zip(self.size, (H, W), strict=True)]
        return tv.center_crop(tv.resize(images, whole, InterpolationMode(self.mode), antialias=True), list(self.size))


def check_encoder(name: str) -> None:
    """Raises OutskirtsError for a name that `load_encoder` does not know, or a folder that is not there; nothing is loaded."""
    kind, _, ident = name.partition(":")
    if name != "classifier" and not (kind in ("timm", "clip") and ident):
        raise OutskirtsError(f"no encoder {name!r}; give classifier, timm:ID or clip:ID")
    if kind == "clip":
        check_place(f"encoder={name}", ident, parts=True)
    if kind == "timm":
        check_timm(ident.partition("?")[0])


def check_place(what: str, ident: str, *, parts: bool = False) -> None:
    """Raises OutskirtsError where `ident` is no folder and cannot be a Hub id, OWNER/NAME, or with `parts` one of its folders."""
    if not (Path(ident).is_dir() or re.fullmatch(HUB_ID + "(/.+)?" * parts, ident)):
        raise OutskirtsError(f"{what}: there is no folder {ident!r}; give one that is there, or a Hub id, OWNER/NAME")


def load_encoder(name: str, classifier=None, *, device="cpu", precision: str = "fp32") -> Encoder:
    """The encoder `name`: `classifier` (the given one), `timm:ID` (its pooled features) or `clip:ID`.

    `clip:ID` is a CLIP model with image projection, a folder or Hub id of safetensors weights, `OWNER/NAME/SUBFOLDER` where
    it lies in a part of one; `timm:ID` takes `?pretrained=false` and `?weights=FILE` as classifiers do.
    """
    check_encoder(name)
    kind, _, ident = name.partition(":")
    if name == "classifier":
        if classifier is None:
            raise OutskirtsError(
                "encoder=classifier, and no classifier was given; give one, or encoder=timm:ID or clip:ID"
            )
        return Features(classifier)
    if kind == "timm":
        return _timm(name).to(device)
    return _clip(name, ident).to(device, torch.bfloat16 if precision == "bf16" else None)


def embeddings(
    encoder: Encoder, images: Images, folder: Path | None = None, *, batch_size: int = 256, progress: bool = False
) -> Float[Tensor, "N d"]:
    """The embedding of every image, on the CPU; kept in `folder` under the hash of encoder and images.

    Raises OutskirtsError where one is not finite, naming the image.
    """
    key = short_hash([encoder.name, encoder.weights_hash, images.fingerprint])
    path = None if folder is None else folder / f"embeddings-{key}.safetensors"
    if path is not None and path.exists():
        return load_file(path)["embeddings"]
    todo = range(-(-len(images) // batch_size))
    size = None if images.pixels is not None else getattr(encoder, "size", None)
    batches = images.batches(batch_size, size=size)
    parts = [
        encoder.encode(batch).float().cpu()
        for _, (batch, _) in zip(track(todo, f"embeddings by {encoder.name}", show=progress), batches, strict=True)
    ]
    found = torch.cat(parts)
    if not (fine := found.isfinite().all(1)).all():
        raise OutskirtsError(
            f"the embedding of image {int((~fine).nonzero()[0])} of {images.name} by {encoder.name} is not finite ({int((~fine).sum())} of "
            f"{len(found)} are not); check the image and the encoder's weights, or take fp32"
        )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": found.contiguous()}, f"{path}.tmp")
        Path(f"{path}.tmp").replace(path)
    return found


def _timm(name: str) -> Network:
    net, facts = build(name)
    if not hasattr(net, "forward_head"):
        raise OutskirtsError(f"{name} has no pooled features; give another timm model, or encoder=clip:ID")

    def embed(x: Tensor) -> Tensor:
        return net.forward_head(net.forward_features(x), pre_logits=True)

    return Network(name, net, embed, tuple(facts["size"]), facts["mean"], facts["std"], facts["interpolation"])


def _clip(name: str, ident: str) -> Network:
    from transformers import CLIPVisionModelWithProjection
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    owner, _, rest = ident.partition("/")
    repo, _, subfolder = rest.partition("/")
    where = {} if Path(ident).is_dir() or not subfolder else {"subfolder": subfolder}
    try:
        net, info = CLIPVisionModelWithProjection.from_pretrained(
            f"{owner}/{repo}" if where else ident, use_safetensors=True, output_loading_info=True, **where
        )
    except (OSError, ValueError) as e:
        first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise OutskirtsError(f"cannot load CLIP model {ident!r} ({first[:200]}); give a folder or a Hub id") from e
    complete(info, f"CLIP model {ident!r}", "a CLIP image encoder with its projection")
    return clip_encoder(name, net, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def clip_encoder(name: str, net: nn.Module, mean, std) -> Network:
    """The projection of a CLIPVisionModelWithProjection, not normalised."""
    side = net.config.image_size
    return Network(name, net, lambda x: net(x).image_embeds, (side, side), mean, std, "bicubic")


def complete(info: dict, what: str, wanted: str) -> None:
    """Raises OutskirtsError where from_pretrained (its loading info) left weights at random: the library only warns."""
    if missing := sorted(info["missing_keys"]):
        others = sorted(info["unexpected_keys"])
        raise OutskirtsError(
            f"{what} lacks {len(missing)} weights, first {missing[0]}"
            f"{f', and has {len(others)} others, first {others[0]}' if others else ''}; give {wanted}"
        )
