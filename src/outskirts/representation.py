"""A diffusion model over representations (RCG's RDM, Li et al., arXiv 2312.03701): the density that Bad-OOD's guidance climbs out of.

A residual MLP predicts z0 from z_t. Representations are standardised by dimension with a map that can be undone, so that
decoders get embeddings of the size they know. `fit_representation.py` trains one.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outskirts.diffuse import levels_from, prediction
from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json
from outskirts.tensors import compare, filled, read, write
from outskirts.types import Level, Prediction

T = 1000
"""Steps of the noise schedule; t and s count them."""
TIME = 256
"""Width of what the network knows of t."""
LABEL = 512
"""Width of what a class-conditional network knows of the class."""
CONFIG, WEIGHTS = "representation.json", "representation.safetensors"


class Standard(nn.Module):
    """Embeddings [B, d] <-> z [B, c] of mean 0 and variance 1 over the training set, dimension by dimension.

    most         c at most: where d is larger, the c leading principal components of the standardised embeddings. They are
                 turned, not whitened: the noise of a diffusion model is the same in every direction, so it then sees the
                 spectrum that it would have seen, only without the tail.
    keep_norm    `inverse` brings norms into the range that 99 % of the training set have: decoders of CLIP embeddings
                 turn vectors of another length into noise.
    """

    def __init__(self, dim: int, most: int | None = None, keep_norm: bool = False):
        super().__init__()
        self.dim, self.size = dim, min(dim, most or dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("basis", torch.eye(dim)[:, : self.size] if self.size < dim else None)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("norms", torch.zeros(2) if keep_norm else None)
        self.register_buffer("explained", torch.ones(()))

    def fit(self, x: Float[Tensor, "N d"]) -> "Standard":
        """Statistics of the training set, in float64; `explained` is then the share of variance that z keeps."""
        x = x.double()
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, correction=0))
        if self.norms is not None:
            self.norms.copy_(torch.quantile(x.norm(dim=1), torch.tensor([0.005, 0.995], dtype=torch.float64)))
        z = self._standardised(x)
        if self.basis is not None:
            values, vectors = torch.linalg.eigh(z.T @ z / len(z))  # ascending
            kept = values.flip(0)[: self.size].clamp_min(0)
            self.basis.copy_(vectors.flip(1)[:, : self.size])
            self.explained.copy_(kept.sum() / values.sum())
            self.scale.copy_(kept.mean().sqrt())
        return self

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B c"]:
        z = self._standardised(x)
        return (z if self.basis is None else z @ self.basis.to(z)) / self.scale.to(z)

    def inverse(self, z: Float[Tensor, "B c"]) -> Float[Tensor, "B d"]:
        """The embedding of z; exactly, up to the components that were left out and the range of norms."""
        z = z * self.scale.to(z)
        x = (z if self.basis is None else z @ self.basis.T.to(z)) * self.std.to(z) + self.mean.to(z)
        if self.norms is None:
            return x
        norm = x.norm(dim=1, keepdim=True)
        return x * (norm.clamp(*self.norms.tolist()) / norm)

    def _standardised(self, x: Tensor) -> Tensor:
        # a dimension that never varies, a dead unit, is 0 and comes back as its mean
        std = self.std.to(x)
        return torch.where(std > 0, (x - self.mean.to(x)) / std.clamp_min(torch.finfo(x.dtype).tiny), 0.0)


class PerSample(nn.Module):
    """z of mean 0 and variance 1 within each sample, as RCG trains MAGE: length and mean are lost, and MAGE does not read them."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.size = dim

    def fit(self, x: Float[Tensor, "N d"]) -> "PerSample":
        return self

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    inverse = forward
    """A guided z leaves the sphere that training had; it is brought back."""


class Block(nn.Module):
    """Residual block of the RDM: h + W SiLU(LN(W' SiLU(LN(h)) + V SiLU(e) [+ U SiLU(c)])); its last layer starts at zero."""

    def __init__(self, width: int, conditional: bool = False):
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(TIME, width))
        self.label = nn.Sequential(nn.SiLU(), nn.Linear(LABEL, width)) if conditional else None
        self.second = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), _zero(nn.Linear(width, width)))

    def forward(
        self, h: Float[Tensor, "B W"], e: Float[Tensor, "B E"], c: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, "B W"]:
        u = self.first(h) + self.time(e)
        return h + self.second(u if c is None else u + self.label(c))


