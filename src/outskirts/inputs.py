"""What a recipe names: ID images in their parts, OOD test sets, classifier and diffusion model. Loaded once, when asked for."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from outskirts import images as image_sets
from outskirts.data import load, require_labels, split
from outskirts.errors import OutskirtsError
from outskirts.images import Images, spread
from outskirts.imbalance import imbalanced
from outskirts.load_diffusion import located
from outskirts.models import Classifier, check_classes, load_classifier
from outskirts.recipe import Recipe, labelled
from outskirts.stamp import folder_hashes, short_hash
from outskirts.store import Store

CLASSIFIER, DIFFUSION = "1-classifier", "2-diffusion"
"""Folders of a run."""
CALIBRATION = (2 / 3, 1 / 3)
"""Shares of the validation images that scores validate on, and that set the threshold."""


class Inputs:
    """The images and models of `recipe`; those that are trained on the spot are read from the run's `folder`."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder

    @cached_property
    def parts(self) -> dict[str, Images]:
        """The ID images as train, val, calibration and test: disjoint, each class in proportion.

        `calibration` sets the detector's threshold and is read by nothing else: it is a third of the validation images.
        """
        r = self.recipe
        whole = self._sized(require_labels(load(r.id, classes=r.classes)))
        named = {part: self._named(part, whole) for part in ("val", "test") if getattr(r, f"id_{part}")}
        share = {p: f for p, f in (("val", 0.15), ("test", 0.2)) if p not in named}
        fractions = [1 - sum(share.values()), *share.values()]
        _enough(r, named.get("val", whole), [] if "val" in named else fractions)
        parts = split(whole, fractions, seed=r.seed) if share else (whole,)
        found = dict(zip(["train", *share], parts, strict=True)) | named
        if r.imbalance is not None:
            found["train"] = imbalanced(found["train"], r.imbalance, seed=r.seed)
        val, calibration = split(found["val"], CALIBRATION, seed=r.seed)
        return found | {"val": val, "calibration": calibration}

    @cached_property
    def bank(self) -> Images:
        """The training images that scores are fitted on: all, or `fit_images` of them, evenly spread."""
        train, most = self.parts["train"], self.recipe.fit_images
        return train if most is None else spread(train, most)

    @cached_property
    def ood(self) -> dict[str, tuple[str, Images]]:
        """Label -> (near or far, images) of the OOD test sets."""
        test, sets = self.parts["test"], {}
        for group, texts in (("near", self.recipe.near), ("far", self.recipe.far)):
            for label, name in map(labelled, texts):
                sets[label] = (group, self._sized(load(name, like=test, size=self.recipe.size)))
        return sets

    @cached_property
    def shifted(self) -> dict[str, Images]:
        """Label -> images of the covariate-shifted ID test sets, labelled like the ID images."""
        train = self.parts["train"]
        named = {label: require_labels(load(name)) for label, name in map(labelled, self.recipe.shifted)}
        return {label: self._sized(_labelled_like(images, train.classes)) for label, images in named.items()}

    @cached_property
    def outlier_store(self) -> Store | None:
        """The store that the recipe names to train against with outliers=store:FOLDER: of a run, one of its steps, or a store itself."""
        kind, _, folder = (self.recipe.outliers or "").partition(":")
        if kind != "store":
            return None
        places = (Path(folder).expanduser() / below for below in ("3-synth/store", "store", ""))
        return Store(next((p for p in places if (p / "store.json").is_file()), folder))

    @cached_property
    def outliers(self) -> Images:
        """The images that the recipe names to train against, where it names some."""
        return self._sized(load(self.recipe.outliers, like=self.parts["train"]))

    def named(self, name: str) -> Images:
        """Any further images, by name, at the size of the ID images."""
        train = self.parts["train"]
        return self._sized(load(name, like=train, size=self.recipe.size or train.size))

    def classifier(self) -> Classifier:
        """A fresh copy of the ID classifier, before outlier training."""
        classes = self.parts["train"].classes
        folder = self.folder / CLASSIFIER
        if (name := self.recipe.classifier) != "fit":
            mine = Path(name).is_dir()  # its number of classes is known, and checked below
            classifier = load_classifier(name, classes=None if mine else classes)
        elif not folder.is_dir():
            raise OutskirtsError(
                f"no classifier in {folder}; run the stage classifier first, or give classifier=FOLDER"
            )
        else:
            classifier = load_classifier(folder)
        check_classes(classifier, self.parts["train"])
        if sorted(classifier.classes) == sorted(classes) and list(classifier.classes) != classes:
            raise OutskirtsError(
                f"{name} has the classes of {self.recipe.id} in another order; give classes={','.join(classifier.classes)}"
            )
        classifier.classes = tuple(classes)
        return classifier.to(device(self.recipe.device))

    @property
    def diffusion(self) -> str:
        """Name or folder of the diffusion model."""
        return str(self.folder / DIFFUSION) if self.recipe.diffusion == "fit" else self.recipe.diffusion

    def fingerprint(self, part: str) -> str:
        """Content hash of a part of the ID images, of `near`, `far`, `shifted`, `outliers`, `images NAME`, or of the weights of a
        model by name."""
        if part in ("near", "far"):
            return short_hash({k: x.fingerprint for k, (group, x) in self.ood.items() if group == part})
        if part.startswith("images "):
            return self.named(part.removeprefix("images ")).fingerprint
        if part == "shifted":
            return short_hash({k: x.fingerprint for k, x in self.shifted.items()})
        if part == "outliers" and (store := self.outlier_store) is not None:
            hashes = folder_hashes(Path(store.folder))  # what a filter selects is no other input
            return short_hash({n: h for n, h in hashes.items() if n.startswith("shard-")})
        if part == "outliers":
            return self.outliers.fingerprint
        return self._weights[part] if part in ("classifier", "diffusion") else self.parts[part].fingerprint

    @cached_property
    def _weights(self) -> dict[str, str]:
        found = located(self.diffusion)
        diffusion = short_hash(folder_hashes(found)) if isinstance(found, Path) else found
        return {"classifier": self.classifier().fingerprint(), "diffusion": diffusion}

    def describe(self, part: str) -> str:
        """`part` in words, for error messages."""
        if part in ("classifier", "diffusion"):
            return f"the weights of {part}={getattr(self.recipe, part)}"
        if part.startswith("images "):
            return f"the {part}"
        name = {"train": "id", "val": "id_val", "calibration": "id_val", "test": "id_test"}.get(part, part)
        return f"the images of {name}={getattr(self.recipe, name) or self.recipe.id}"

    def _named(self, part: str, whole: Images) -> Images:
        name = getattr(self.recipe, f"id_{part}")
        images = self._sized(require_labels(load(name, classes=self.recipe.classes)))
        if _numbered(images) and len(images.classes) == len(whole.classes):
            return replace(images, classes=whole.classes)  # image lists have labels, and often no names
        if images.classes != whole.classes:
            raise OutskirtsError(
                f"id_{part}={name} has classes {_some(images)} and id={self.recipe.id} {_some(whole)}; they must be the same"
            )
        return images

    def _sized(self, images: Images) -> Images:
        """Held in memory at the recipe's size where that fits; otherwise resized whenever they are read."""
        size = self.recipe.size
        fits = size is not None and len(images) * 3 * size[0] * size[1] <= image_sets.HOLD
        return images.resized(size) if fits else images


