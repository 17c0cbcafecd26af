"""ID images as outliers are made, but for what makes them outliers: encoded, decoded and seen as ID images by every training.

Without them a detector can learn a codec's or a decoder's traces in place of what is unusual (`train.vae_roundtrip`). A synthesizer
that has a decoder of its own says by `control()` what it is without guidance, and its anchors are decoded; for all others every ID
training image goes through the codec of the run's diffusion model (`synth/roundtrip.py`).
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from outskirts.find import find
from outskirts.images import Images
from outskirts.methods import NOISE, Method
from outskirts.outlier_sets import made
from outskirts.recipe import Recipe
from outskirts.run import Run
from outskirts.store import Store
from outskirts.synthesis import build_for, synthesize

CODEC = "3-roundtrip"
"""Every ID training image after its pass through the codec of the run's diffusion model."""


def needed(recipe: Recipe, every: Iterable[Method]) -> dict[str, Method | None]:
    """Folder below the run's -> the method whose decoder its images come out of; None: the codec of the run's diffusion model."""
    every = list(every)
    seen_by = [m for m in every if m.train.vae_roundtrip or (m.filtered and recipe.train.vae_roundtrip)]
    return {folder_of(m, every): decoded_by(m, every) for m in seen_by}


def decoded_by(m: Method, every: Iterable[Method]) -> Method | None:
    """Who makes the outliers of `m`, where that has a decoder of its own. Noise is held against the recipe's own method, and sees what that sees."""
    every = list(every)
    m = every[0] if m.key == NOISE else m
    maker = next((x for x in every if x.store == m.store and not x.shares), m)
    return maker if maker.synth and hasattr(find("synth", maker.synth), "control") else None


def folder_of(m: Method, every: Iterable[Method]) -> str:
    """Where the ID images lie that `m` is trained with, below the run's folder."""
    maker = decoded_by(m, every)
    return CODEC if maker is None else f"{CODEC}-{maker.key or maker.synth}"


def make(maker: Method | None, first: Method, run: Run, out: Path) -> None:
    """The step: every ID image through the codec, or as many as there are outliers through the decoder of `maker`, their anchors."""
    if maker is None:
        synthesize(run, out, "roundtrip", {}, None)
    else:
        n = run.recipe.n_outliers if maker.store == first.store else len(made(run, first)[0])
        synthesize(run, out, maker.synth, maker.options, capped(n, run), control=True)


def capped(n: int | None, run: Run) -> int | None:
    """As many as there are outliers, each ID image once at most."""
    return None if n is None else min(n, len(run.inputs.parts["train"]))


def check(run: Run, every: Iterable[Method]) -> None:
    """Raise OutskirtsError where the decoder of a method that needs one is none."""
    for maker in filter(None, needed(run.recipe, every).values()):
        build_for(run, maker.synth, maker.options)().control()


def images(run: Run, m: Method, every: Iterable[Method]) -> Images:
    """The ID images that `m` is trained with beside the real ones, each with the label of the image that it was."""
    store = Store(run.folder / folder_of(m, every) / "store")
    ids, found = store.images(run.inputs.classifier().size)
    of = {row["id"]: row["label"] for row in store.rows(["id", "label"]).to_pylist()}
    return replace(found, classes=run.inputs.parts["train"].classes, labels=torch.tensor([of[i] for i in ids]))
