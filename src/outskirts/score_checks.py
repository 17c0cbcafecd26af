"""What makes a score say less than it seems to, in words: a k near the size of a class, a covariance of more dimensions than images."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.recipe import Recipe, labelled
from outskirts.types import Outputs

NEAR = 0.5
"""Share of the smallest class from which on a k-th neighbour is warned of: on the digits kNN is at its best far below it, a little
worse just above, and worse than guessing from one class size on (docs/papers/good.md, k)."""
ROWS = 1.5
"""Images, less one a class, that a covariance needs for each dimension: of 128 on the digits, RMD has a near AUROC of 34 with 130 images, 81 with 160,
87 with 180 and 91 with 200, and 92 to 94 with shrinkage=0.1 on each."""
SPANNED = {"mahalanobis": "within", "rmd": "within", "vim": "whole", "Mahalanobis": "within", "MahalanobisODIN": "within", "RMD": "within", "ViM": "whole", "PNML": "whole", "GMM": "class"}  # fmt: skip
"""Scores, ours and pytorch-ood's, that estimate a covariance or a subspace of the features: of what is left within classes, of all, of each class."""
log = logging.getLogger("outskirts")


def of_neighbour(what: str, k: int, bank: Images) -> Iterator[str]:
    """A k-th nearest neighbour that comes near the size of a class of `bank`, or goes beyond it."""
    yield from _neighbour(what, k, bank.labels.numpy(), bank.classes)


def _neighbour(what: str, k: int, labels: np.ndarray, classes: Sequence[str]) -> Iterator[str]:
    most, name, n = best_k(labels, classes)
    if k > most:
        yield (
            f"{what} is {k}, and class {name!r} has {n} of the {len(labels):,} images among which neighbours are looked for: from the size of a "
            f"class on the neighbour is one of another class; take {most} or less: {what}={most}"
        )


def best_k(labels: np.ndarray, classes: Sequence[str]) -> tuple[int, str | int, int]:
    """(the largest k that is not warned of, the smallest class that is there, its images)."""
    counts = np.bincount(labels[labels >= 0], minlength=1)
    smallest = min(np.flatnonzero(counts), key=lambda c: counts[c], default=0)
    n = int(counts[smallest])
    return max(1, int(NEAR * n)), classes[smallest] if len(classes) > smallest else int(smallest), n


def of_dimensions(what: str, score, labels: np.ndarray, classes: Sequence[str], size: int) -> Iterator[str]:
    """A score that estimates a covariance or subspace of `size` feature dimensions from images that do not span as many."""
    name = getattr(score, "detector", type(score).__module__.rpartition(".")[2])
    kind = SPANNED.get(name) if type(score).__module__.startswith("outskirts.scores.") else None
    if kind is None or getattr(score, "shrinkage", 0.0) > 0:
        return
    known = labels[labels >= 0]
    counts = np.bincount(known, minlength=1)
    present = np.flatnonzero(counts)
    of, span = f"{len(known):,} images of {len(present)} classes", len(known)
    if kind == "within":
        span -= len(present)
    if kind == "class":
        smallest = min(present, key=lambda c: counts[c], default=0)
        who = classes[smallest] if len(classes) > smallest else int(smallest)
        of, span = f"the {counts[smallest]} images of class {who!r}", int(counts[smallest]) - 1
    needed = size if kind == "whole" else int(ROWS * size)
    if span >= needed:
        return
    remedy = (
        f", {what}.shrinkage=0.1"
        if hasattr(score, "shrinkage")
        else f", {what}.d={max(1, span // 8)}"
        if name == "vim"
        else ""
    )
    yield (
        f"{what} estimates {'a subspace' if kind == 'whole' else 'a covariance'} of {size} feature dimensions from {of}, which span {min(span, size)} of them: "
        f"with fewer than about {needed:,} images{' of each class' if kind == 'class' else ''} its figures may be worse than guessing; give more images"
        f"{remedy}, or a score that estimates none, e.g. energy"
    )


def warn_of_fit(what: str, score, train: Outputs, classes: Sequence[str] = ()) -> None:
    """Log what a bench warns of, for a score that is to be fitted on `train`: too few images a class, or for the dimension of the features."""
    labels = train.labels.cpu().numpy()
    said = list(of_dimensions(what, score, labels, classes, train.features.shape[-1]))
    if type(score).__module__ in ("outskirts.scores.knn", "outskirts.scores.unified"):
        said += _neighbour(f"{what}.k", score.k, labels, classes)
    for line in said:
        log.warning("%s", line)


def enough_for_scores(recipe: Recipe, scores: Iterable[tuple[str, object]], bank: Images) -> None:
    """Raise OutskirtsError for a score that looks for the k-th neighbour in `bank`, which it is fitted on, and finds fewer."""
    names = dict(map(labelled, (*recipe.scores, *recipe.plain_scores)))
    n = len(bank)
    for label, score in scores:
        if names[label] in ("knn", "unified") and not 1 <= score.k <= n:
            unset = "" if "k" in recipe.score_with.get(label, {}) else " by default"
            raise OutskirtsError(
                f"score.{label}.k is {score.k}{unset}, but there are {n} training images; give 1 to {n}, "
                f"e.g. score.{label}.k={best_k(bank.labels.numpy(), bank.classes)[0]}, half of the smallest class"
            )