def _enough(recipe: Recipe, images: Images, fractions: Sequence[float]) -> None:
    """Raise OutskirtsError where a class has too few images for its parts: `fractions` of `images`, of which the second validates; none: all do."""
    counts = images.labels[images.labels >= 0].bincount()
    few = [y for y, n in enumerate(counts.tolist()) if n and not _divides(n, fractions)]
    if not few:
        return
    n = int(counts[few[0]])
    needed = next(m for m in itertools.count(n) if all(_divides(x, fractions) for x in range(m, m + 20)))
    who = f"{images.name}: class {images.classes[few[0]]!r} has {n} image{'s' * (n > 1)}"
    if not fractions:
        raise OutskirtsError(
            f"{who}, and id_val needs {needed} of each: to validate, and to set the threshold; give more images"
        )
    shares = [
        f"{100 * f:.0f} % {what}"
        for f, what in zip(fractions, ("to fit", "for validation and the threshold", "to test"), strict=False)
    ]
    fields = "id_val=IMAGES" + (" and id_test=IMAGES" if len(fractions) > 2 else "")
    raise OutskirtsError(
        f"{who}, and {needed} are needed, for they are divided: {', '.join(shares)}; give more images, or others for these parts with {fields}"
    )


def _divides(n: int, fractions: Sequence[float]) -> bool:
    """Does each part get an image of a class of n, and validation one for each of its own two parts?"""
    sizes = _sizes(n, fractions) if fractions else [n]
    return min(sizes) > 0 and min(_sizes(sizes[1] if fractions else n, CALIBRATION)) > 0


def _sizes(n: int, fractions: Sequence[float]) -> list[int]:
    return np.diff(np.round(np.cumsum(fractions) * n).astype(int), prepend=0).tolist()  # as `split` does it


def _numbered(images: Images) -> bool:
    return images.classes == [str(y) for y in range(len(images.classes))]


def _labelled_like(images: Images, classes: list[str]) -> Images:
    """`images` with the labels that its classes, or some of them, have among `classes`."""
    if images.classes == classes or (_numbered(images) and len(images.classes) <= len(classes)):
        return replace(images, classes=classes)
    if unknown := [c for c in images.classes if c not in classes]:
        raise OutskirtsError(
            f"{images.name} has a class {unknown[0]!r}, the ID images have none; give shifted ID images"
        )
    place = torch.tensor([classes.index(c) for c in images.classes])
    return replace(images, classes=classes, labels=place[images.labels])


def device(name: str) -> str:
    """A torch device: `auto` is the GPU, under torchrun this rank's, where there is one. Raises OutskirtsError for one that is not there."""
    if name == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as e:
        raise OutskirtsError(
            f"device {name!r} is not available here ({str(e).splitlines()[0]}); give auto or cpu"
        ) from e
    return name


def _some(images: Images) -> str:
    return ", ".join(images.classes[:8]) + (", ..." if len(images.classes) > 8 else "")
