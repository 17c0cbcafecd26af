"""Image sets that other libraries fetch: `datasets` (Hugging Face Hub) and torchvision. Rows are read when asked for."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.images import Images, hold, unlabelled


@dataclass(frozen=True)
class Column(Sequence):
    """The images of a `datasets` data set, undecoded: bytes or a path by row number."""

    dataset: Any
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> bytes | str:
        cell = self.dataset[i][self.name]
        return cell["bytes"] or cell["path"]

    def select(self, rows: list[int]) -> "Column":
        return Column(self.dataset.select(rows), self.name)


@dataclass(frozen=True)
class Pairs(Sequence):
    """The images of a torchvision data set of (image, label) pairs, by row number."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        return self.dataset[i][0]


def hugging_face(name: str) -> Images:
    """`ID[:SPLIT]` through `datasets.load_dataset`; the split is `train` where none is given.

    The image column is the first of type Image, the labels the first of type ClassLabel, else the integer column `label`.
    """
    import datasets

    where, _, part = name.partition(":")
    try:
        dataset = datasets.load_dataset(where, split=part or "train")
    except Exception as e:  # whatever `datasets` raises offline, on a wrong id or on a wrong split
        raise OutskirtsError(
            f"hf:{name} cannot be loaded (tried datasets.load_dataset({where!r}, split={part or 'train'!r}): {_line(e)}); "
            "check the id and the network, or point folder: or parquet: at a local copy"
        ) from e
    features = dataset.features
    image = next((c for c, f in features.items() if isinstance(f, datasets.Image)), None)
    if image is None:
        raise OutskirtsError(f"hf:{name} has no image column, only {', '.join(features)}")
    label = next((c for c, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    label = label or ("label" if "label" in features else None)
    labels = torch.tensor(list(dataset[label])).long() if label else unlabelled(len(dataset))
    names = getattr(features[label], "names", None) if label else []
    names = [str(c) for c in range(int(labels.max()) + 1)] if names is None else names
    return hold(f"hf:{name}", Column(dataset.cast_column(image, datasets.Image(decode=False)), image), labels, names)


def torchvision(name: str) -> Images:
    """`NAME[:train|test|...]` of `torchvision.datasets`, in $TORCHVISION_DATA or ~/.cache/outskirts/torchvision."""
    from torchvision import datasets as sets

    which, _, part = name.partition(":")
    make = getattr(sets, which, None)
    if not inspect.isclass(make) or which.startswith("_"):
        known = sets.__all__
        raise OutskirtsError(f"torchvision has no data set {which!r}{did_you_mean(which, known)}; names are as CIFAR10")
    root = Path(os.environ.get("TORCHVISION_DATA", "~/.cache/outskirts/torchvision")).expanduser()
    takes = inspect.signature(make).parameters
    options: dict[str, Any] = {"download": True} if "download" in takes else {}
    if "train" in takes:
        if part not in ("", "train", "test"):
            raise OutskirtsError(f"torchvision:{which} has the splits train and test, not {part!r}")
        options["train"] = part != "test"
    elif part and "split" in takes:
        options["split"] = part
    elif part:
        raise OutskirtsError(f"torchvision:{which} has no splits; write torchvision:{which}")
    try:
        dataset = make(str(root), **options)
    except Exception as e:  # whatever torchvision raises offline, on missing files or on a wrong split
        raise OutskirtsError(
            f"torchvision:{name} cannot be loaded (tried {root} and its download: {_line(e)}); "
            "put the files there, set TORCHVISION_DATA, or point folder: at a local copy"
        ) from e
    found = next((getattr(dataset, n) for n in ("targets", "labels", "_labels") if hasattr(dataset, n)), None)
    labels = torch.as_tensor([y for _, y in dataset] if found is None else found).long()
    names = getattr(dataset, "classes", None) or [str(c) for c in range(int(labels.max()) + 1)]
    return hold(
        f"torchvision:{name}", Pairs(dataset), labels, [n if isinstance(n, str) else ", ".join(n) for n in names]
    )


def _line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
