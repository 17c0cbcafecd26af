"""Which ID images outliers start from: those whose files hold most per pixel, or a list of the user's.

SynOOD, arXiv 2507.10225, takes the n images of each class with the largest JPEG file per pixel: busy pictures have more context. Its
release sorts the ratios as texts, so that "9.9e-05" comes before "1.3"; here they are numbers.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float64
from PIL import Image
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import Images, Source
from outskirts.shard import picture

QUALITY = 95
"""Of the JPEG that images are coded with to be measured, where they are no JPEG files."""
T = TypeVar("T")


def select(images: Images, how: str, per_class: int, rows: Sequence[int]) -> list[int]:
    """Those of `rows` to start from, the first of every class first: `compressed`, up to `per_class` of each; `all`; or `file:PATH`.

    Raises OutskirtsError where the file lists an image that is not among them.
    """
    if how.startswith("file:"):
        mine = listed(images, how.removeprefix("file:"))
        if missing := set(mine) - set(rows):
            raise OutskirtsError(
                f"{how} lists image {min(missing)} of {images.name}, for which there is no answer in contexts; add it"
            )
        return mine
    return chosen(images, per_class if how == "compressed" else len(images), bytes_per_pixel(images), rows)


def chosen(
    images: Images, per_class: int, ratio: Float64[Tensor, " N"], rows: Sequence[int] | None = None
) -> list[int]:
    """Up to `per_class` of `rows` (all) of each label, largest `ratio` first, ties by name: first of every class, second of every class ..."""
    labels, names = images.labels.tolist(), [name_of(images, r) for r in range(len(images))]
    ranked, seen = [], Counter()
    for row in sorted(range(len(images)) if rows is None else rows, key=lambda r: (-float(ratio[r]), names[r])):
        if seen[labels[row]] < per_class:
            ranked.append((seen[labels[row]], labels[row], row))
        seen[labels[row]] += 1
    return [row for *_, row in sorted(ranked)]


def bytes_per_pixel(images: Images) -> Float64[Tensor, " N"]:
    """Size of each image's JPEG file over its pixels. Where not all are JPEG files, of every image coded anew at quality 95."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_of_file, images.files)) if images.files is not None else [None]
        if None in found:
            found = list(pool.map(lambda i: _coded(images, i), range(len(images))))
    return torch.tensor(found, dtype=torch.float64)


def name_of(images: Images, row: int) -> tuple[str, int]:
    """What a list calls the image at `row`: its path with forward slashes, '' where it is held in memory; and its row."""
    file = images.files[row] if images.files is not None else None
    return (Path(os.fspath(file)).as_posix() if isinstance(file, str | os.PathLike) else "", row)


def look_up(images: Images, named: Mapping[str, T], where: str) -> dict[int, T]:
    """Row -> the entry of `named` that is its image's: by any end of its path (`dog/1.jpg`), or by row where it has no file.

    Images without an entry are left out. Raises OutskirtsError where none has one, or where one entry stands for several images.
    """
    found = {}
    for row in range(len(images)):
        path, _ = name_of(images, row)
        parts = path.split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))] if path else [str(row)]
        if (key := next((e for e in ends if e in named), None)) is not None:
            found[row] = key
    if not found:
        raise OutskirtsError(f"{where} names no image of {images.name}; {_first(images)}")
    key, times = Counter(found.values()).most_common(1)[0]
    if times > 1:
        raise OutskirtsError(f"{where}: {key!r} stands for {times} images; write more of the path, e.g. CLASS/{key}")
    return {row: named[key] for row, key in found.items()}


def listed(images: Images, path: str) -> list[int]:
    """Rows of the images that the text file `path` names, one a line, in its order; names as in `look_up`."""
    lines = read_lines(path, "a list of images, one a line")
    rows = {line: row for row, line in look_up(images, {line: line for line in lines}, path).items()}
    if missing := [line for line in lines if line not in rows]:
        raise OutskirtsError(f"{path}: {missing[0]!r} is no image of {images.name}; {_first(images)}")
    return [rows[line] for line in dict.fromkeys(lines)]


def read_lines(path: str, what: str) -> list[str]:
    """Lines of a text file that are not empty. Raises OutskirtsError that says `what` it must be."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise OutskirtsError(f"cannot read {path!r} ({e}); give {what}") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _first(images: Images) -> str:
    return f"its first is called {name_of(images, 0)[0] or '0 (images held in memory are called by their row)'}"


def _of_file(source: Source) -> float | None:
    """Bytes per pixel of a JPEG file, None for any other."""
    if isinstance(source, Image.Image):
        return None
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.format != "JPEG":
            return None
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        return size / (image.width * image.height)


def _coded(images: Images, row: int) -> float:
    pixels = (images[row][0] * 255).round().to(torch.uint8)
    file = io.BytesIO()
    picture(pixels).save(file, "JPEG", quality=QUALITY)
    return file.tell() / (pixels.shape[1] * pixels.shape[2])
