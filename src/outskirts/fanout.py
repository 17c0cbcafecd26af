"""Spread batches of requests over workers: this process, the ranks of torchrun, or Ray actors on many machines.

The batches are fixed groups of requests in order of id, so an outlier's company never depends on how many workers there
are or on what was already done; each batch is one shard, written by the worker that made it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from outskirts.errors import OutskirtsError
from outskirts.progress import bar
from outskirts.store import Store
from outskirts.types import Outlier, Request

Batch = Sequence[Request]
Maker = Callable[[Batch], Iterable[Outlier]]
"""A fitted synthesizer."""


def batches(requests: Sequence[Request], batch_size: int) -> list[Batch]:
    """Groups of `batch_size` requests in order of id; the last may be smaller."""
    ordered = sorted(requests, key=lambda r: r.id)
    if len({r.id for r in ordered}) < len(ordered):
        raise OutskirtsError(
            f"{len(ordered)} requests share {len({r.id for r in ordered})} ids; give every request an id of its own"
        )
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def fan_out(
    synthesizer: Callable[[], Maker],
    todo: Sequence[Batch],
    open_store: Callable[[], Store],
    *,
    workers: str = "serial",
    progress: bool = True,
) -> None:
    """Make the outliers of every batch that the store does not hold whole, and write each batch as one shard.

    `synthesizer` returns a fitted one and `open_store` the store: each is called once per worker. `workers` is
    serial, which under torchrun means this rank's share; or ray, ray:N for N actors. The work of other workers is skipped
    and never waited for here.
    """
    store = open_store()
    left = [batch for batch in todo if not store.holds(batch)]
    done = sum(map(len, todo)) - sum(map(len, left))
    kind, _, count = workers.partition(":")
    if kind not in ("serial", "ray") or (count and not (kind == "ray" and count.isdigit() and int(count))):
        raise OutskirtsError(f"workers is {workers!r}; accepted: serial, ray, ray:N")
    rank, world = rank_and_world()
    if world > 1:
        if kind == "ray":
            raise OutskirtsError("torchrun and workers=ray were both given; use one of them")
        # Shares of all batches, not of those left: what the others finish meanwhile must not move them.
        left, done = [b for b in todo[rank::world] if b in left], 0
    if not left:
        return
    run = (
        _serial(synthesizer(), left, store)
        if kind == "serial"
        else _ray(synthesizer, left, open_store, int(count or 0))
    )
    total = done + sum(map(len, left))
    with bar("outliers", total=total, done=done, show=progress and rank == 0) as advance:
        failed = 0
        for made, not_made in run:
            failed += not_made
            advance(made, f"{failed} failed" if failed else "")


def rank_and_world() -> tuple[int, int]:
    """(RANK, WORLD_SIZE) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def first_rank_first(device: str) -> contextlib.AbstractContextManager:
    """Context that the first rank of torchrun leaves before the others enter: it searches, they read what it found."""
    ranks = _ranks(device)
    return contextlib.nullcontext() if ranks is None else ranks.main_process_first()


def wait_for_all_ranks(device: str) -> None:
    """Go on when every rank of torchrun is here; at once without torchrun."""
    if ranks := _ranks(device):
        ranks.wait_for_everyone()


def _ranks(device: str):
    if rank_and_world()[1] == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def _make(synthesizer: Maker, batch: Batch, store: Store) -> tuple[int, int]:
    """One batch, made and stored: (requests, of which failed)."""
    outliers = list(synthesizer(batch))
    missing = {r.id for r in batch} ^ {o.request.id for o in outliers}
    if missing:
        raise OutskirtsError(
            f"{type(synthesizer).__module__} gave {len(outliers)} outliers for {len(batch)} requests (first wrong id {min(missing)}); "
            "a synthesizer yields one outlier per request, with notes['failed'] where it could not be made"
        )
    store.append(outliers)
    return len(batch), sum(bool(o.notes.get("failed")) for o in outliers)


def _serial(synthesizer: Maker, left: Sequence[Batch], store: Store) -> Iterator[tuple[int, int]]:
    return (_make(synthesizer, batch, store) for batch in left)


def _ray(
    synthesizer: Callable[[], Maker], left: Sequence[Batch], open_store: Callable[[], Store], count: int
) -> Iterator[tuple[int, int]]:
    """One actor per GPU, or per four CPU cores where there is none; each takes the next batch when it is free."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as e:
        raise OutskirtsError(
            "workers=ray needs Ray; install it with `pip install 'outskirts[ray]'`, or use workers=serial"
        ) from e

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = min(count or gpus or max(1, cpus // 4), len(left))
    share = {"num_gpus": 1} if gpus >= count else {"num_cpus": max(1, cpus // count)}

    actor = ray.remote(**share)(_Worker)
    pool = ActorPool([actor.remote(synthesizer, open_store) for _ in range(count)])
    return pool.map_unordered(lambda worker, batch: worker.make.remote(batch), left)


class _Worker:
    """What an actor holds: a synthesizer and a store of its own."""

    def __init__(self, synthesizer: Callable[[], Maker], open_store: Callable[[], Store]):
        self.synthesizer, self.store = synthesizer(), open_store()

    def make(self, batch: Batch) -> tuple[int, int]:
        return _make(self.synthesizer, batch, self.store)
