"""SynOOD's two tunings of CLIP on outliers (arXiv 2507.10225): a projection of image features, and the negative labels' features.

CLIP itself stays as it is: both work on features that were computed once, so that a tuning takes seconds.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from outskirts.clip import Residual
from outskirts.clip_settings import ClipTuneSettings
from outskirts.errors import OutskirtsError

LAST_LR = {torch.optim.Adam: 1e-5, torch.optim.SGD: 0.0}
"""Where the cosine ends, on the image and on the label side."""
log = logging.getLogger("outskirts")


@dataclass(frozen=True)
class Pairs:
    """What is tuned on: raw image features F, never normalised, and the texts that they belong to."""

    known: Float[Tensor, "N D"]
    """Of ID images."""
    labels: Int[Tensor, " N"]
    made: Float[Tensor, "S D"]
    """Of outliers."""
    rows: Int[Tensor, " S"]
    """The negative label of each outlier."""

    @property
    def used(self) -> Int[Tensor, " m"]:
        """Y*, the negative labels that some outlier has, ascending: M' of them."""
        return self.rows.unique()

    @property
    def targets(self) -> Int[Tensor, " S"]:
        """The place of each outlier's label among `used`."""
        return torch.searchsorted(self.used, self.rows)


@dataclass(frozen=True)
class Tuned:
    """What was learned: a projection, features of the labels `Pairs.used`, or both. The losses of every epoch are in `epochs`."""

    project: nn.Module
    """Residual, or the identity."""
    labels: Float[Tensor, "m D"] | None
    """E*, not normalised."""
    epochs: list[dict[str, float]]


def nearest(
    features: Float[Tensor, "S D"], negatives: Float[Tensor, "M D"], cap: int | None = None
) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
    """(rows of `features`, their negative label): for each image the label of the largest cosine, SynOOD's Y*.

    With `cap`, the images of a label beyond its `cap` nearest are left out. Labels are those of norm 1.
    """
    best = [(F.normalize(x, dim=-1) @ negatives.T).max(1) for x in features.split(2048)]
    cosine, label = torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
    rows = torch.arange(len(features), device=features.device)
    if cap is not None:
        order = cosine.argsort(descending=True, stable=True)
        order = order[label[order].argsort(stable=True)]  # label by label, the nearest image first
        counts = label.bincount()
        place = rows - (counts.cumsum(0) - counts)[label[order]]
        rows = order[place < cap].sort().values
    return rows, label[rows]


def tune(
    pairs: Pairs,
    text: Float[Tensor, "K D"],
    negatives: Float[Tensor, "M D"],
    scale: float,
    settings: ClipTuneSettings,
    seed: int,
    *,
    side: str,
) -> Tuned:
    """One tuning; `side` is projection, labels or joint. `text` has norm 1, `negatives` are raw, logits are `scale` times a cosine.

    Depends on `seed` and on nothing else that is random. Raises OutskirtsError where a loss is no longer finite.
    """
    image, label = side in ("projection", "joint"), side in ("labels", "joint")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        project = (Residual(text.shape[1]) if image else nn.Identity()).to(text.device)
    E = nn.Parameter(negatives[pairs.used].clone(), requires_grad=label)
    epochs = settings.epochs if image else settings.label_epochs
    optimizers, decay = [], settings.weight_decay
    if image:
        optimizers.append(torch.optim.Adam(project.parameters(), settings.lr, weight_decay=decay))
    if label:
        optimizers.append(torch.optim.SGD([E], settings.label_lr, momentum=0.9, weight_decay=decay))
    schedules = [CosineAnnealingLR(o, epochs, LAST_LR[type(o)]) for o in optimizers]
    targets, lines = pairs.targets, []
    if label and len(pairs.used) == 1:
        log.warning(
            "all outliers have one negative label: the label side has nothing to choose between, and learns nothing"
        )
    for epoch in range(epochs):
        seen = []
        for i, j in batches(pairs, settings.batch_size, generator, mixed=image):
            made, losses = project(pairs.made[j]), {}
            if image:
                known = project(pairs.known[i])
                losses["loss_image"] = image_loss(known, pairs.labels[i], made, targets[j], text, E, scale)
            if label:
                losses["loss_label"] = label_loss(made, targets[j], E, scale)
            for optimizer in optimizers:
                optimizer.zero_grad()
            sum(losses.values()).backward()
            for optimizer in optimizers:
                optimizer.step()
            seen.append({name: loss.item() for name, loss in losses.items()})
        lines.append({"epoch": epoch + 1, **{name: fmean(x[name] for x in seen) for name in seen[0]}})
        if not all(map(math.isfinite, lines[-1].values())):
            raise OutskirtsError(
                f"the loss of {side} is not finite after epoch {epoch + 1}; lower lr (now {settings.lr:g}) and label_lr ({settings.label_lr:g})"
            )
        for schedule in schedules:
            schedule.step()
    return Tuned(project.eval().requires_grad_(False), E.detach() if label else None, lines)


def image_loss(
    known: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    made: Float[Tensor, "s D"],
    targets: Int[Tensor, " s"],
    text: Float[Tensor, "K D"],
    negatives: Float[Tensor, "m D"],
    scale: float,
) -> Float[Tensor, ""]:
    """Cross-entropy over the K class names and the m negative labels: an ID image to its class, an outlier to its label.

    SynOOD eq. 11-12, which as printed give ID images a negative label too and sum over those only. Each population is averaged over itself.
    """
    texts = torch.cat([text, F.normalize(negatives, dim=-1)])
    logits = [scale * F.normalize(x, dim=-1) @ texts.T for x in (known, made)]
    return (F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], len(text) + targets)) / 2


def label_loss(
    made: Float[Tensor, "s D"], targets: Int[Tensor, " s"], negatives: Float[Tensor, "m D"], scale: float
) -> Float[Tensor, ""]:
    """Cross-entropy of outliers over the negative labels, whose features are learned.

    SynOOD eq. 13-14, which as printed sum images over the index of labels: images with one label would push each other away.
    """
    logits = scale * F.normalize(made, dim=-1) @ F.normalize(negatives, dim=-1).T
    return F.cross_entropy(logits, targets)


def batches(
    pairs: Pairs, size: int, generator: torch.Generator, *, mixed: bool
) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " s"]]]:
    """Rows of ID images and of outliers for each step of an epoch, `size` outliers and no ID images; or, `mixed`, half of each.

    A mixed epoch sees the larger population once; the smaller one starts again, in another order, when it is exhausted.
    """
    if not mixed:
        for part in torch.randperm(len(pairs.made), generator=generator).split(size):
            yield torch.arange(0), part
        return
    counts, half = (len(pairs.known), len(pairs.made)), max(1, size // 2)
    whole = max(counts)
    rows = [
        torch.cat([torch.randperm(n, generator=generator) for _ in range(math.ceil(whole / n))])[:whole] for n in counts
    ]
    yield from zip(*(r.split(half) for r in rows), strict=True)
