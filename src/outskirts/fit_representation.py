"""Train a representation diffusion model on the embeddings of a user's ID images: minutes on one core.

RCG trains 62.7 M parameters on 1.28 M images; on a few thousand vectors that network would learn them by heart, and the minority
score would measure memory instead of density. So sizes follow the number of images, a tenth of them is held out and the
weights are those of the lowest held-out loss.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from outskirts.averaged import Steps, done, fit_steps
from outskirts.errors import OutskirtsError
from outskirts.representation import CONFIG, RDM, Representation, T, abar
from outskirts.settings import check_above, check_types
from outskirts.stamp import short_hash

HELD_OUT = 0.1
LEAST = 5
"""Vectors held out at least: fewer tell nothing."""
SIZES = ((10_000, 256, 4), (100_000, 512, 6), (float("inf"), 1536, 12))
"""(images below, width, blocks)."""


@dataclass(frozen=True)
class RepresentationSettings:
    """How the representation diffusion model is trained."""

    width: int | None = None
    blocks: int | None = None
    steps: int = 2000
    """At most; training stops where the held-out loss no longer falls."""
    batch_size: int = 256
    lr: float = 5e-4
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        check_above(
            self, 0, "steps", "batch_size", "lr", *(n for n in ("width", "blocks") if getattr(self, n) is not None)
        )


def held_out(n: int) -> Bool[Tensor, "N"]:
    """Which of n images are held out: a tenth, drawn with a fixed seed. Raises OutskirtsError where that is too few."""
    count = round(HELD_OUT * n)
    if count < LEAST:
        raise OutskirtsError(
            f"{n} images, of which a tenth is held out to stop the training in time; give {round(LEAST / HELD_OUT)} or more"
        )
    apart = torch.zeros(n, dtype=torch.bool)
    apart[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count]] = True
    return apart


def fit_representation(
    x: Float[Tensor, "N d"],
    normalizer: nn.Module,
    settings: RepresentationSettings,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Representation:
    """A Representation trained on the embeddings `x`, with `normalizer` fitted to those that are not held out.

    In `folder` it lies under the hash of settings and embeddings: the same call again loads it, or continues it.
    """
    apart = held_out(len(x))
    sizes = next((w, b) for n, w, b in SIZES if len(x) < n)
    width, blocks = settings.width or sizes[0], settings.blocks or sizes[1]
    kind = type(normalizer).__name__, getattr(normalizer, "size", None), "norms" in normalizer.state_dict()
    data = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    identity = {**asdict(settings), "width": width, "blocks": blocks, "normalizer": kind, "x": data}
    own = None if folder is None else folder / f"representation-{short_hash(identity)}"
    if own is not None and (own / CONFIG).exists():
        return Representation.load(own, normalizer, device)

    normalizer = normalizer.fit(x[~apart]).to(device)
    z = normalizer(x.to(device))
    train, held = z[~apart.to(device)], z[apart.to(device)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = RDM(z.shape[1], width, blocks).to(device)
    how = Steps(settings.steps, settings.lr, settings.ema, patience=5, seed=settings.seed)
    network, facts = fit_steps(
        network,
        partial(_loss, train, settings.batch_size),
        how,
        check=_checker(held),
        folder=own,
        identity=identity,
        title="representation diffusion",
        progress=progress,
    )
    facts = {
        "dim": z.shape[1],
        "width": width,
        "blocks": blocks,
        "n_train": len(train),
        "n_held_out": len(held),
        **facts,
    }
    found = Representation(network, normalizer, facts)
    if own is not None:
        found.save(own)
        done(own)
    return found


def _loss(z: Float[Tensor, "N d"], batch_size: int, network: nn.Module, g: torch.Generator) -> Float[Tensor, ""]:
    rows, t = torch.randint(len(z), (batch_size,), generator=g), torch.randint(T, (batch_size,), generator=g)
    eps = torch.randn(batch_size, z.shape[1], generator=g).to(z)
    return (network(_noised(z[rows.to(z.device)], t, eps), t.to(z.device)) - z[rows.to(z.device)]).square().mean()


def _checker(held: Float[Tensor, "n d"], times: int = 8) -> Callable[[nn.Module], float]:
    """The loss on held-out vectors, each at `times` levels with the same noise at every look."""
    g = torch.Generator().manual_seed(0)
    z = held.repeat(times, 1)
    t = torch.arange(len(z)) * T // len(z)
    t = t[torch.randperm(len(z), generator=g)]
    z_t = _noised(z, t, torch.randn(z.shape, generator=g).to(z))

    @torch.no_grad()
    def check(network: nn.Module) -> float:
        parts = zip(z_t.split(4096), t.to(z.device).split(4096), z.split(4096), strict=True)
        return sum(float((network(a, at) - b).square().mean(1).sum()) for a, at, b in parts) / len(z)

    return check


def _noised(z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    at = abar()[t].to(z)[:, None]
    return at.sqrt() * z + (1 - at).sqrt() * eps