class RDM(nn.Module):
    """z_t [B, d] and t [B] -> z0 [B, d]. RCG's own has width 1536 and 12 blocks: 62.7 M parameters at d = 256.

    With `classes`, as many, it is conditional on the label of each row.
    """

    def __init__(self, dim: int, width: int, blocks: int, classes: int = 0):
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(width, TIME)
        self.enter = nn.Linear(dim, width)
        self.labels = nn.Embedding(classes, LABEL) if classes else None
        self.blocks = nn.ModuleList(Block(width, classes > 0) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.SiLU(), _zero(nn.Linear(width, dim)))

    def forward(
        self, z: Float[Tensor, "B d"], t: Int[Tensor, "B"], y: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B d"]:
        e, h = self.time(self.frequencies(t).to(z)), self.enter(z)
        c = None if self.labels is None else self.labels(y)
        for block in self.blocks:
            h = block(h, e, c)
        return self.leave(h)


@dataclass(frozen=True)
class Representation:
    """A trained RDM with its standardisation: a predictor over z."""

    network: RDM
    normalizer: nn.Module
    facts: dict
    """What it was trained on and how it came out; plain values."""

    def predictor(self, z: Float[Tensor, "B c"], level: Level, labels: Int[Tensor, "n"] | None = None) -> Prediction:
        """The estimate; of a class-conditional network for the classes `labels` of the rows, again and again where there are more rows."""
        t = torch.full((len(z),), level.t, device=z.device)
        y = None if labels is None else labels.to(z.device).repeat(len(z) // len(labels))
        return prediction(self.network(z, t, y), z, level, "sample")

    def save(self, folder: Path) -> None:
        """Two safetensors-and-JSON files; the JSON is written last and says that it is whole."""
        parts = {"network": self.network, "normalizer": self.normalizer}
        write(
            writable(folder) / WEIGHTS,
            {f"{n}.{k}": v.cpu() for n, p in parts.items() for k, v in p.state_dict().items()},
        )
        write_json(folder / CONFIG, self.facts)

    @staticmethod
    def load(folder: Path, normalizer: nn.Module, device="cpu", classes: int = 0) -> "Representation":
        """The one in `folder`; `normalizer` is one of its kind, whose numbers are read. Raises OutskirtsError for other weights, or classes."""
        check_folder(folder)
        try:
            facts = json.loads((folder / CONFIG).read_text())
            sizes = facts["dim"], facts["width"], facts["blocks"], facts.get("classes", 0)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise OutskirtsError(
                f"{folder / CONFIG} cannot be read ({e}); remove a folder that a run made, and it is made again, or convert yours again with "
                "`outskirts convert-rcg --rdm`"
            ) from e
        if sizes[0] != normalizer.size:
            raise OutskirtsError(
                f"{folder} models representations of {sizes[0]} dimensions, and here they have {normalizer.size}; it belongs to another encoder or decoder"
            )
        if sizes[3] != classes:
            raise OutskirtsError(
                f"{folder} models representations of {sizes[3] or 'no'} given classes, and here they are of {classes or 'none'}; give another one"
            )
        state, where = read(folder / WEIGHTS), folder / WEIGHTS
        network, own = (
            {k.partition(".")[2]: v for k, v in state.items() if k.startswith(p)} for p in ("network.", "normalizer.")
        )
        compare(normalizer.state_dict(), own, where)
        normalizer.load_state_dict(own)
        return Representation(filled(partial(RDM, *sizes), network, where).to(device), normalizer.to(device), facts)


def check_folder(folder: Path) -> None:
    """Raises OutskirtsError where `folder` holds no representation diffusion model; nothing is read."""
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        what = f"has no {missing[0]}" if folder.is_dir() else "is not there"
        raise OutskirtsError(
            f"no representation diffusion model in {folder}: it {what}; give a folder with {CONFIG} and {WEIGHTS}, e.g. OUT/rdm of "
            "`outskirts convert-rcg MAGE OUT --rdm FILE`"
        )


def abar() -> Float[Tensor, "T"]:
    """RCG's schedule, "linear" in its config and scaled_linear in diffusers': sqrt(beta) rises evenly."""
    beta = torch.linspace(0.0015**0.5, 0.0195**0.5, T, dtype=torch.float64).square()
    return (1 - beta).cumprod(0)


def level(t: int) -> Level:
    """The place t of the schedule by itself, with the data right after it."""
    if not 1 <= t < T:
        raise OutskirtsError(f"level {t}; give 1 to {T - 1}")
    return Level(t, float(abar()[t]), 1.0, 0, 1)


def levels(t: int, steps: int) -> list[Level]:
    """`steps` places from t down, evenly spread, then the data."""
    if not 1 <= steps <= t < T:
        raise OutskirtsError(f"t={t}, n_steps={steps}; give 1 <= n_steps <= t < {T}")
    ts = [round(t * (steps - i) / steps) for i in range(steps)]
    return levels_from(ts, abar()[torch.tensor(ts)].tolist())


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
