"""Tiny random components of the real diffusers and transformers classes, saved as folders that the loaders open."""

import json
from pathlib import Path

import torch


def tiny_stable_diffusion(folder: Path, *, prediction_type: str = "epsilon", in_channels: int = 4) -> Path:
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
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=1,
            )
        )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True,
        set_alpha_to_one=False, prediction_type=prediction_type,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, text, tiny_tokenizer(folder / "words"), unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "sd", safe_serialization=True)
    return folder / "sd"


def tiny_tokenizer(folder: Path):
    """CLIP's byte-pair tokenizer over single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{c}</w>" for c in letters]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


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


def tiny_clip(folder: Path) -> Path:
    """A whole CLIP model, text and images, with its projections, tokenizer and preprocessing."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=1, projection_dim=8,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    model.save_pretrained(folder / "clip")
    tiny_tokenizer(folder / "clip words").save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        folder / "clip"
    )
    return folder / "clip"
