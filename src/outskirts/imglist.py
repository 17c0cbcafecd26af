"""Image lists as OpenOOD writes them: one line an image, 'path label'; labels of OOD images are -1. Read, written, hashed.

imglist:data/benchmark_imglist/cifar10/test_cifar10.txt?root=data/images_classic
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from outskirts.errors import OutskirtsError
from outskirts.files import writable
from outskirts.types import OOD


class Listed(NamedTuple):
    """What a list says: a path, relative to the list's root, and a label of each image."""

    paths: list[str]
    labels: list[int]

    @property
    def classes(self) -> list[str]:
        """The folders the images are in, where these are one to a label 0 .. K-1, else the labels themselves; none for OOD."""
        parents: dict[int, set[str]] = {}
        for path, label in zip(self.paths, self.labels, strict=True):
            parents.setdefault(label, set()).add(path.rpartition("/")[0].rpartition("/")[2])
        labels = sorted(parents.keys() - {OOD})
        names = [min(parents[y]) for y in labels]
        one_to_one = labels == list(range(len(labels))) and len(set(names)) == len(names)
        if one_to_one and OOD not in parents and all(len(p) == 1 and "" not in p for p in parents.values()):
            return names
        return [str(y) for y in range(max(labels, default=OOD) + 1)]

    def hash(self, *, names_only: bool = False) -> str:
        """SHA-256 of the sorted lines, whatever their order and line ends; `names_only` leaves the folders out of the paths."""
        paths = [p.rpartition("/")[2] for p in self.paths] if names_only else self.paths
        return names_hash(f"{p} {y}" for p, y in zip(paths, self.labels, strict=True))


def names_hash(names: Iterable[str]) -> str:
    """SHA-256 in hex of the sorted names, joined by line ends: what binds a benchmark to its class list."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def parse(file: str | os.PathLike) -> Listed:
    """The images that a list names. Raises OutskirtsError for a file that is not there, is empty, or has another kind of line."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise OutskirtsError(f"cannot read the image list {file} ({e}); give a text file of 'path label' lines") from e
    listed = Listed([], [])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.lstrip("-").isdigit() or int(label) < OOD:
            raise OutskirtsError(f"{file}, line {number} is {line.strip()!r}; write 'path label', with -1 for OOD")
        listed.paths.append(path.strip())
        listed.labels.append(int(label))
    if not listed.paths:
        raise OutskirtsError(f"the image list {file} names no image; write 'path label' lines")
    return listed


def place(rest: str) -> tuple[Path, Path]:
    """(list, root) of `FILE[?root=DIR]`; without a root, paths start where the list is."""
    file, _, options = rest.partition("?")
    key, equals, root = options.partition("=")
    if options and (key != "root" or not equals or not root):
        raise OutskirtsError(
            f"imglist:{rest} has the option {options!r}; it takes root=DIR, the folder that paths start from"
        )
    path = Path(file).expanduser()
    return path, Path(root).expanduser() if root else path.parent


def folders(rest: str) -> list[str]:
    """Names of the folders that the images of `FILE[?root=DIR]` are in, in alphabetical order; images in none have none."""
    return sorted({p.rpartition("/")[0].rpartition("/")[2] for p in parse(place(rest)[0]).paths} - {""})


def read(rest: str):
    """The Images of `FILE[?root=DIR]`, in the order of the list."""
    import torch

    from outskirts.images import hold

    file, root = place(rest)
    listed = parse(file)
    files = [root / p for p in listed.paths]
    if not files[0].is_file():
        raise OutskirtsError(
            f"{file} names {listed.paths[0]}, which is not below {root}; give its folder with ?root=DIR"
        )
    return hold(f"imglist:{rest}", files, torch.tensor(listed.labels), listed.classes)


def write(
    file: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    labels: Sequence[int],
    *,
    root: str | os.PathLike = "",
) -> Path:
    """Write the list of `paths` with their `labels` (-1 for OOD), relative to the folder `root` where it is given."""
    if len(paths) != len(labels) or not len(paths):
        raise OutskirtsError(
            f"{len(paths)} paths and {len(labels)} labels; give one label a path, and one image at least"
        )
    below = [Path(os.path.relpath(p, root) if root else p).as_posix() for p in paths]
    file = Path(file)
    writable(file.parent)
    file.write_text("".join(f"{p} {int(y)}\n" for p, y in zip(below, labels, strict=True)), encoding="utf-8")
    return file


def of_folder(folder: str | os.PathLike, classes: Collection[str] | None = None) -> Listed:
    """The images that `folder:DIR` reads, in its order, relative to `folder`: class folders get 0 .. K-1, loose images -1.

    `classes` are some of the class folders, by name.
    """
    from outskirts.images import SUFFIXES

    root = Path(folder)

    def inside(below: Path) -> list[Path]:
        return sorted(f for f in below.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))

    below = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    below = [d for d in below if classes is None or d.name in classes]
    found = [(f, y) for y, d in enumerate(below) for f in inside(d)] or [(f, OOD) for f in inside(root)]
    return Listed([f.relative_to(root).as_posix() for f, _ in found], [y for _, y in found])
