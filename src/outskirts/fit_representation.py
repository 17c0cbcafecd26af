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
from jaxtyping import Bool, Float, Int64
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
    if n < (needed := round(LEAST / HELD_OUT)):
        raise OutskirtsError(
            f"{n} images, of which a tenth is held out to stop the training in time; give {needed} or more"
        )
    apart = torch.zeros(n, dtype=torch.bool)
    apart[torch.randperm(n, generator=torch.Generator().manual_seed(0))[: round(HELD_OUT * n)]] = True
    return apart


def fit_representation(
    x: Float[Tensor, "N d"],
    normalizer: nn.Module,
    settings: RepresentationSettings,
    *,
    labels: Int64[Tensor, "N"] | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Representation:
    """A Representation trained on the embeddings `x`, with `normalizer` fitted to those that are not held out.

    With `labels`, from 0, it is conditional on them.

    In `folder` it lies under the hash of settings and embeddings: the same call again loads it, or continues it.
    """
    apart = held_out(len(x))
    sizes = next((w, b) for n, w, b in SIZES if len(x) < n)
    width, blocks = settings.width or sizes[0], settings.blocks or sizes[1]
    kind = type(normalizer).__name__, getattr(normalizer, "size", None), "norms" in normalizer.state_dict()
    data = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    identity = {**asdict(settings), "width": width, "blocks": blocks, "normalizer": kind, "x": data}
    classes = 0 if labels is None else int(labels.max()) + 1
    identity |= {"labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest()} if classes else {}
    own = None if folder is None else folder / f"representation-{short_hash(identity)}"
    if own is not None and (own / CONFIG).exists():
        return Representation.load(own, normalizer, device, classes)

    normalizer = normalizer.fit(x[~apart]).to(device)
    z = normalizer(x.to(device))
    y = None if labels is None else labels.to(device)
    train, held = ((z[rows], None if y is None else y[rows]) for rows in (~apart.to(device), apart.to(device)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = RDM(z.shape[1], width, blocks, classes).to(device)
    how = Steps(settings.steps, settings.lr, settings.ema, patience=5, seed=settings.seed)
    network, facts = fit_steps(
        network,
        partial(_loss, *train, settings.batch_size),
        how,
        check=_checker(*held),
        folder=own,
        identity=identity,
        title="representation diffusion",
        progress=progress,
    )
    facts = {
        "dim": z.shape[1],
        "width": width,
        "blocks": blocks,
        **({"classes": classes} if classes else {}),
        "n_train": len(train[0]),
        "n_held_out": len(held[0]),
        **facts,
    }
    found = Representation(network, normalizer, facts)
    if own is not None:
        found.save(own)
        done(own)
    return found


def _loss(
    z: Float[Tensor, "N d"], y: Int64[Tensor, "N"] | None, batch_size: int, network: nn.Module, g: torch.Generator
) -> Float[Tensor, ""]:
    rows, t = torch.randint(len(z), (batch_size,), generator=g), torch.randint(T, (batch_size,), generator=g)
    eps = torch.randn(batch_size, z.shape[1], generator=g).to(z)
    z, y = (v if v is None else v[rows.to(v.device)] for v in (z, y))
    return (network(_noised(z, t, eps), t.to(z.device), y) - z).square().mean()


def _checker(
    held: Float[Tensor, "n d"], labels: Int64[Tensor, "n"] | None = None, times: int = 8
) -> Callable[[nn.Module], float]:
    """The loss on held-out vectors, each at `times` levels with the same noise at every look."""
    g = torch.Generator().manual_seed(0)
    z, y = held.repeat(times, 1), None if labels is None else labels.repeat(times)
    t = torch.arange(len(z)) * T // len(z)
    t = t[torch.randperm(len(z), generator=g)]
    z_t = _noised(z, t, torch.randn(z.shape, generator=g).to(z))

    @torch.no_grad()
    def check(network: nn.Module) -> float:
        parts = (slice(i, i + 4096) for i in range(0, len(z), 4096))
        found = ((network(z_t[p], t[p].to(z.device), None if y is None else y[p]) - z[p]) for p in parts)
        return sum(float(off.square().mean(1).sum()) for off in found) / len(z)

    return check


def _noised(z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    at = abar()[t].to(z)[:, None]
    return at.sqrt() * z + (1 - at).sqrt() * eps
