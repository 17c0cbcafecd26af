"""`random:NAME`: tiny models of the real diffusers and transformers classes with random weights, to run a chain before it is paid for.

    random:inpaint      Stable Diffusion 1.x in-painting, 16x16 images and larger (`image_size`)
    random:text2img     the same without the channels for in-painting
    random:clip         a whole CLIP model, text and images, for 16x16 images

They are made on the spot from a fixed seed, never downloaded, and go through the loaders as any folder does. They have learned nothing:
numbers that come out of them show that the parts fit together, and nothing else.
"""

import atexit
import contextlib
import json
import logging
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean

PREFIX = "random:"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
"""What the tokenizer reads; it knows no words."""
TOKENS = 77
"""Of a text, CLIP's number."""
log = logging.getLogger("outskirts")


def place(name: str) -> str:
    """The folder of the model `random:NAME`, made at the first call; any other name as it is.

    Raises OutskirtsError for a NAME that is not there.
    """
    return str(_made(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else name


@cache
def _made(name: str) -> Path:
    makers = {
        "inpaint": lambda folder: stable_diffusion(folder, in_channels=9, tokens=TOKENS),
        "text2img": lambda folder: stable_diffusion(folder, tokens=TOKENS),
        "clip": lambda folder: clip(folder, tokens=TOKENS),
    }
    if name not in makers:
        known = ", ".join(PREFIX + n for n in makers)
        raise OutskirtsError(f"no model {PREFIX + name!r}{did_you_mean(name, list(makers))}; known: {known}")
    folder = Path(tempfile.mkdtemp(prefix="outskirts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("%s has random weights: mechanics only, numbers that come out of it mean nothing", PREFIX + name)
    with _without_bars():
        return makers[name](folder)


def stable_diffusion(
    folder: Path, *, prediction_type: str = "epsilon", in_channels: int = 4, tokens: int = TOKENS
) -> Path:
    """A Stable Diffusion 1.x folder: 8x8 latents, 16x16 images, 1.x's schedule and its PNDM scheduler; 9 channels in-paint."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
        text = CLIPTextModel(CLIPTextConfig(**_text(tokens)))
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True,
        set_alpha_to_one=False, prediction_type=prediction_type,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, text, tokenizer(folder / "words", tokens), unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "sd", safe_serialization=True)
    return folder / "sd"


def clip(folder: Path, *, tokens: int = TOKENS) -> Path:
    """A whole CLIP model, text and images, with its projections, tokenizer and preprocessing."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(**_text(tokens), projection_dim=8)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    where = folder / "clip"
    model.save_pretrained(where)
    tokenizer(folder / "clip words", tokens).save_pretrained(where)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(where)
    return where


def tokenizer(folder: Path, tokens: int = TOKENS):
    """CLIP's byte-pair tokenizer over single letters."""
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *[f"{c}</w>" for c in LETTERS]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=tokens)


@contextlib.contextmanager
def _without_bars():
    """A file of 50 kB needs no progress bar."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _text(tokens: int) -> dict[str, int]:
    """Of both text encoders."""
    return {
        "vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": tokens, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
