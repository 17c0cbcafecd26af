"""The outliers of a method: what was made, what its filter keeps of it, what is set apart from training."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch

from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.images import Images
from outskirts.methods import Method
from outskirts.run import Run, read_json
from outskirts.store import Store

HELD_OUT = 0.1
"""Share of the outliers that no training sees: for validation, and for scores that are fitted on outliers."""
VERDICT = "verdict.json"
"""In the folder of a filter: columns id, label, fold, energy, phi, p_id, band, keep, reason, of every outlier."""


def store_of(run: Run, m: Method) -> Store | None:
    """The store of a method's outliers; none where they are images by name."""
    return Store(run.folder / m.store / "store") if m.store else run.inputs.outlier_store


def made(run: Run, m: Method) -> tuple[list[int], Images | torch.Tensor]:
    """(ids, outliers) of a method, images or features [N, D]: all that were made, but those that the user left out of the store."""
    return _read(run, m, lambda store: store.dropped(filtered=False))


def outliers(run: Run, m: Method) -> tuple[list[int], Images | torch.Tensor]:
    """(ids, outliers) that a method trains against: those of `made` that its filter keeps."""
    if m.filtered is None:
        return made(run, m)
    verdict = read_json(run.folder / m.filtered.verdict / VERDICT)
    if verdict is None:
        raise OutskirtsError(f"no verdict in {run.folder / m.filtered.verdict}; run the stage filter first")
    gone = {i for i, keep in zip(verdict["id"], verdict["keep"], strict=True) if not keep}
    return _read(run, m, lambda store: gone | store.dropped(filtered=False).keys(), gone)


def labels_of(run: Run, m: Method, ids: Sequence[int]) -> list[int | None]:
    """The class that each outlier was made for; none where it has none."""
    store = store_of(run, m)
    if store is None:
        return [None] * len(ids)
    of = {row["id"]: row["label"] for row in store.rows(["id", "label"]).to_pylist()}
    return [of[i] for i in ids]


def held_out(ids: Sequence[int], share: float = HELD_OUT) -> list[bool]:
    """Which outliers are set apart: a share of them by the hash of their id, so that classes and grid cells stay mixed."""
    order = sorted(ids, key=lambda i: hashlib.sha256(f"held out/{i}".encode()).digest())
    apart = set(order[: max(1, round(share * len(ids)))])
    return [i in apart for i in ids]


def parted(ids: Sequence[int], found: Images | torch.Tensor) -> tuple[Any, Any, list[int], list[int]]:
    """(for training, held out, ids of the first, ids of the second) of some outliers."""
    if len(ids) < 2:
        raise OutskirtsError(f"{len(ids)} outlier to train against and to hold out; make more of them, or keep more")
    apart = torch.tensor(held_out(ids))
    mine, rest = (take(found, x) for x in (~apart, apart))
    of = [[i for i, a in zip(ids, apart.tolist(), strict=True) if a == side] for side in (False, True)]
    return mine, rest, *of


def split_outliers(run: Run, m: Method) -> tuple[Any, Any]:
    """(for training, held out) of a method's outliers."""
    return parted(*outliers(run, m))[:2]


def take(found: Images | torch.Tensor, rows: Sequence[int] | torch.Tensor) -> Images | torch.Tensor:
    """Some of the outliers, by positions or a mask."""
    return found.subset(rows) if isinstance(found, Images) else found[rows]


def sources(run: Run, m: Method, ids: Sequence[int]) -> torch.Tensor | None:
    """Rows [N] of the ID training images that the outliers `ids` were made from, -1 where one has none; None where all have none."""
    store = store_of(run, m)
    if store is None:
        return None
    of = {row["id"]: row["source"] for row in store.rows(["id", "source"]).to_pylist()}
    found = torch.tensor([-1 if of[i] is None else of[i] for i in ids])
    return None if (found < 0).all() else found


def unpaired(run: Run, m: Method) -> str | None:
    """Why a method's outliers cannot be paired with the ID images that they were made from; None where they can."""
    if m.store:
        return None if "source" in find("synth", m.synth).requires else "have none"
    store = store_of(run, m)
    if store is None or all(v is None for v in store.rows(["source"])["source"].to_pylist()):
        return "have none"
    if store.made_by.get("images of train") != run.inputs.parts["train"].fingerprint:
        return "are others: the store was made from another id, another seed or other classes"
    return None


def _read(run: Run, m: Method, leave_out, gone: Collection[int] = ()) -> tuple[list[int], Images | torch.Tensor]:
    store = store_of(run, m)
    if store is None:
        images = run.inputs.outliers
        ids = [i for i in range(len(images)) if i not in gone]
        return ids, images if not gone else images.subset(ids)
    without = leave_out(store)
    if "feature" in store.rows(["id", "feature"]).column_names:
        return store.features(without=without)
    return store.images(run.inputs.classifier().size, without=without)
