import importlib.util

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.fanout import batches, fan_out
from outskirts.images import Images, unlabelled
from outskirts.store import Store
from outskirts.types import Request
from own.speckle import Synthesizer

IMAGES = Images("grey", [], unlabelled(2), torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def synthesizer(**fields):
    return Synthesizer(**fields).fit(IMAGES, None)


def fill(folder, synth, n=14, size=4, **kwargs):
    todo = batches(synth.requests(n, seed=3), size)
    fan_out(lambda: synth, todo, lambda: Store(folder, made_by={"a": 1}, dials=["strength"]), progress=False, **kwargs)
    return {p.name: p.read_bytes() for p in sorted(folder.glob("shard-*"))}


def test_batches_are_fixed_groups_in_order_of_id():
    requests = [Request(i, 0) for i in range(10)]
    assert [[r.id for r in b] for b in batches(requests[::-1], 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(OutskirtsError, match="give every request an id of its own"):
        batches([Request(1, 0), Request(1, 1)], 4)


def test_what_is_stored_is_not_made_again(tmp_path):
    whole = fill(tmp_path / "a", synthesizer())
    first = fill(tmp_path / "b", synthesizer(), n=8)
    assert len(first) == 2
    assert first.items() < whole.items()

    made = []

    class Counting(Synthesizer):
        def __call__(self, requests):
            made.extend(r.id for r in requests)
            return super().__call__(requests)

    (tmp_path / "b" / "shard-00000000-00000003.parquet").unlink()
    assert fill(tmp_path / "b", Counting().fit(IMAGES, None)) == whole
    assert made == [0, 1, 2, 3, *range(8, 14)]


def test_ranks_of_torchrun_share_the_batches_and_write_the_same_files(tmp_path, monkeypatch):
    whole = fill(tmp_path / "serial", synthesizer())
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        before = set(shares)
        shares = list(fill(tmp_path / "ranks", synthesizer()))
        assert len(set(shares) - before) == (2 if rank == 0 else 1)
    monkeypatch.undo()
    assert fill(tmp_path / "ranks", synthesizer()) == whole


def test_failures_are_stored_with_their_reason(tmp_path):
    fill(tmp_path / "a", synthesizer(fail=5))
    assert Store(tmp_path / "a").failed() == {5: "NaN in guidance"}
    assert len(Store(tmp_path / "a").images()[0]) == 13


def test_a_synthesizer_that_loses_a_request_is_named(tmp_path):
    class Losing(Synthesizer):
        def __call__(self, requests):
            return super().__call__(requests[1:])

    with pytest.raises(OutskirtsError, match="gave 3 outliers for 4 requests"):
        fill(tmp_path / "a", Losing().fit(IMAGES, None))


def test_workers_by_name(tmp_path):
    with pytest.raises(OutskirtsError, match="workers is 'threads'; accepted: serial, ray, ray:N"):
        fill(tmp_path / "a", synthesizer(), workers="threads")
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(OutskirtsError, match="install it with `pip install 'outskirts\\[ray\\]'`"):
            fill(tmp_path / "a", synthesizer(), workers="ray")
    else:
        assert fill(tmp_path / "a", synthesizer(), workers="ray:2") == fill(tmp_path / "b", synthesizer())
