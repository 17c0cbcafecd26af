"""`outskirts score`: files, folders and globs through a detector, one line each, in batches as they are read."""

import csv
import glob
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import torch

from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.images import SUFFIXES, read
from outskirts.inputs import device as device_of

COLUMNS = ("path", "score", "is_ood", "p_value", "predicted")
log = logging.getLogger("outskirts")


def score_files(
    detector: str | os.PathLike,
    wanted: Sequence[str],
    out: TextIO,
    *,
    form: str = "csv",
    batch_size: int = 64,
    device: str = "auto",
) -> int:
    """Write a line for each image (COLUMNS; `form` csv or jsonl) and return how many files were skipped.

    A file that cannot be read is a warning; a folder, file or glob that is not there raises OutskirtsError before anything
    is scored.
    """
    paths = [p for name in wanted for p in find_images(name)]
    judge = Detector.load(detector)
    judge.classifier.to(device_of(device))
    writer = csv.writer(out, lineterminator="\n")
    if form == "csv":
        writer.writerow(COLUMNS)
    skipped = 0
    for names, images in read_batches(paths, judge.classifier.size, batch_size):
        skipped += sum(image is None for image in images)
        good = [(n, i) for n, i in zip(names, images, strict=True) if i is not None]
        for group in _alike(good):
            v = judge.verdicts(torch.stack([image for _, image in group]).float() / 255, batch_size=batch_size)
            predicted = [judge.classifier.classes[y] for y in v.label.tolist()]
            rows = zip(
                [str(n) for n, _ in group],
                v.score.tolist(),
                v.is_ood.tolist(),
                v.p_value.tolist(),
                predicted,
                strict=True,
            )
            for row in rows:
                if form == "csv":
                    writer.writerow((row[0], f"{row[1]:.6g}", str(row[2]).lower(), f"{row[3]:.6g}", row[4]))
                else:
                    out.write(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n")
        out.flush()
    return skipped


def find_images(name: str) -> list[Path]:
    """The image files that a path, a folder (and all below it) or a glob names, in order."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
        )
    elif path.exists():
        return [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        raise OutskirtsError(f"no images at {name!r}; give files, folders or globs of {' '.join(sorted(SUFFIXES))}")
    return found


def read_batches(
    paths: Sequence[Path], size: tuple[int, int] | None, batch_size: int
) -> Iterator[tuple[list[Path], list]]:
    """(paths, uint8 images [3, H, W], None for what cannot be read) of `batch_size` files each, decoded in threads, one batch ahead."""
    with ThreadPoolExecutor() as pool:
        parts = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
        ahead = [pool.submit(_read_one, p, size) for p in parts[0]]
        for part, after in zip(parts, [*parts[1:], []], strict=True):
            now, ahead = ahead, [pool.submit(_read_one, p, size) for p in after]
            yield list(part), [job.result() for job in now]


def _read_one(path: Path, size: tuple[int, int] | None):
    try:
        return torch.from_numpy(read(path, size))
    except (OutskirtsError, OSError) as e:
        log.warning("skipped: %s", e)
        return None


def _alike(images: list[tuple[Path, torch.Tensor]]) -> Iterator[list[tuple[Path, torch.Tensor]]]:
    """Runs of images of one size, in order: a classifier that takes any size cannot take two at once."""
    group: list[tuple[Path, torch.Tensor]] = []
    for one in images:
        if group and one[1].shape != group[0][1].shape:
            yield group
            group = []
        group.append(one)
    if group:
        yield group
