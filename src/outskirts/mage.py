"""MAGE conditional on a representation (RCG, arXiv 2312.03701), the image decoder of Bad-OOD: z -> tokens -> image.

A masked transformer fills in the 16x16 tokens of an image over twenty passes; `vqgan.py` turns them into pixels and
`mocov3.py` images into z. For use, not for training: the dropout and the weights that only training reads are left out.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.mocov3 import MoCoV3, MoCoV3Config
from outskirts.representation import PerSample
from outskirts.stamp import short_hash
from outskirts.tensors import content_hash, filled, read
from outskirts.vqgan import VQGAN, VQGANConfig

CONFIG, PARTS = "mage.json", ("mage", "vqgan", "encoder")


@dataclass(frozen=True)
class MAGEConfig:
    """Sizes; the defaults are those of RCG's MAGE-L."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    decoder_depth: int = 8
    decoder_heads: int = 16
    tokens: int = 256
    codes: int = 1024
    vocabulary: int = 2025
    """The codes, a thousand words that nothing uses, and the mask, which is the last."""
    dim: int = 256
    """Of the representation."""


class MAGE(nn.Module):
    """Tokens [B, L], some of them the mask, and a representation z [B, D] -> logits [B, L, codes]."""

    def __init__(self, config: MAGEConfig = MAGEConfig()):
        super().__init__()
        self.config = config
        width, norm = config.width, partial(nn.LayerNorm, eps=1e-6)
        self.words = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.tokens + 1, width)
        self.words_norm = norm(width)
        self.condition = nn.Linear(config.dim, width)
        self.null = nn.Parameter(torch.zeros(1, config.dim))
        """The representation of no image in particular, for classifier-free guidance."""
        self.blocks = nn.Sequential(
            *(Block(width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth))
        )
        self.norm = norm(width)
        self.bridge = nn.Linear(width, width)
        self.decoder_positions = nn.Parameter(torch.zeros(1, config.tokens + 1, width))
        self.decoder_blocks = nn.Sequential(
            *(Block(width, config.decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(config.decoder_depth))
        )
        self.decoder_norm = norm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(1, 1, config.vocabulary))

    @property
    def mask(self) -> int:
        return self.config.vocabulary - 1

    def forward(self, tokens: Int[Tensor, "B L"], z: Float[Tensor, "B D"]) -> Float[Tensor, "B L V"]:
        x = self.words_norm(self.words(tokens) + self.positions.weight[1:])
        x = torch.cat([self.condition(z)[:, None], x], 1)  # it stands first, without position or norm
        x = self.bridge(self.norm(self.blocks(x)))
        first, known = x[:, :1], (tokens != self.mask)[..., None]
        x = torch.cat([first, torch.where(known, x[:, 1:], first)], 1)  # masked places start from the encoded z
        x = self.decoder_norm(self.decoder_blocks(x + self.decoder_positions))
        codes = self.config.codes
        return F.linear(self.head(x[:, 1:]), self.words.weight[:codes]) + self.bias[..., :codes]


@torch.no_grad()
def generate(
    mage: MAGE,
    z: Float[Tensor, "B D"],
    generators: Sequence[torch.Generator],
    *,
    steps: int = 20,
    temperature: float = 11.0,
    cfg: float = 0.0,
) -> Int[Tensor, "B L"]:
    """Tokens for standardised representations, one generator each: a sample depends on z and its generator alone.

    In each of `steps` passes every masked place draws a token, and all but the least confident stay; the confidence is
    the token's log-probability with Gumbel noise of `temperature`, which falls to 0. `cfg` above 0 pushes the logits away
    from those without representation, more with every pass; a pass then costs twice as much.
    """
    length = mage.config.tokens
    noise = torch.stack([torch.rand(steps, 2, length, generator=g, device=g.device).to(z.device) for g in generators])
    tokens = torch.full((len(z), length), mage.mask, device=z.device)
    unknown = length
    for k in range(1, steps + 1):
        pick, jitter = noise[:, k - 1].unbind(1)
        logits = _guided(mage, tokens, z, cfg * k / steps)
        log_p = logits.log_softmax(-1)
        drawn = _draw(log_p, pick)
        masked = tokens == mage.mask
        filled_in = torch.where(masked, drawn, tokens)
        if k == steps:
            break
        unknown = max(1, min(unknown - 1, math.floor(length * math.cos(math.pi / 2 * (k / steps)))))
        gumbel = -(-jitter.log()).log()
        confidence = log_p.gather(-1, filled_in[..., None])[..., 0] + temperature * (1 - k / steps) * gumbel
        least = confidence.masked_fill(~masked, math.inf).topk(unknown, largest=False).indices
        tokens = filled_in.scatter(1, least, mage.mask)
    return filled_in


