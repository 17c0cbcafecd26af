"""What several synthesizers need. Not a synthesizer: names that begin with an underscore are not on the shelf."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.scores.energy import Score as Energy
from outskirts.types import Outlier, Outputs, Request


def seed_of(seed: int, id: int) -> int:
    """The seed of request `id` in a run seeded with `seed`: a hash, so that runs and requests share no streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:7], "big")


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images in [0, 1], rounded as they will be stored."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def id_size(images: Images, classifier=None) -> tuple[int, int]:
    """(H, W) that every outlier has: that of the ID images, or the classifier's where they differ in size."""
    if (size := images.size or getattr(classifier, "size", None)) is None:
        raise OutskirtsError(f"{images.name}: images may differ in size and the classifier takes any; give size=H,W")
    return size


def pixels_of(images: Images, rows: Sequence[int], size: tuple[int, int]) -> UInt8[Tensor, "B 3 H W"]:
    """The images at `rows`, resized as ID images are."""
    return images.subset(torch.tensor(list(rows))).resized(size).pixels


def from_sources(images: Images, n: int | None, seed: int) -> list[Request]:
    """`n` (1000) requests over the ID images in a seeded order, all of them before any one twice, each with its label."""
    labels = images.labels.tolist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed % 2**63)).tolist()
    rows = [order[i % len(order)] for i in range(1000 if n is None else n)]
    return [Request(i, seed_of(seed, i), labels[row], row) for i, row in enumerate(rows)]


def feature_outliers(requests: Sequence[Request], features: Float[Tensor, "B D"], head, notes) -> Iterator[Outlier]:
    """Outliers that are features, with `notes` (one dict each) and what `head` (weight, bias) makes of them."""
    features = features.float()
    said = describe(Outputs(torch.nn.functional.linear(features, *head), features))
    for request, feature, own, more in zip(requests, features, notes, said, strict=True):
        yield Outlier(request, feature=feature, notes={**more, **own})


def as_outliers(
    requests: Sequence[Request], images: Float[Tensor, "B 3 H W"], classifier=None, knn=None
) -> Iterator[Outlier]:
    """Outliers with what the classifier says of them as notes; those with values that are not finite are marked failed."""
    finite = images.isfinite().flatten(1).all(1)
    stored = to_uint8(images.nan_to_num()).cpu()
    notes = [{} for _ in requests]
    if classifier is not None:
        with torch.inference_mode():
            outputs = classifier(stored.to(images.device).float() / 255)
            notes = describe(outputs, knn)
    for request, image, ok, note in zip(requests, stored, finite.tolist(), notes, strict=True):
        if ok:
            yield Outlier(request, image, notes=note)
        else:
            yield Outlier(request, notes={"failed": "values that are not finite, from guidance or the model"})


def feature_distance(classifier, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> list[dict]:
    """Distance, 0 to 2, of what the classifier sees in a and in b: of its penultimate features at norm 1; {} without one.

    Stands in for LPIPS, which needs weights of its own.
    """
    if classifier is None:
        return [{} for _ in a]
    with torch.inference_mode():
        x, y = (torch.nn.functional.normalize(classifier(i.nan_to_num().clamp(0, 1)).features, dim=1) for i in (a, b))
    return [{"feature_distance": d} for d in (x - y).norm(dim=1).tolist()]


def describe(outputs: Outputs, knn=None) -> list[dict]:
    """Energy, kNN distance, confidence and predicted class of each row."""
    confidence, predicted = outputs.logits.softmax(-1).max(-1)
    columns = {"energy": Energy()(outputs), "confidence": confidence, "predicted": predicted}
    if knn is not None:
        columns["knn"] = knn(outputs)
    rows = zip(*(v.tolist() for v in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
