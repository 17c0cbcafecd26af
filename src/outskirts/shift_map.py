"""Semantic x covariate: how a detector's score rises with what an image shows and with how it looks (Bad-OOD Fig. 5, after IS-OOD).

Rows go from ID images to ever more distant classes, columns from clean images to ever more spoilt ones. Scores are higher for what is
more OOD; a detector of semantic shift rises down the rows and little along the columns.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.corruptions import LEVELS, corrupt
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.images import Images, spread
from outskirts.inputs import device
from outskirts.judge import load_judge
from outskirts.methods import PLAIN, methods
from outskirts.models import Classifier, load_classifier
from outskirts.run import Run, write_json
from outskirts.scores.energy import Score as Energy

CELL, NEEDED = 50, 10
"""Images of a cell at most, and how many it must have to be shown."""


class Grid(NamedTuple):
    """Images of the cells, and what the axes mean."""

    kind: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[int, int], Images]


def shift(run: Run, out: Path) -> None:
    """6-shift/shift_map.json: mean energy of every cell, by the plain classifier and by the trained one of the first seed."""
    r, first = run.recipe, methods(run.recipe)[0]
    trained = "/".join(filter(None, ("5-train", first.key, f"seed-{r.seeds[0]}")))
    who = {PLAIN: run.inputs.classifier(), first.label: load_classifier(run.folder / trained).to(device(r.device))}
    judge = load_judge(run, run.folder / first.filtered.look if first.filtered else out)
    grids = [
        _measured(run, judge.classifier) if r.analyse.shift_map == "measured" else _constructed(run, judge.classifier)
    ]
    if r.analyse.cells:
        grids.append(_cells(r.analyse.cells, run.inputs.parts["test"].size or run.inputs.classifier().size))
    facts = []
    for grid in grids:
        maps = [{"method": label, **summary(_means(c, grid))} for label, c in who.items()]
        n = [[len(grid.cells.get((i, j), ())) for j in range(len(grid.columns))] for i in range(len(grid.rows))]
        facts.append({"kind": grid.kind, "rows": grid.rows, "columns": grid.columns, "n": n, "maps": maps})
    write_json(out / "shift_map.json", {"encoder": judge.name, "independent": judge.independent, "grids": facts})


def summary(cells: Float[np.ndarray, "R C"]) -> dict[str, Any]:
    """`cells` brought to [0, 1] over all that have a value (the others None), and along each axis the slope of the mean per level and
    its correlation with the level (IS-OOD's sensitivity)."""
    ok = np.isfinite(cells)
    low, high = (cells[ok].min(), cells[ok].max()) if ok.any() else (0.0, 1.0)
    scaled = (cells - low) / ((high - low) or 1.0)
    facts: dict[str, Any] = {"cells": [[v if np.isfinite(v) else None for v in row] for row in scaled.tolist()]}
    for axis, name in ((1, "semantic"), (0, "covariate")):
        means = [
            float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else np.nan for v in (scaled if axis else scaled.T)
        ]
        x, y = np.arange(len(means))[np.isfinite(means)], np.array(means)[np.isfinite(means)]
        able = len(y) > 1 and np.ptp(y) > 0
        facts[name] = {
            "slope": float(np.polyfit(x, y, 1)[0]) if len(y) > 1 else None,
            "r": float(np.corrcoef(x, y)[0, 1]) if able else None,
        }
    return facts


def groups(
    features: Mapping[str, Float[Tensor, "_ D"]], id_means: Float[Tensor, "K D"], n: int
) -> Iterator[tuple[str, list[str]]]:
    """(label, names) of up to `n` groups of as many units each, by the distance of a unit's mean feature to the nearest ID class mean."""
    means = torch.stack([x.mean(0) for x in features.values()])
    nearest = torch.cdist(means.double(), id_means.double()).amin(1)
    order = [list(features)[i] for i in nearest.argsort(stable=True).tolist()]
    for part in np.array_split(order, min(n, len(order))):
        names = [str(u) for u in part]
        yield names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", names


def _constructed(run: Run, encoder: Classifier) -> Grid:
    """Rows: ID test images, then the OOD test sets' classes by distance; columns: the same images ever more corrupted."""
    parts, size = run.inputs.parts, run.inputs.parts["test"].size or run.inputs.classifier().size
    units = dict(_units(run.inputs.ood))
    seen = collect(encoder, spread(parts["train"], 2000))
    id_means = torch.stack([seen.features[seen.labels == y].mean(0) for y in seen.labels.unique()])
    features = {name: collect(encoder, spread(images, 200)).features for name, images in units.items()}
    rows = [("ID test", [parts["test"]])]
    rows += [(label, [units[u] for u in names]) for label, names in groups(features, id_means, LEVELS - 1)]
    n = min(CELL, *(sum(map(len, images)) for _, images in rows))
    cells = {}
    for i, (_, sets) in enumerate(rows):
        each = [spread(images, -(-n // len(sets))).resized(size).pixels for images in sets]
        pixels = torch.cat(each)[:n]
        for j in range(LEVELS):
            cells[i, j] = _images(corrupt(pixels, j, seed=run.recipe.seed))
    return Grid("constructed", [label for label, _ in rows], [str(j) for j in range(LEVELS)], cells)


def _measured(run: Run, judge: Classifier) -> Grid:
    """Rows and columns: equal numbers of images by their distance to ID images in CLIP's class and style directions."""
    from outskirts.shift_measured import shifts

    parts, size = run.inputs.parts, run.inputs.parts["test"].size or run.inputs.classifier().size
    pool = [spread(x, 2000) for x in (parts["test"], *(images for _, images in run.inputs.ood.values()))]
    pixels = torch.cat([x.resized(size).pixels for x in pool])
    levels = [level_of(v) for v in shifts(judge, spread(parts["train"], 2000), pool)]
    at = {(i, j): np.flatnonzero((levels[0] == i) & (levels[1] == j)) for i in range(LEVELS) for j in range(LEVELS)}
    cells = {place: _images(pixels[torch.from_numpy(rows)]) for place, rows in at.items() if len(rows) >= NEEDED}
    numbers = [str(i) for i in range(LEVELS)]
    return Grid("measured", numbers, numbers, cells)


def level_of(values: Float[np.ndarray, " N"]) -> Any:
    """0 to LEVELS - 1 for each value, equally many of each."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") * LEVELS // len(values)


def _cells(folder: str, size: tuple[int, int] | None) -> Grid:
    """Syn-IS: sub-folders cov_C_sem_S of images; cells with fewer than NEEDED are left out."""
    found = {}
    for path in sorted(Path(folder).expanduser().glob("cov_*_sem_*")):
        if path.is_dir() and (m := re.fullmatch(r"cov_(\d+)_sem_(\d+)", path.name)):
            images = spread(load(f"folder:{path}"), 4 * CELL)
            found[int(m[2]), int(m[1])] = images if size is None else images.resized(size)
    if not found:
        raise OutskirtsError(
            f"analyse.cells={folder} has no sub-folders cov_0_sem_0 to cov_7_sem_7; give the folder of Syn-IS"
        )
    rows, columns = (1 + max(place[axis] for place in found) for axis in (0, 1))
    cells = {place: x for place, x in found.items() if len(x) >= NEEDED}
    return Grid("cells", [str(i) for i in range(rows)], [str(j) for j in range(columns)], cells)


def _units(ood: Mapping[str, tuple[str, Images]]) -> Iterator[tuple[str, Images]]:
    """The classes of OOD sets that have some, the other sets whole."""
    for label, (_, images) in ood.items():
        present: Sequence[int] = images.labels.unique().tolist()
        if images.classes and present[0] >= 0 and len(present) > 1:
            yield from ((f"{label}: {images.classes[y]}", images.subset(images.labels == y)) for y in present)
        else:
            yield label, images


def _means(classifier: Classifier, grid: Grid) -> Float[np.ndarray, "R C"]:
    means = np.full((len(grid.rows), len(grid.columns)), np.nan)
    for place, images in grid.cells.items():
        if len(images) >= NEEDED:
            means[place] = Energy()(collect(classifier, images)).double().mean().item()
    return means


def _images(pixels: Tensor) -> Images:
    return Images("cell", [], torch.full((len(pixels),), -1), pixels)
