"""Tiny random components of the real Kandinsky 2.2 and Stable unCLIP classes, saved as folders that the decoders open."""

from pathlib import Path

import torch


def tiny_vision(projection: int = 8):
    """A CLIP image encoder with its projection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=projection,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPVisionModelWithProjection(config)


def tiny_kandinsky(folder: Path, dim: int = 8) -> tuple[Path, Path]:
    """(decoder, image encoder): 16x16 images."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            encoder_hid_dim=dim,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=16,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
        )
        movq = VQModel(
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False)
    KandinskyV22Pipeline(unet, scheduler, movq).save_pretrained(folder / "kandinsky", safe_serialization=True)
    tiny_vision(dim).save_pretrained(folder / "prior" / "image_encoder")
    return folder / "kandinsky", folder / "prior" / "image_encoder"


def tiny_unclip(folder: Path, dim: int = 8) -> Path:
    """Image variations at 16x16."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableUnCLIPImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel

    from tiny import tiny_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=1,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * dim,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
    pipeline = StableUnCLIPImg2ImgPipeline(
        CLIPImageProcessor(crop_size=16, size=16),
        tiny_vision(dim),
        StableUnCLIPImageNormalizer(embedding_dim=dim),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tiny_tokenizer(folder / "words"),
        text,
        unet,
        DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
        ),
        vae,
    )
    pipeline.save_pretrained(folder / "unclip", safe_serialization=True)
    return folder / "unclip"
