"""Image sets by name: `load("digits[0-6]")`, `load("folder:photos")`, `load("parquet:cifar10-train.parquet")`.

    digits                     scikit-learn's handwritten digits, 8x8
    folder:DIR                 a folder of class folders; without sub-folders, a set without labels
    parquet:GLOB               Parquet files in the `datasets` Image convention
    hf:ID[:SPLIT]              a data set of the Hugging Face Hub, or a local folder that `datasets` can load
    torchvision:NAME[:SPLIT]   CIFAR10, SVHN, ...; kept in $TORCHVISION_DATA
    imglist:FILE[?root=DIR]    an image list of OpenOOD, lines of 'path label'
    photos                     patches of scikit-learn's two sample photographs
    invert[:NAME]              negatives                                    } sized and counted like the set they
    shuffle[:NAME]             every image's pixels in an order of their own } are held against
    noise[:gaussian|uniform]   no image at all                              }
    store:FOLDER               outliers that a run made, e.g. store:runs/sona: a hard OOD test set

A class subset follows in brackets: `digits[0-6]`, `hf:cifar10:test[cat,dog]`, `parquet:t.parquet[!52,107]` (all but).
"""

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.images import SUFFIXES, Images, hold, read, unlabelled
from outskirts.types import OOD

__all__ = ["SUFFIXES", "Images", "load", "read", "require_labels", "split"]


def load(
    name: str,
    *,
    classes: str | None = None,
    like: Images | None = None,
    size: tuple[int, int] | None = None,
) -> Images:
    """The image set called `name`; the module's docstring lists the names.

    `classes` is a subset, as in brackets after the name: positions from 0 (`0-4,7`) or class names (`cat,dog`), with a `!`
    in front for all but these. Labels are renumbered in the order given. `like` is the set that `photos`, `invert`,
    `shuffle` and `noise` take their size, count and greyness from; `size` (H, W) goes before its size.

    Raises OutskirtsError for a name, folder, class or file that is not there, and for an image that cannot be read.
    """
    from outskirts import made  # it imports this module's parts

    kind, _, rest = name.partition(":")
    if kind.partition("[")[0] in made.MADE:
        return made.MADE[kind](rest, classes, like, size)
    kind, rest, inside = _brackets(kind, rest)
    if kind not in READERS:
        known = [*READERS, *made.MADE]
        if Path(name).is_dir():
            raise OutskirtsError(f"no image set {name!r}; a folder is written folder:{name}; known: {', '.join(known)}")
        raise OutskirtsError(
            f"no folder and no image set {name!r}{did_you_mean(kind, known)}; known sets: {', '.join(known)}"
        )
    if not rest and kind != "digits":
        raise OutskirtsError(f"{name!r} names nothing; write {kind}:{READERS[kind].__doc__.split()[0]}")
    if inside and classes:
        raise OutskirtsError(f"{name!r} has its classes in brackets, and classes={classes!r} was given too; give one")
    images = READERS[kind](rest)
    wanted = inside or classes
    return choose_classes(images, wanted) if wanted else images


def choose_classes(images: Images, wanted: str) -> Images:
    """The images of the classes `wanted`, labels renumbered 0 .. K-1 in the order given there."""
    leave_out, wanted = wanted.startswith("!"), wanted.removeprefix("!")
    chosen = _class_positions(images, wanted)
    if leave_out:
        chosen = [c for c in range(len(images.classes)) if c not in chosen]
        if not chosen:
            raise OutskirtsError(f"{images.name}: '!{wanted}' leaves no class")
    renumber = torch.full((len(images.classes) + 1,), OOD)  # the last place is for label -1
    renumber[chosen] = torch.arange(len(chosen))
    labels = renumber[images.labels]
    rows = (labels != OOD).nonzero()[:, 0]
    part = images.subset(rows)
    name, kept = f"{images.name}[{'!' * leave_out}{wanted}]", [images.classes[c] for c in chosen]
    return Images(name, kept, labels[rows], part.pixels, part.files)


def split(images: Images, fractions: Sequence[float], *, seed: int = 0) -> tuple[Images, ...]:
    """Disjoint parts of `images`, one a fraction, each class in proportion; the same for the same seed and labels.

    Fractions are positive and sum to 1 at most; at 1 every image is in a part. Parts keep the order of the images.
    Raises OutskirtsError where a class would be missing from a part.
    """
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise OutskirtsError(
            f"fractions {tuple(fractions)} of {images.name}: give positive numbers that sum to 1 at most"
        )
    labels = images.labels.numpy()
    parts = [[] for _ in fractions]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # Every class has a generator of its own: another class more or less does not move its rows.
        rows = np.random.default_rng([seed, int(label) + 1]).permutation(rows)
        ends = np.round(np.cumsum(fractions) * len(rows)).astype(int)
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            if start == end:
                class_name = images.classes[label] if images.classes else "without label"
                raise OutskirtsError(
                    f"{images.name}: class {class_name!r} has {len(rows)} images, too few to split {tuple(fractions)}"
                )
            part.append(rows[start:end])
    return tuple(images.subset(torch.from_numpy(np.sort(np.concatenate(part)))) for part in parts)


def require_labels(images: Images) -> Images:
    """`images`, or OutskirtsError unless every image has a label and there are two classes or more."""
    if (images.labels < 0).any():
        raise OutskirtsError(f"{images.name} has no labels; give a folder of class folders, or another labelled set")
    if len(images.labels.unique()) < 2:
        raise OutskirtsError(f"{images.name} has images of one class only; a classifier needs two or more")
    return images