def _guided(mage: MAGE, tokens: Tensor, z: Tensor, scale: float) -> Float[Tensor, "B L V"]:
    if not scale:
        return mage(tokens, z)
    # RCG doubles the tokens but not a representation that is given to it, and stops there: both halves are made here
    both = mage(tokens.repeat(2, 1), torch.cat([z, mage.null.expand_as(z)]))
    given, without = both.chunk(2)
    return given + scale * (given - without)


def _draw(log_p: Float[Tensor, "B L V"], uniform: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The code at which the distribution function passes a uniform number."""
    cdf = log_p.exp().cumsum(-1)
    drawn = torch.searchsorted(cdf, uniform[..., None] * cdf[..., -1:], right=True)
    return drawn[..., 0].clamp(max=log_p.shape[-1] - 1)  # where rounding makes the product the total


class MAGEDecoder:
    """Images -> embeddings [B, dim] and z [B, dim] -> images of `native_size`. See `load_decoder`."""

    name = "mage"

    def __init__(
        self, mage: MAGE, vqgan: VQGAN, encoder: MoCoV3, *, temperature: float = 11.0, steps: int = 20, cfg: float = 0.0
    ):
        self.mage, self.vqgan, self.encoder = mage, vqgan, encoder
        self.steps, self.temperature, self.cfg = steps, temperature, cfg
        self.dim = mage.config.dim
        self.native_size = math.isqrt(mage.config.tokens) * vqgan.config.patch
        self.size = (encoder.config.crop, encoder.config.crop)
        """What images of differing sizes are brought to."""
        self.normalizer = PerSample(self.dim)

    @cached_property
    def weights_hash(self) -> str:
        return short_hash([content_hash(self.mage, self.vqgan, self.encoder), asdict(self.encoder.config)])

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """MoCo v3's projections of images in [0, 1] of any size, on the decoder's device; `normalizer` makes them z."""
        return self.encoder(images.to(self.mage.null.device))

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B D"], generators: Sequence[torch.Generator]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], one generator each; z is brought to mean 0 and deviation 1, as MAGE was trained.

        Raises OutskirtsError for embeddings of another size, and for such as have no direction.
        """
        if z.shape[1] != self.dim:
            raise OutskirtsError(
                f"embeddings of size {z.shape[1]}; MAGE takes {self.dim}: encode images with this decoder"
            )
        z = self.normalizer(z.to(self.mage.null))
        if not z.isfinite().all():
            bad = int((~z.isfinite().all(1)).sum())
            raise OutskirtsError(f"{bad} of {len(z)} embeddings are not finite or constant; leave them out")
        tokens = generate(self.mage, z, generators, steps=self.steps, temperature=self.temperature, cfg=self.cfg)
        return self.vqgan.images(tokens)


def load_decoder(
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
    *,
    steps: int = 20,
    temperature: float | None = None,
    cfg: float = 0.0,
) -> MAGEDecoder:
    """The decoder in a folder written by `outskirts convert-rcg`, on `device`.

    `steps`, `temperature` (that of the checkpoint where none is given: 11 for MAGE-L, 6 for MAGE-B) and `cfg` are those of
    `generate`. Raises OutskirtsError for a folder of something else, or with other weights.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise OutskirtsError(f"{folder} holds no MAGE: {CONFIG} is not there; make it with `outskirts convert-rcg`")
    try:
        facts = json.loads((folder / CONFIG).read_text())
        builds = (
            partial(MAGE, MAGEConfig(**facts["mage"])),
            partial(VQGAN, VQGANConfig(**{**facts["vqgan"], "channels": tuple(facts["vqgan"]["channels"])})),
            partial(MoCoV3, MoCoV3Config(**facts["encoder"])),
        )
        own = float(facts["temperature"])
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise OutskirtsError(
            f"{folder / CONFIG} cannot be read ({e}); make it again with `outskirts convert-rcg`"
        ) from e
    files = [folder / f"{part}.safetensors" for part in PARTS]
    nets = [filled(build, read(file), file).to(device) for build, file in zip(builds, files, strict=True)]
    return MAGEDecoder(*nets, temperature=own if temperature is None else temperature, steps=steps, cfg=cfg)


def published_name(key: str) -> str:
    """What RCG's checkpoint calls the weight `key` of a MAGE."""
    for ours, theirs in (
        ("words.", "token_emb.word_embeddings."),
        ("positions.", "token_emb.position_embeddings."),
        ("words_norm.", "token_emb.LayerNorm."),
        ("condition.", "latent_prior_proj."),
        ("null", "fake_latent"),
        ("bridge.", "decoder_embed."),
        ("decoder_positions", "decoder_pos_embed_learned"),
        ("head.0.", "mlm_layer.fc."),
        ("head.2.", "mlm_layer.ln."),
        ("bias", "mlm_layer.bias"),
    ):
        if key == ours or (ours.endswith(".") and key.startswith(ours)):
            return theirs + key.removeprefix(ours)
    return key
