"""Tiny random components of the real diffusers and transformers classes, saved as folders that the loaders open."""

from functools import partial
from pathlib import Path

import torch

from outskirts.random_components import clip, stable_diffusion, tokenizer

# texts of 16 tokens, which are quicker to read than CLIP's 77
tiny_stable_diffusion = partial(stable_diffusion, tokens=16)
tiny_clip = partial(clip, tokens=16)
tiny_tokenizer = partial(tokenizer, tokens=16)


def tiny_vae(folder: Path) -> Path:
    """An AutoencoderTiny folder."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    vae.save_pretrained(folder / "taesd")
    return folder / "taesd"


def tiny_pixel(folder: Path, *, classes=("a", "b", "c"), side: int = 8, channels: int = 3, **kwargs) -> Path:
    """A class-conditional pixel model as `fit-diffusion` leaves it, untrained."""
    from outskirts.data import Images
    from outskirts.fit_diffusion import fit_diffusion
    from outskirts.recipe import DiffusionSettings

    g = torch.Generator().manual_seed(0)
    n = 4 * len(classes)
    pixels = torch.randint(0, 256, (n, channels, side, side), generator=g, dtype=torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.arange(n) % len(classes)
    images = Images("random", list(classes), labels, pixels.contiguous())
    settings = DiffusionSettings(channels=(8, 8), steps=1, batch_size=2, **kwargs)
    fit_diffusion(images, folder, settings, progress=False)
    return folder


def listening(folder: Path) -> Path:
    """The pixel model in `folder` with louder class embeddings: its norms, of one channel a group, take out what they add."""
    from safetensors.torch import load_file, save_file

    path = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(path)
    save_file({**weights, "class_embedding.weight": 1e4 * weights["class_embedding.weight"].float()}, path)
    return folder
