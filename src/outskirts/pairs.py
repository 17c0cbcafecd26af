"""The batches of outlier training: ID images and outliers side by side, or mixed with each other."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.loop import share
from outskirts.mixing import blend
from outskirts.recipe import TrainSettings
from outskirts.store import joined


def pairs(
    train: Images,
    outliers: Images | Tensor,
    size: tuple[int, int],
    batches: int,
    settings: TrainSettings,
    accel,
    generator: torch.Generator,
    sources: Int64[Tensor, " n"] | None = None,
) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int64[Tensor, " b"], Float[Tensor, "F D"]]]:
    """(images, labels of the ID ones, feature outliers) of every step of an epoch: b ID images, then the outliers.

    Outliers start again, in another order, when they are exhausted. With `sources`, the row of the ID image that each outlier
    was made from, a batch's ID images begin with those of its outliers, in their order: row i and row b + i are a pair.
    """
    order = torch.randperm(len(train), generator=generator)[: batches * settings.batch_size]
    needed, n = batches * settings.outlier_batch_size, len(outliers)
    rounds = [torch.randperm(n, generator=generator) for _ in range(math.ceil(needed / n))]
    rows, batch = share(order, settings.batch_size, accel)
    rows_ood, batch_ood = share(torch.cat(rounds)[:needed], settings.outlier_batch_size, accel)
    if sources is not None:
        own = [paired(a, sources[b]) for a, b in zip(rows.split(batch), rows_ood.split(batch_ood), strict=True)]
        rows, batch = torch.cat(own), len(own[0])
    of_id = train.batches(batch, size=size, indices=rows)
    if isinstance(outliers, Tensor):
        for (images, labels), features in zip(of_id, outliers[rows_ood].split(batch_ood), strict=True):
            yield images, labels, features
    else:
        of_ood = outliers.batches(batch_ood, size=size, indices=rows_ood)
        for (images, labels), (images_ood, _) in zip(of_id, of_ood, strict=True):
            yield torch.cat([images, images_ood]), labels, torch.empty(0, 0)


def paired(rows: Int64[Tensor, " b"], sources: Int64[Tensor, " m"]) -> Int64[Tensor, " n"]:
    """The sources, then as many of `rows` as the batch has room for."""
    return torch.cat([sources, rows])[: max(len(rows), len(sources))]


def both(train: Images, roundtrip: Images | None) -> Images:
    """The ID images, then those that went through the codec or decoder of the outliers. Raises OutskirtsError for such without a class of `train`."""
    if roundtrip is None or not len(roundtrip):
        raise OutskirtsError(
            "vae_roundtrip takes ID training images after their pass through the codec or decoder of the outliers, and got none; give roundtrip=Images"
        )
    if not ((roundtrip.labels >= 0) & (roundtrip.labels < len(train.classes))).all():
        raise OutskirtsError(
            f"the images of vae_roundtrip need labels from 0 to {len(train.classes) - 1}, those of the ID images that they were; give them with their classes"
        )
    labels = torch.cat([train.labels, roundtrip.labels])
    return replace(joined([train, roundtrip]), name=train.name, classes=train.classes, labels=labels)


def mixed(
    images: Float[Tensor, "B 3 H W"], labels: Int64[Tensor, " b"], settings: TrainSettings, generator: torch.Generator
) -> tuple[Float[Tensor, "B 3 H W"], Int64[Tensor, " B"], Float[Tensor, " B"]]:
    """(images, labels, shares) where the outliers, rows b and on, are mixed with the batch's own ID images, in turn.

    `labels` are those of the ID images, `shares` how much of each row is of that label: 1 in the first b rows.
    """
    b, n = len(labels), len(images) - len(labels)
    partner = torch.arange(n, device=labels.device) % b
    images_ood, shares = blend(
        images[partner], images[b:], settings.mix or "cutmix", settings.mix_beta or 1.0, generator
    )
    shares = torch.cat([torch.ones(b), shares]).to(labels.device)
    return torch.cat([images[:b], images_ood]), torch.cat([labels, labels[partner]]), shares
