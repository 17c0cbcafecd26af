"""Tiny checkpoints with the names, the wrappings and the misspellings of RCG's."""

import argparse

import torch

import rcg_reference as reference
from outskirts.mage import MAGEConfig
from outskirts.mocov3 import MoCoV3Config
from outskirts.rcg import Sizes
from outskirts.representation import abar
from outskirts.vqgan import VQGANConfig

TINY = Sizes(
    "tiny",
    MAGEConfig(width=16, depth=2, heads=2, decoder_depth=1, decoder_heads=4, tokens=16, codes=12, vocabulary=18, dim=6),
    VQGANConfig(channels=(4, 8, 6), layers=2, codes=12, code_dim=5, groups=2),
    MoCoV3Config(width=8, depth=15, heads=2, patch=4, size=8, crop=16, hidden=7, dim=6),
    temperature=3.0,
)
MISSPELT = {
    "blocks.13.norm1.": "blocks.13.norm13.",
    "blocks.13.mlp.fc1.": "blocks.13.mlp.fc13.",
    "blocks.14.norm2.": "blocks.14.norm14.",
    "blocks.14.mlp.fc2.": "blocks.14.mlp.fc14.",
}
WIDTH, BLOCKS = 12, 3  # of the tiny RDM


def mage_shapes(c):
    return reference.mage_shapes(c.width, c.depth, c.decoder_depth, c.tokens, c.codes, c.vocabulary, c.dim)


def vqgan_shapes(c):
    return reference.vqgan_shapes(c.channels, c.layers, c.codes, c.code_dim)


def moco_shapes(c):
    return reference.moco_shapes(c.width, c.depth, c.patch, c.size, c.hidden, c.dim)


def rdm_shapes(dim, width, blocks):
    """The names of the RDM in rdm-mocov3vitl.pth, without prefix."""
    sizes = {
        "time_embed.0": (256, width),
        "time_embed.2": (256, 256),
        "input_proj": (width, dim),
        "out.2": (dim, width),
    }
    norms = ["out.0"]
    for i in range(blocks):
        name = f"res_blocks.{i}"
        sizes |= {f"{name}.in_layers.2": (width, width), f"{name}.emb_layers.1": (width, 256)}
        sizes |= {f"{name}.out_layers.3": (width, width)}
        norms += [f"{name}.in_layers.0", f"{name}.out_layers.0"]
    shapes = {f"{k}.weight": v for k, v in sizes.items()} | {f"{k}.bias": v[:1] for k, v in sizes.items()}
    return shapes | {f"{k}.{p}": (width,) for k in norms for p in ("weight", "bias")}


MAGE_STATE = reference.random(mage_shapes(TINY.mage), seed=1)
VQGAN_STATE = reference.random(vqgan_shapes(TINY.vqgan), seed=2)
MOCO_STATE = reference.random(moco_shapes(TINY.encoder), seed=3)
RDM_STATE = reference.random(rdm_shapes(TINY.mage.dim, WIDTH, BLOCKS), seed=4)
AVERAGES = reference.random(rdm_shapes(TINY.mage.dim, WIDTH, BLOCKS), seed=5)
OPTIONS = argparse.Namespace(model="mage_vit_large_patch16", temp=11.0, output_dir="out")


def save(path, model, key="model", **more):
    torch.save({key: model, "epoch": 199, "args": OPTIONS, "optimizer": {"state": {0: torch.ones(2)}}, **more}, path)
    return path


def published_files(folder):
    """RCG's four files, tiny."""
    whole = MAGE_STATE | {f"vqgan.{k}": v for k, v in VQGAN_STATE.items()}
    whole |= {f"pretrained_encoder.{k}": v for k, v in MOCO_STATE.items()}
    moco = dict(MOCO_STATE)
    for right, wrong in MISSPELT.items():
        moco = {k.replace(right, wrong): v for k, v in moco.items()}
    moco = {f"module.base_encoder.{k}": v for k, v in moco.items()} | {"module.predictor.0.weight": torch.ones(1)}
    rdm = {f"model.diffusion_model.{k}": v for k, v in RDM_STATE.items()}
    rdm |= {"model_ema." + f"diffusion_model.{k}".replace(".", ""): v for k, v in AVERAGES.items()}
    rdm |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    rdm |= {"alphas_cumprod": abar().float(), "cond_stage_model.embedding.weight": torch.ones(1, 512)}
    return {
        "mage": save(folder / "mage-l.pth", whole, model_ema=None),
        "alone": save(folder / "alone.pth", MAGE_STATE),
        "tokenizer": save(folder / "vqgan_jax_strongaug.ckpt", VQGAN_STATE, "state_dict"),
        "encoder": save(folder / "vitl.pth.tar", moco, "state_dict", arch="vit_large"),
        "rdm": save(folder / "rdm-mocov3vitl.pth", rdm),
    }
