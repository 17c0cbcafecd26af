"""Decoders of CLIP image embeddings that exist already: Kandinsky 2.2 and Stable unCLIP, through their diffusers pipelines.

What either does not tell (diffusers 0.42): Kandinsky needs the embedding of a black input as its negative one, moves nothing to a
device without guidance, and returns raw [-1, 1]; unCLIP needs as many empty prompts as embeddings. The weights are loaded part by
part, because a pipeline leaves what a checkpoint lacks at random and only warns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.encoders import Network, clip_encoder, complete
from outskirts.errors import OutskirtsError
from outskirts.load_diffusion import read_index
from outskirts.representation import Standard
from outskirts.stamp import short_hash
from outskirts.tensors import content_hash

Paint = Callable[[Tensor, list[torch.Generator]], Tensor]
"""Embeddings [B, d], one generator each -> images [B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True)
class HubDecoder:
    """CLIP image embeddings, as they leave the projection <-> images in [0, 1] at `native_size`."""

    name: str
    encoder: Network
    pipeline: Any
    paint: Paint
    native_size: tuple[int, int]
    normalizer: nn.Module

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def size(self) -> tuple[int, int]:
        return self.encoder.size

    @cached_property
    def weights_hash(self) -> str:
        modules = [m for m in self.pipeline.components.values() if isinstance(m, nn.Module)]
        return short_hash([content_hash(*modules), self.encoder.weights_hash])

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]:
        return self.encoder.encode(images)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B d"], generators: Sequence[torch.Generator]) -> Float[Tensor, "B 3 H W"]:
        unet = self.pipeline.unet
        return self.paint(z.to(unet.device, unet.dtype), list(generators)).float().clamp(0, 1)


def kandinsky(
    ident: str,
    encoder,
    *,
    device="cpu",
    precision: str = "fp32",
    steps: int = 25,
    scale: float = 4.0,
    side: int | None = None,
    components: int | None = None,
) -> HubDecoder:
    """Kandinsky 2.2's decoder `ident`, a folder or Hub id, for the embeddings of `encoder`, the CLIP of its prior (`clip:`)."""
    from diffusers import DDIMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    name = f"kandinsky:{ident}"
    part = _parts(ident, name, KandinskyV22Pipeline, precision)
    unet, movq = part(UNet2DConditionModel, "unet"), part(VQModel, "movq")
    _fits(name, encoder, unet.config.encoder_hid_dim)
    scheduler = _scheduler(ident, DDIMScheduler)
    pipeline = _quiet(KandinskyV22Pipeline(unet, scheduler, movq), device)
    negative = encoder.raw(torch.zeros(1, 3, *encoder.size))  # the prior's zero embedding: black after normalisation
    height = width = side or unet.config.sample_size * pipeline.movq_scale_factor

    def paint(z: Tensor, generators: list[torch.Generator]) -> Tensor:
        images = pipeline(
            image_embeds=z,
            negative_image_embeds=negative.to(z).expand_as(z),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images
        return images[..., :height, :width] / 2 + 0.5

    return HubDecoder(name, encoder, pipeline, paint, (height, width), _normalizer(encoder.dim, components))


def unclip(
    ident: str,
    *,
    device="cpu",
    precision: str = "fp32",
    steps: int = 25,
    scale: float = 10.0,
    side: int | None = None,
    components: int | None = None,
) -> HubDecoder:
    """Stable unCLIP's image variations `ident`, a folder or Hub id, with the image encoder that comes with it."""
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    name = f"unclip:{ident}"
    part = _parts(ident, name, StableUnCLIPImg2ImgPipeline, precision)
    unet, vae = part(UNet2DConditionModel, "unet"), part(AutoencoderKL, "vae")
    text, normalizer = part(CLIPTextModel, "text_encoder"), part(StableUnCLIPImageNormalizer, "image_normalizer")
    net = part(CLIPVisionModelWithProjection, "image_encoder")
    processor = CLIPImageProcessor.from_pretrained(ident, subfolder="feature_extractor")
    encoder = clip_encoder(f"{name}/image_encoder", net, processor.image_mean, processor.image_std)
    _fits(name, encoder, unet.config.projection_class_embeddings_input_dim // 2)  # the other half tells the noise level
    pipeline = StableUnCLIPImg2ImgPipeline(
        processor,
        net,
        normalizer,
        _scheduler(ident, DDPMScheduler, "image_noising_scheduler"),
        CLIPTokenizer.from_pretrained(ident, subfolder="tokenizer"),
        text,
        unet,
        _scheduler(ident, DDIMScheduler),
        vae,
    )
    pipeline = _quiet(pipeline, device)
    height = width = side or unet.config.sample_size * pipeline.vae_scale_factor

    def paint(z: Tensor, generators: list[torch.Generator]) -> Tensor:
        return pipeline(
            prompt=[""] * len(z),
            image_embeds=z,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generators,
            output_type="pt",
        ).images

    return HubDecoder(name, encoder, pipeline, paint, (height, width), _normalizer(encoder.dim, components))


def _parts(ident: str, name: str, pipeline, precision: str) -> Callable[[type, str], nn.Module]:
    """A function that loads a part of the pipeline `ident`, whole, from safetensors."""
    index = read_index(Path(ident) if Path(ident).is_dir() else ident, ident)
    if index.get("_class_name") != pipeline.__name__:
        raise OutskirtsError(
            f"decoder={name}: {ident} is a {index.get('_class_name')}; give a folder or Hub id of a {pipeline.__name__}"
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def part(cls: type, subfolder: str) -> nn.Module:
        try:
            model, info = cls.from_pretrained(
                ident, subfolder=subfolder, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError) as e:
            first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
            raise OutskirtsError(
                f"decoder={name}: {subfolder} cannot be loaded ({first[:200]}); give safetensors weights"
            ) from e
        complete(info, f"decoder={name}: {subfolder}", f"the weights of a {pipeline.__name__}")
        return model.eval().requires_grad_(False)

    return part


def _scheduler(ident: str, cls: type, subfolder: str = "scheduler"):
    """The scheduler that the model names where it is of this kind or another, as this kind: these take one generator an image."""
    return cls.from_config(cls.load_config(ident, subfolder=subfolder))


def _quiet(pipeline, device):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _fits(name: str, encoder, dim: int) -> None:
    if not isinstance(encoder, Network) or encoder.dim != dim:
        raise OutskirtsError(
            f"decoder={name} reads CLIP image embeddings of {dim} numbers, and encoder={encoder.name} makes {encoder.dim}; give "
            "encoder=clip:ID, the image encoder that it was trained with"
        )


def _normalizer(dim: int, components: int | None) -> Standard:
    return Standard(dim, components, keep_norm=True)