def _digits(_):
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))
    grey = pixels[:, None].expand(-1, 3, -1, -1).contiguous()
    return Images("digits", [str(c) for c in data.target_names], torch.from_numpy(data.target).long(), grey)


def _folder(where):
    """DIR"""
    root, name = Path(where).expanduser(), f"folder:{where}"
    if not root.is_dir():
        raise OutskirtsError(f"no such folder: {where}; folder:DIR takes a folder of class folders, or of images")
    below = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    loose = _images_in(root)
    if not below:
        if not loose:
            raise OutskirtsError(f"no images in {where}; accepted are {' '.join(sorted(SUFFIXES))}")
        return hold(name, loose, unlabelled(len(loose)), [])
    if loose:
        raise OutskirtsError(
            f"{where} has images beside its class folders ({loose[0].name}); move them into a class folder"
        )
    files = [_images_in(d) for d in below]
    for folder, inside in zip(below, files, strict=True):
        if not inside:
            deeper = next((d for d in folder.iterdir() if d.is_dir()), None)
            hint = f"for its sub-folders as classes give folder:{folder}" if deeper else "fill it or remove it"
            raise OutskirtsError(f"class folder {folder} has no images; {hint}")
    labels = torch.repeat_interleave(torch.tensor([len(f) for f in files]))
    return hold(name, [f for inside in files for f in inside], labels, [d.name for d in below])


def _images_in(folder):
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _parquet(pattern):
    """GLOB"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(glob.glob(str(Path(pattern).expanduser())))
    if not paths:
        raise OutskirtsError(f"no file matches {pattern}; parquet:GLOB takes Parquet files with a column `image`")
    try:
        schema = pq.read_schema(paths[0])
        if "image" not in schema.names:
            raise OutskirtsError(f"{paths[0]} has no column `image`, only {', '.join(schema.names)}")
        columns = [c for c in ("image", "label") if c in schema.names]
        table = pa.concat_tables([pq.read_table(p, columns=columns) for p in paths]).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as e:
        raise OutskirtsError(f"parquet:{pattern} cannot be read: {str(e).splitlines()[0]}") from e
    table = table.filter(table["image"].is_valid())  # an outlier that could not be made has a row and no image
    files = [one["bytes"] or str(Path(paths[0]).parent / one["path"]) for one in table["image"].to_pylist()]
    if not files:
        raise OutskirtsError(f"no images in parquet:{pattern}")
    labels = unlabelled(len(files))
    if "label" in columns:
        labels = torch.from_numpy(table["label"].fill_null(OOD).to_numpy().astype(np.int64))
    return hold(f"parquet:{pattern}", files, labels, _parquet_classes(schema, Path(paths[0]), labels))


def _parquet_classes(schema, path, labels):
    """From the schema's `datasets` features, else SET.json beside SET-train.parquet, else the numbers themselves."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    if names := features.get("label", {}).get("names"):
        return names
    for beside in (path.with_suffix(".json"), path.with_name(path.stem.rpartition("-")[0] + ".json")):
        if beside.is_file():
            return json.loads(beside.read_text())["names"]
    return [str(c) for c in range(int(labels.max()) + 1)]


def _hub(name):
    """ID[:SPLIT]"""
    from outskirts import hubs

    return hubs.hugging_face(name)


def _torchvision(name):
    """NAME[:SPLIT]"""
    from outskirts import hubs

    return hubs.torchvision(name)


def _imglist(rest):
    """FILE[?root=DIR]"""
    from outskirts import imglist

    return imglist.read(rest)


READERS = {
    "digits": _digits,
    "folder": _folder,
    "parquet": _parquet,
    "hf": _hub,
    "torchvision": _torchvision,
    "imglist": _imglist,
}


def _brackets(kind, rest):
    """('digits[0-6]', '') -> ('digits', '', '0-6'); a subset is what stands in brackets at the very end."""
    match = re.fullmatch(r"(.*?)\[(?:classes=)?([^\[\]]+)\]", f"{kind}:{rest}" if rest else kind)
    if not match:
        return kind, rest, None
    kind, _, rest = match[1].partition(":")
    return kind, rest, match[2]


def _class_positions(images, wanted):
    classes, chosen = images.classes, []
    # A name may hold commas itself ("tabby, tabby cat"): the whole text is tried first, and a name's first part is enough.
    short = {c.partition(",")[0]: i for i, c in enumerate(classes)} | {c: i for i, c in enumerate(classes)}
    if wanted in classes:
        return [classes.index(wanted)]
    for word in (w.strip() for w in wanted.split(",")):
        if span := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
            first, last = int(span[1]), int(span[2] or span[1])
            if not first <= last < len(classes):
                raise OutskirtsError(f"{images.name} has classes 0-{len(classes) - 1}; {word!r} is not among them")
            chosen += range(first, last + 1)
        elif word in short:
            chosen.append(short[word])
        else:
            close = did_you_mean(word, short)
            raise OutskirtsError(f"{images.name} has no class {word!r}{close}; it has {', '.join(classes[:20])}")
    if len(set(chosen)) < len(chosen):
        raise OutskirtsError(f"{images.name}: classes {wanted!r} name a class twice")
    return chosen
