"""A diffusion model with fresh weights for a set of images: its codec, its network, its noise schedule."""

import math

import torch
from torch import Tensor

from outskirts.codec import PatchPCA
from outskirts.errors import OutskirtsError
from outskirts.load_diffusion import load_diffusion
from outskirts.recipe import DiffusionSettings


def codec_of(pixels: Tensor, settings: DiffusionSettings, device="cpu") -> tuple[PatchPCA | None, bool]:
    """(the codec that the settings ask for on `device`, are the images grey?) of UInt8[N, 3, H, W]."""
    grey = bool((pixels[:, :1] == pixels).all())
    natural = not grey and min(pixels.shape[-2:]) >= 16 and not any(side % settings.patch for side in pixels.shape[-2:])
    if settings.codec == "none" or (settings.codec == "auto" and (torch.device(device).type != "cpu" or not natural)):
        return None, grey
    some = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:5000]]
    return PatchPCA(settings.patch, settings.codec_components).fit(some.float() / 255), grey


def new_model(pixels: Tensor, K: int, settings: DiffusionSettings, codec, grey: bool, **options):
    """A UNet2DModel with fresh weights for these images, K classes and a null class; `options` of UNet2DModel differ."""
    from diffusers import UNet2DModel

    size = tuple(pixels.shape[-2:])
    if codec is not None:
        size = (size[0] // codec.patch, size[1] // codec.patch)
    depth = len(settings.channels)
    if any(s % 2 ** (depth - 1) for s in size):
        raise OutskirtsError(
            f"a {size[0]}x{size[1]} grid cannot be halved {depth - 1} times; give fewer channels, or another --size H W"
        )
    coarse = depth - 1  # attention where the grid is small; the finest level is convolutional
    channels = codec.components if codec is not None else 1 if grey else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return UNet2DModel(
            sample_size=size[0] if size[0] == size[1] else size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=settings.layers_per_block,
            block_out_channels=settings.channels,
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * coarse),
            up_block_types=(*["AttnUpBlock2D"] * coarse, "UpBlock2D"),
            attention_head_dim=min(32, *settings.channels),
            norm_num_groups=math.gcd(16, *settings.channels),
            **{"num_class_embeds": K + 1, **options},
        )


def go_on(model, codec: PatchPCA | None, settings: DiffusionSettings) -> PatchPCA | None:
    """`model` with the weights of the diffusion model `settings.start`; returns that model's codec, on whose grid they work."""
    start = load_diffusion(settings.start)
    kinds = [None if c is None else (c.patch, c.components) for c in (codec, getattr(start, "codec", None))]
    own, given = (
        {k: tuple(v.shape) for k, v in net.state_dict().items()} | {"codec": kind}
        for net, kind in zip((model, start.unet), kinds, strict=True)
    )
    if own != given:
        other = next(k for k in (*own, *given) if own.get(k) != given.get(k))
        raise OutskirtsError(
            f"start={settings.start}: its {other} is {given.get(other, 'absent')} where these settings and images make "
            f"{own.get(other, 'none')}; give the channels, layers_per_block, codec and classes it was made with"
        )
    model.load_state_dict(start.unet.state_dict())
    return start.codec


def new_scheduler(settings: DiffusionSettings):
    from diffusers import DDIMScheduler

    # trailing: few-step sampling starts at the noisiest level, where training had it
    return DDIMScheduler(
        beta_schedule=settings.schedule,
        prediction_type=settings.prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
    )
