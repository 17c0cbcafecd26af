"""RCG's published checkpoints (arXiv 2312.03701) as a folder that `mage.load_decoder` opens.

What they call each weight is written beside the module that has it, as `published_name`.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json, writing
from outskirts.mage import CONFIG, MAGE, MAGEConfig
from outskirts.mage import published_name as mage_name
from outskirts.mocov3 import MoCoV3, MoCoV3Config, spelt
from outskirts.mocov3 import published_name as moco_name
from outskirts.pickles import read_state
from outskirts.representation import RDM, PerSample, Representation, abar
from outskirts.stamp import file_hash
from outskirts.tensors import compare, filled, write
from outskirts.vqgan import VQGAN, VQGANConfig, folded, published_shape
from outskirts.vqgan import published_name as vqgan_name


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint does not say of itself. The defaults are those of MAGE-L."""

    name: str = "mage-l"
    mage: MAGEConfig = field(default_factory=MAGEConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    encoder: MoCoV3Config = field(default_factory=MoCoV3Config)
    temperature: float = 11.0


def published(width: int) -> Sizes | None:
    """The sizes of RCG's MAGE with word embeddings of this width."""
    base = {"width": 768, "depth": 12, "heads": 12}
    b = Sizes("mage-b", MAGEConfig(**base), encoder=MoCoV3Config(**base), temperature=6.0)
    return {1024: Sizes(), 768: b}.get(width)


UNREAD = re.compile(
    r"(cls_token|pos_embed|mask_token|decoder_pos_embed|decoder_pred\..*|patch_embed\..*|token_emb\.position_ids)$"
)
"""Weights of MAGE that are left of a masked autoencoder: no pass reads them."""


def convert(
    mage: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    encoder: str | os.PathLike | None = None,
    rdm: str | os.PathLike | None = None,
    sizes: Sizes | None = None,
) -> Path:
    """The folder `out` with MAGE, its VQGAN and its encoder and, in `out/rdm`, the representation diffusion model.

    mage        `mage-l.pth` or `mage-b.pth`, which hold the next two as well;
    tokenizer   `vqgan_jax_strongaug.ckpt`, and encoder `vitl.pth.tar`: where they do not;
    rdm         `rdm-mocov3vitl.pth`, whose running averages are taken, as RCG does to sample;
    sizes       of models that RCG did not publish.

    Raises OutskirtsError for a file with more than tensors and plain values in it, or with other keys or shapes.
    """
    whole = read_state(mage)
    sizes = sizes or _sizes(whole, mage)
    own = {k: v for k, v in whole.items() if not (k.startswith(("vqgan.", "pretrained_encoder.")) or UNREAD.match(k))}
    codes = (
        read_state(tokenizer) if tokenizer else _inside("vqgan", whole, mage, "--tokenizer vqgan_jax_strongaug.ckpt")
    )
    moco = _moco(encoder) if encoder else _inside("pretrained_encoder", whole, mage, "--encoder vitl.pth.tar")
    with torch.device("meta"):
        nets = MAGE(sizes.mage), VQGAN(sizes.vqgan), MoCoV3(sizes.encoder)
    name = partial(vqgan_name, levels=len(sizes.vqgan.channels))
    parts = {
        "mage": _taken(nets[0], own, mage_name, mage),
        "vqgan": folded(_taken(nets[1], codes, name, tokenizer or mage, published_shape), nets[1].state_dict()),
        "encoder": _taken(nets[2], moco, moco_name, encoder or mage),
    }
    density = _rdm(rdm, sizes.mage.dim) if rdm else None
    out = writable(out)
    with writing(out):
        if density:
            density.save(out / "rdm")
        for part, state in parts.items():
            write(out / f"{part}.safetensors", state)
        files = {Path(f).name: file_hash(f) for f in (mage, tokenizer, encoder, rdm) if f}
        write_json(out / CONFIG, {"format": 1, **asdict(sizes), "files": files})  # last: it says that all is there
    return out


def rdm_name(key: str) -> str:
    """What the checkpoint calls the running average of our weight `key` of an RDM: without dots, which buffers cannot have."""
    for ours, theirs in (
        ("time.linear_1", "time_embed.0"),
        ("time.linear_2", "time_embed.2"),
        ("enter", "input_proj"),
        (".first.", ".in_layers."),
        (".time.", ".emb_layers."),
        (".second.2", ".out_layers.3"),  # theirs has a dropout in between
        (".second.", ".out_layers."),
        ("leave", "out"),
    ):
        key = key.replace(ours, theirs)
    return "diffusion_model" + re.sub("^blocks", "res_blocks", key).replace(".", "")


def _rdm(path: str | os.PathLike, dim: int) -> Representation:
    state = read_state(path)
    enter = state.get("model.diffusion_model.input_proj.weight")
    if enter is None:
        raise OutskirtsError(f"{path} has no model.diffusion_model.input_proj.weight; give RCG's rdm-mocov3vitl.pth")
    if any("context_layers" in k for k in state):
        raise OutskirtsError(f"{path} asks for a class; give the unconditional one, rdm-mocov3vitl.pth")
    if enter.shape[1] != dim:
        raise OutskirtsError(
            f"{path} has representations of size {enter.shape[1]} and MAGE of {dim}; give those that belong together"
        )
    if "alphas_cumprod" in state and not torch.allclose(state["alphas_cumprod"].double(), abar(), rtol=0, atol=1e-5):
        raise OutskirtsError(f"{path} was trained with another noise schedule; RCG's rises from 0.0015 to 0.0195")
    blocks = len({k.split(".")[3] for k in state if k.startswith("model.diffusion_model.res_blocks.")})
    build = partial(RDM, dim, len(enter), blocks)
    with torch.device("meta"):
        net = build()
    averages = _under("model_ema.", state)
    averages = {k: v for k, v in averages.items() if k not in ("decay", "num_updates")}
    network = filled(build, _taken(net, averages, rdm_name, path), path)
    facts = {"dim": dim, "width": len(enter), "blocks": blocks, "source": Path(path).name}
    return Representation(network, PerSample(dim), facts)


def _sizes(state: Mapping[str, Tensor], path) -> Sizes:
    words = state.get("token_emb.word_embeddings.weight")
    sizes = None if words is None else published(words.shape[1])
    if sizes is None:
        found = "no MAGE" if words is None else f"a MAGE of width {words.shape[1]}"
        raise OutskirtsError(f"{path} holds {found}; accepted: RCG's mage-l.pth (width 1024) and mage-b.pth (768)")
    return sizes


def _moco(path: str | os.PathLike) -> dict[str, Tensor]:
    """The base encoder of a MoCo v3 checkpoint, under the names of RCG's own module."""
    found = _under("module.base_encoder.", {spelt(k): v for k, v in read_state(path).items()})
    if not found:
        raise OutskirtsError(
            f"{path} has no weights under 'module.base_encoder'; give a MoCo v3 checkpoint, RCG's vitl.pth.tar"
        )
    return found


def _inside(part: str, state: Mapping[str, Tensor], path, option: str) -> dict[str, Tensor]:
    found = _under(f"{part}.", state)
    if not found:
        raise OutskirtsError(f"{path} has no weights under {part!r}; give them as well, with {option}")
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _taken(
    net: nn.Module, state: Mapping[str, Tensor], name: Callable, where, shape: Callable = lambda _key, ours: ours
):
    """Our key -> tensor, where `name` tells what the checkpoint calls our keys and `shape` the shape it has there.

    Raises OutskirtsError, by the names of the checkpoint, where it holds other weights.
    """
    own = net.state_dict()
    names = {key: theirs for key in own if (theirs := name(key)) is not None}
    compare({theirs: shape(key, own[key]) for key, theirs in names.items()}, state, where)
    return {key: state[theirs] for key, theirs in names.items()}
