"""`outskirts bench` without a recipe: a classifier, ID and OOD images, and the report page; nothing is made or trained."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from outskirts.errors import OutskirtsError
from outskirts.recipe import Recipe, labelled

OPTIONS = (
    click.option("--root", type=click.Path(), help="Folder below which the benchmark's parts lie."),
    click.option(
        "--benchmark", metavar="NAME", help="ID and OOD sets by name; `outskirts list benchmarks` lists them."
    ),
    click.option("--score", "scores", multiple=True, metavar="NAME", help="An OOD score.  [default: msp, energy, knn]"),
    click.option("--train", metavar="IMAGES", help="ID training images: what scores are fitted on."),
    click.option(
        "--shifted",
        multiple=True,
        metavar="IMAGES",
        help="A shifted ID test set, its folders the ID classes; may be given again.",
    ),
    click.option("--far", multiple=True, metavar="IMAGES", help="A far-OOD test set; may be given again."),
    click.option("--near", multiple=True, metavar="IMAGES", help="A near-OOD test set; may be given again."),
    click.option("--id", metavar="IMAGES", help="ID test images, one sub-folder a class."),
    click.option(
        "--classifier", help="timm:ID, torchvision:ID, hf:ID or a folder: measure it as it is, without a recipe."
    ),
)
TEXT = """Measure a recipe's classifiers, before and after outlier training; or any classifier on your own folders.

    \b
    outskirts bench quickstart
    outskirts bench quickstart --out runs/plain stages=classifier,bench scores=msp,energy,knn
    outskirts bench good_cifar10 benchmark=pack-cifar100 diffusion=fit

    Without a recipe nothing is made or trained: a classifier, ID and OOD images, straight to the report page.

    \b
    outskirts bench --classifier timm:resnet18 --id photos/test --train photos/train --near photos/other --out runs/b
    outskirts bench --classifier runs/q/1-classifier --id 'digits[0-6]' --near 'digits[7-9]' --far noise --score energy
    outskirts bench --classifier timm:resnet18 --id photos/test --near photos/other --shifted foggy=photos/fog
    outskirts bench --classifier runs/c/1-classifier --benchmark pack-cifar10
    outskirts bench --classifier timm:resnet50 --benchmark imagenet1k --root data fit_images=50000 --dry-run

    IMAGES are a folder, or an image set by name such as imglist:FILE or hf:ID, with LABEL= in front where it should be called
    something else. Without --train, some of the --id images are set apart to fit the scores on, and that is said. --train beside
    --benchmark stands in for the benchmark's own training images, and is then no match with it.
    The detector that is kept holds the energy score where it is measured, else the first one; detector_score=NAME says another.
    """  # fmt: skip
SCORES = ("msp", "energy", "knn")


def recipe_of(
    classifier: str | None,
    id: str | None,
    near: Sequence[str],
    far: Sequence[str],
    shifted: Sequence[str],
    train: str | None,
    scores: Sequence[str],
    benchmark: str | None,
    root: str | None,
) -> Recipe:
    """The recipe of a bench alone: the stages bench and report, one classifier, no outliers.

    Raises OutskirtsError where the classifier, the ID images or every OOD set is missing, or where a benchmark and test images
    of one's own are given together.
    """
    if classifier is None:
        raise OutskirtsError("bench without a recipe needs a classifier; give --classifier timm:ID, hf:ID or a folder")
    common = {
        "classifier": classifier,
        "scores": tuple(scores) or SCORES,
        "floor": False,
        "stages": ("bench", "report"),
    }
    if benchmark is not None:
        if id or near or far or shifted:
            raise OutskirtsError(
                "--benchmark names its own test images; leave --id, --near, --far and --shifted out (--train may stay)"
            )
        from outskirts.benchmarks import apply

        name, _, options = benchmark.partition("?")
        text = "?".join(filter(None, (name, "&".join(filter(None, (options, root and f"root={root}"))))))
        recipe = apply(Recipe(Path(name).stem, f"{classifier} as it is, on {name}.", **common), text)
        mine = {"id": _images(train), "id_test": recipe.id_test or recipe.id} if train else {}
        return replace(recipe, **mine)
    if root is not None:
        raise OutskirtsError("--root is the folder of a benchmark's parts; give --benchmark NAME too")
    if id is None or not (*near, *far):
        raise OutskirtsError("bench without a recipe needs images: --id, and --near or --far; or --benchmark NAME")
    sets = {"near": _sets(near), "far": _sets(far), "shifted": _sets(shifted)}
    labels = [labelled(x).label for group in sets.values() for x in group]
    if twice := [x for x in labels if labels.count(x) > 1]:
        raise OutskirtsError(f"two test sets are called {twice[0]!r}; write LABEL=FOLDER for one of them")
    known = {"id": _images(train or id), "id_test": _images(id) if train else None}
    return Recipe("bench", f"{classifier} as it is, on {id}.", **known, **sets, **common)


def alone(recipe: str | None, fields: Sequence[str], given: dict[str, Any]) -> Recipe | None:
    """The recipe of a call without a recipe, its FIELD=VALUE texts applied; none where one is named.

    The first FIELD=VALUE stands where a recipe's name would: `bench --classifier DIR ... score.knn.k=20`.
    """
    if not any(given.values()):
        if recipe is None or "=" in recipe:
            raise OutskirtsError(
                "bench what? Give a recipe, or --classifier with images or a benchmark; see bench --help"
            )
        return None
    if recipe is not None and "=" not in recipe:
        option = next(name for name, value in given.items() if value)
        raise OutskirtsError(
            f"a recipe ({recipe}) and --{option} were given; with a recipe, write FIELD=VALUE, e.g. classifier=DIR"
        )
    from outskirts.override import override

    return override(recipe_of(**given), [f for f in (recipe, *fields) if f is not None])


def _images(text: str) -> str:
    """A folder as an image set by name; anything else is one."""
    return f"folder:{text}" if os.path.isdir(os.path.expanduser(text)) else text


def _sets(texts: Sequence[str]) -> tuple[str, ...]:
    found = []
    for text in texts:
        m = re.fullmatch(r"([\w .+-]+)=(.+)", text)
        label, where = (m[1], m[2]) if m and not os.path.isdir(text) else (None, text)
        name = _images(where)
        if label is None and name != where:
            label = re.sub(r"[^\w .+-]", "-", Path(where).resolve().name)
        found.append(f"{label}={name}" if label else name)
    return tuple(found)
