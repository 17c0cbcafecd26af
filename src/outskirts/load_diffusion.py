"""`load_diffusion`: a diffusion model by name, its kind recognised from its model_index.json. Safetensors only."""

import contextlib
import json
import logging
from pathlib import Path

import torch

from outskirts.codec import PatchPCA
from outskirts.denoisers import LatentDiffusion, PixelDiffusion
from outskirts.errors import OutskirtsError
from outskirts.inpaint import CHANNELS, Inpainting
from outskirts.random_components import place

SHIPPED = Path(__file__).parent / "weights"
"""Models that come with the package: `digits`."""


def load_diffusion(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    compile: bool = False,
    tiny_vae: str | None = None,
    image_size: int | None = None,
    checkpointing: bool = False,
) -> PixelDiffusion | LatentDiffusion:
    """The diffusion model called `name`: `digits` (ships with the package), a diffusers folder, or a Hub id; for trying a chain
    out, random:inpaint and random:text2img, tiny and with random weights.

    Safetensors only: a pickle is refused. Latent models take tiny_vae (a folder or id such as madebyollin/taesd),
    image_size and checkpointing; a pixel model given them is an error.
    """
    source = located(name)
    index = read_index(source, name)
    kwargs = {"precision": precision, "compile": compile}
    if "vae" in index:
        return _load_latent(
            source, name, device, tiny_vae, image_size=image_size, checkpointing=checkpointing, **kwargs
        )
    given = {"tiny_vae": tiny_vae, "image_size": image_size, "checkpointing": checkpointing or None}
    if any(v is not None for v in given.values()):
        wrong = next(k for k, v in given.items() if v is not None)
        raise OutskirtsError(f"{wrong} was given, but {name!r} is a pixel model; only latent models take it")
    return _load_pixel(source, name, device, **kwargs)


def located(name: str) -> Path | str:
    """The folder of the diffusion model `name`, as a path; of one that is on the Hub, or nowhere, the name itself."""
    folders = [SHIPPED / name] * name.isidentifier() + [Path(place(name))]
    return next((f for f in folders if f.is_dir()), name)


def _load_pixel(source, name: str, device: str, **kwargs) -> PixelDiffusion:
    from diffusers import DDIMScheduler, UNet2DModel

    with _reading(name):
        unet = UNet2DModel.from_pretrained(source, subfolder="unet", use_safetensors=True, torch_dtype=torch.float32)
        config = DDIMScheduler.load_config(source, subfolder="scheduler")
    facts, codec = pixel_facts(source), None
    if (Path(source) / "codec").is_dir():
        codec = PatchPCA.load(Path(source) / "codec")
    return PixelDiffusion(
        unet.to(device),
        config,
        codec=codec,
        classes=facts.get("classes", ()),
        null_label=facts.get("null_label"),
        **kwargs,
    )


def pixel_facts(source) -> dict:
    """What fit-diffusion noted of a pixel model, its classes among it; empty for one made elsewhere."""
    path = Path(source) / "outskirts.json"
    return json.loads(path.read_text()) if path.exists() else {}


def input_channels(name: str) -> int:
    """Of the UNet of the latent model `name`, from its configuration alone."""
    from diffusers import UNet2DConditionModel

    with _reading(name):
        return UNet2DConditionModel.load_config(located(name), subfolder="unet").get("in_channels", 4)


def _load_latent(source, name: str, device: str, tiny_vae: str | None, **kwargs) -> LatentDiffusion:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    weights = {"use_safetensors": True, "torch_dtype": torch.float32}
    with _reading(name):
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", **weights).to(device)
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **weights)
        text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        config = DDIMScheduler.load_config(source, subfolder="scheduler")
    with _reading(tiny_vae or ""):
        tiny = AutoencoderTiny.from_pretrained(tiny_vae, **weights) if tiny_vae else None
    kinds = {vae.config.latent_channels: LatentDiffusion, CHANNELS: Inpainting}
    if (channels := unet.config.in_channels) not in kinds:
        raise OutskirtsError(
            f"diffusion model {name!r} reads {channels} channels; give a text-to-image model (4) or an in-painting one ({CHANNELS})"
        )
    return kinds[channels](unet, vae, text_encoder, tokenizer, config, tiny_vae=tiny, **kwargs)


def read_index(source, name: str) -> dict:
    """The model_index.json of a diffusers folder or Hub id; raises OutskirtsError where it, or safe weights, are missing."""
    from diffusers import DiffusionPipeline

    path = Path(source)
    if path.is_dir() and not (path / "model_index.json").exists():
        raise OutskirtsError(f"diffusion folder {name!r} has no model_index.json; give a diffusers folder or a Hub id")
    if not path.is_dir() and "/" not in name:
        raise OutskirtsError(
            f"no diffusion model {name!r}: there is no such folder; give `digits`, a diffusers folder or a Hub id, OWNER/NAME"
        )
    unet = path / "unet"
    if unet.is_dir() and not list(unet.glob("*.safetensors")):
        pickles = ", ".join(p.name for p in [*unet.glob("*.bin"), *unet.glob("*.ckpt"), *unet.glob("*.pt")])
        found = f"only pickled weights ({pickles}), which are not read" if pickles else "no weights"
        raise OutskirtsError(f"diffusion folder {name!r} has {found} in unet/; save it with safe_serialization=True")
    with _reading(name):
        return DiffusionPipeline.load_config(source)


@contextlib.contextmanager
def _reading(name: str):
    """Library errors about missing or unsafe files, in one line of ours."""
    for library in ("huggingface_hub", "diffusers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # they tell the same in many lines before they raise
    try:
        yield
    except (OSError, ValueError) as e:
        first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise OutskirtsError(
            f"cannot load diffusion model {name!r} ({first[:200]}); give a diffusers folder with safetensors weights, a Hub id "
            "that is cached or can be reached, or `digits`"
        ) from e
