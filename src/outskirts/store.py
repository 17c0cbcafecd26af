"""Outliers on disk: a folder of Parquet shards in the `datasets` Image convention, one row per outlier.

    store.json                        what made it: settings and input hashes
    shard-00000000-00000063.parquet   one batch of requests each; written whole or not at all
    selection.json                    which rows are kept, where `select` was called; no row is ever deleted

`datasets.load_dataset("parquet", data_files="STORE/shard-*.parquet")` opens it. The folder may be any fsspec path.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Float
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import Images, hold, unlabelled
from outskirts.shard import picture, shard_name, to_parquet
from outskirts.types import Outlier, Request

BROKEN = (pa.ArrowException, OSError, ValueError, KeyError)
"""What pyarrow raises for a torn or corrupt file."""
log = logging.getLogger("outskirts")


class Store:
    """The outliers in `folder`, which is made where it does not exist and `made_by` is given.

    made_by   facts that decide what the outliers are (plain values). Another `made_by` than the store's own is refused
              with the name of the fact that differs; None opens whatever is there.
    dials     names of numeric dials that get a column of their own; all dials and notes are in the JSON columns anyway.
    """

    def __init__(
        self, folder: str | os.PathLike, *, made_by: Mapping[str, Any] | None = None, dials: Sequence[str] = ()
    ):
        self.folder = str(folder)
        self.fs, self.path = fsspec.core.url_to_fs(self.folder)
        facts = self._json("store.json")
        if facts is None and made_by is None:
            raise OutskirtsError(f"no store of outliers in {self.folder}; give a folder that `outskirts synth` wrote")
        if facts is None:
            facts = json.loads(json.dumps({"format": 1, "made_by": dict(made_by), "dials": sorted(dials)}))
            self._put("store.json", json.dumps(facts, indent=1).encode())
        elif made_by is not None:
            self._check(facts["made_by"], json.loads(json.dumps(dict(made_by))))
        self.made_by, self.dials = facts["made_by"], facts["dials"]
        self._known: dict[str, dict[int, str | None]] = {}

    def append(self, outliers: Sequence[Outlier]) -> str:
        """Write the outliers of one batch of requests as one shard, in order of id; returns its name, which the ids decide.

        Raises OutskirtsError where it cannot be written: then nothing of it remains and earlier shards are as they were.
        """
        outliers = sorted(outliers, key=lambda o: o.request.id)
        name = shard_name([o.request for o in outliers])
        self._put(name, to_parquet(outliers, self.dials))
        self._known[name] = {o.request.id: o.notes.get("failed") for o in outliers}
        return name

    def holds(self, requests: Sequence[Request]) -> bool:
        """Is the shard of this batch there, whole?"""
        return shard_name(requests) in self._scan()

    def ids(self) -> set[int]:
        """Ids of every row, failed ones among them: what need not be made again."""
        return {i for shard in self._scan().values() for i in shard}

    def failed(self) -> dict[int, str]:
        """id -> reason, of the outliers that could not be made."""
        return {i: reason for shard in self._scan().values() for i, reason in shard.items() if reason}

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every row in order of shards; without `columns`, all columns but the pixels and features."""
        return pa.concat_tables(self._tables(columns), promote_options="default")

    def images(
        self, size: tuple[int, int] | None = None, *, without: Collection[int] | None = None
    ) -> tuple[list[int], Images]:
        """(ids, images) of the outliers that are images and are kept, in order of id; labels are -1.

        At `size` (H, W), which brings large ones to what a classifier sees before they are held in memory. `without` are the ids
        to leave out; none: those that are dropped.
        """
        ids, parts = [], []
        for some, files in self._kept("image", without):
            files = [one["bytes"] for one in files]
            images = hold(f"outliers in {self.folder}", files, unlabelled(len(files)), [])
            ids += some
            parts.append(images if size is None else images.resized(size))
        return ids, joined(parts)

    def features(self, *, without: Collection[int] | None = None) -> tuple[list[int], Float[Tensor, "N D"]]:
        """(ids, features) of the outliers that are features and are kept, in order of id; `without` as for images."""
        parts = list(self._kept("feature", without))
        return [i for ids, _ in parts for i in ids], torch.tensor([v for _, values in parts for v in values])

    def select(
        self, ids: Sequence[int], keep: Sequence[bool], reason: Sequence[str | None], **facts: Sequence[Any]
    ) -> None:
        """Say which outliers are kept, and why the others are not; ids that are not named are kept.

        `facts` are further columns of plain values. What has a `p_id` is a filter's, which writes it again; what has none is yours.
        """
        columns = {"id": list(map(int, ids)), "keep": list(map(bool, keep)), "reason": list(reason)}
        columns |= {name: list(values) for name, values in facts.items()}
        if len({len(c) for c in columns.values()}) > 1:
            raise OutskirtsError(
                f"select got {[len(c) for c in columns.values()]} ids, keeps and reasons; give as many of each"
            )
        self._put("selection.json", json.dumps(columns).encode())

    def dropped(self, *, filtered: bool = True) -> dict[int, str | None]:
        """id -> reason, of the outliers that `select` does not keep; without `filtered`, of those that no filter left out."""
        s = self.selection()
        by_filter = [p is not None and not filtered for p in s.get("p_id", [None] * len(s["id"]))]
        rows = zip(s["id"], s["keep"], s["reason"], by_filter, strict=True)
        return {i: r for i, k, r, skip in rows if not k and not skip}

    def selection(self) -> dict[str, list]:
        """The columns that `select` wrote, of equal length; empty ones where it was not called."""
        return self._json("selection.json") or {"id": [], "keep": [], "reason": []}

    def _kept(self, column: str, without: Collection[int] | None) -> Iterator[tuple[list[int], list]]:
        """(ids, values) of each shard that holds any."""
        dropped, some = self.dropped() if without is None else without, False
        for table in self._tables(["id", column]):
            if column not in table.column_names:
                raise OutskirtsError(
                    f"the outliers in {self.folder} are no {column}s; make them with another synthesizer"
                )
            rows = [r for r in table.to_pylist() if r[column] is not None and r["id"] not in dropped]
            if rows:
                some = True
                yield [r["id"] for r in rows], [r[column] for r in rows]
        if not some:
            raise OutskirtsError(
                f"no outlier in {self.folder} is left: {len(self.failed())} failed, {len(dropped)} not kept"
            )

    def _tables(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """One table per shard. Raises OutskirtsError, and sets the shard aside, where one turns out to be corrupt."""
        if not (shards := self._scan()):
            raise OutskirtsError(f"no outliers in {self.folder}; run `outskirts synth` first")
        for name in shards:
            try:
                with self.fs.open(f"{self.path}/{name}", "rb") as f:
                    file = pq.ParquetFile(f, page_checksum_verification=True)
                    there = file.schema_arrow.names
                    wanted = (
                        [c for c in there if c not in ("image", "feature")]
                        if columns is None
                        else [c for c in columns if c in there]
                    )
                    table = file.read(columns=wanted)
            except BROKEN as e:
                self._set_aside(name, e)
                raise OutskirtsError(
                    f"{self.folder}/{name} is corrupt and was set aside; run the same command again to make its outliers again"
                ) from e
            yield table

    def _scan(self) -> dict[str, dict[int, str | None]]:
        """Shard name -> {id: reason of failure or None}, in order; torn shards are set aside and cost only themselves."""
        self.fs.invalidate_cache()
        names = sorted(n for n in (Path(p).name for p in self.fs.ls(self.path, detail=False)) if n.endswith(".parquet"))
        for name in names:
            if name.startswith("shard-") and name not in self._known:
                try:
                    with self.fs.open(f"{self.path}/{name}", "rb") as f:
                        columns = pq.ParquetFile(f, page_checksum_verification=True).read(["id", "failed"]).to_pydict()
                    self._known[name] = dict(zip(columns["id"], columns["failed"], strict=True))
                except BROKEN as e:
                    self._set_aside(name, e)
        return {n: self._known[n] for n in names if n in self._known}

    def _set_aside(self, name: str, error: Exception) -> None:
        self._known.pop(name, None)
        self.fs.mv(f"{self.path}/{name}", f"{self.path}/{name}.corrupt")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("%s/%s is corrupt (%s); set aside as %s.corrupt", self.folder, name, reason, name)

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise OutskirtsError(
                    f"the outliers in {self.folder} were made with {key}={old.get(key)!r}, now it is {new.get(key)!r}; "
                    "use another folder, or make them again with --redo synth"
                )

    def _json(self, name: str) -> dict | None:
        path = f"{self.path}/{name}"
        try:
            return json.loads(self.fs.cat_file(path)) if self.fs.exists(path) else None
        except (OSError, ValueError) as e:
            raise OutskirtsError(f"cannot read {self.folder}/{name}: {e}; remove it, or use another folder") from e

    def _put(self, name: str, data: bytes) -> None:
        try:
            self.fs.makedirs(self.path, exist_ok=True)
            if isinstance(self.fs, LocalFileSystem):
                replace_file(Path(self.path) / name, data)
            else:
                self.fs.pipe_file(f"{self.path}/{name}", data)  # object stores show a file only when it is whole
        except OSError as e:
            raise OutskirtsError(
                f"cannot write {name} to {self.folder}: {e.strerror or e}; make room or give another folder, then run the same command again"
            ) from e


def joined(parts: Sequence[Images]) -> Images:
    """Unlabelled image sets one after the other: held in memory where all of them are, and of one size."""
    labels = unlabelled(sum(map(len, parts)))
    if all(p.pixels is not None and p.size == parts[0].size for p in parts):
        return Images(parts[0].name, [], labels, torch.cat([p.pixels for p in parts]))
    files = [f for p in parts for f in (p.files if p.pixels is None else map(picture, p.pixels))]
    return Images(parts[0].name, [], labels, files=files)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, even when the machine stops: a temporary name, fsync, then os.replace."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
