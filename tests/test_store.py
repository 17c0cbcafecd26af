import logging
import os
from pathlib import Path

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.shard import shard_name
from outskirts.store import Store
from outskirts.types import Outlier, Request


def outlier(i, failed=None, size=(5, 7), feature=False):
    g = torch.Generator().manual_seed(i)
    request = Request(
        i, seed=10**15 + i, label=i % 3, source=None, prompt=f"a {i}", dials={"rho": 0.5 * i, "target": "image"}
    )
    if failed:
        return Outlier(request, notes={"failed": failed})
    if feature:
        return Outlier(request, feature=torch.randn(4, generator=g), notes={"energy": -1.5})
    return Outlier(request, torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8), notes={"energy": -1.5})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", made_by={"steps": 5, "grid": (1, 2)}, dials=["rho"])


def test_images_come_back_as_they_were_in_order_of_id(store):
    shards = [[outlier(i) for i in (3, 2)], [outlier(1), outlier(0)]]
    assert [store.append(s) for s in shards] == ["shard-00000002-00000003.parquet", "shard-00000000-00000001.parquet"]
    ids, images = Store(store.folder).images()
    assert ids == [0, 1, 2, 3]
    assert torch.equal(images.pixels, torch.stack([outlier(i).image for i in range(4)]))
    assert images.labels.tolist() == [-1] * 4
    assert Store(store.folder).images((3, 4))[1].size == (3, 4)


def test_features(store):
    store.append([outlier(i, feature=True) for i in range(3)])
    ids, features = store.features()
    assert ids == [0, 1, 2]
    assert torch.equal(features, torch.stack([outlier(i, feature=True).feature for i in range(3)]))
    with pytest.raises(OutskirtsError, match="are no images"):
        store.images()


def test_datasets_opens_it_with_an_image_column(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    store.append([outlier(i) for i in range(2)])
    store.append([outlier(2, "NaN in guidance"), outlier(3, "NaN in guidance")])  # a shard without any image
    rows = datasets.load_dataset(
        "parquet", data_files=f"{store.folder}/shard-*.parquet", split="train", cache_dir=tmp_path / "c"
    )
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows[1]["image"].size == (7, 5)
    assert rows[1]["image"].getpixel((6, 4)) == tuple(outlier(1).image[:, 4, 6].tolist())
    assert rows["rho"][:] == [0.0, 0.5, 1.0, 1.5]
    assert rows["seed"][0] == 10**15
    assert rows[3]["image"] is None


def test_failed_ones_are_recorded_and_not_asked_for_again(store):
    batch = [outlier(0), outlier(1, "NaN in guidance")]
    store.append(batch)
    again = Store(store.folder)
    assert again.failed() == {1: "NaN in guidance"}
    assert again.ids() == {0, 1}
    assert again.holds([o.request for o in batch])
    assert again.images()[0] == [0]


def test_another_recipe_is_refused_with_the_field_that_differs(store):
    Store(store.folder, made_by={"grid": (1, 2), "steps": 5})
    with pytest.raises(OutskirtsError, match="made with steps=5, now it is 6"):
        Store(store.folder, made_by={"grid": (1, 2), "steps": 6})
    with pytest.raises(OutskirtsError, match="no store of outliers in"):
        Store(store.folder + "-else")


def test_selection_deletes_nothing(store):
    store.append([outlier(i) for i in range(4)])
    before = os.listdir(store.folder)
    store.select([1, 2], [False, True], ["too near", None])
    assert store.images()[0] == [0, 2, 3]
    assert store.dropped() == {1: "too near"}
    assert sorted(os.listdir(store.folder)) == sorted([*before, "selection.json"])


@pytest.mark.parametrize("cut", [1, 100, 0.5])
def test_a_torn_shard_costs_only_itself(store, cut, caplog):
    whole, torn = [outlier(i) for i in range(4)], [outlier(i) for i in range(4, 8)]
    store.append(whole)
    path = os.path.join(store.folder, store.append(torn))
    size = os.path.getsize(path)
    os.truncate(path, size - cut if cut >= 1 else int(size * cut))
    with caplog.at_level(logging.WARNING, "outskirts"):
        again = Store(store.folder)
        assert again.ids() == {0, 1, 2, 3}
    assert len(caplog.messages) == 1
    assert "shard-00000004-00000007.parquet is corrupt" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert os.path.exists(path + ".corrupt")
    assert not again.holds([o.request for o in torn])
    again.append(torn)
    assert Store(store.folder).images()[0] == list(range(8))


def test_a_flipped_byte_among_the_pixels_is_noticed(store):
    path = os.path.join(store.folder, store.append([outlier(i, size=(40, 40)) for i in range(4)]))
    path = Path(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 100
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(OutskirtsError, match="is corrupt and was set aside"):
        Store(store.folder).images()
    assert path.with_name(path.name + ".corrupt").exists()


def test_a_full_disk_is_one_line_and_earlier_shards_stay(store, monkeypatch):
    store.append([outlier(0)])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutskirtsError, match=r"cannot write shard-.* No space left on device; make room") as e:
        store.append([outlier(1)])
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    assert sorted(os.listdir(store.folder)) == ["shard-00000000-00000000.parquet", "store.json"]
    assert Store(store.folder).ids() == {0}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutskirtsError, match="cannot write"):
        Store(tmp_path / "store", made_by={})


def test_any_fsspec_path():
    store = Store("memory://somewhere/store", made_by={"a": 1})
    store.append([outlier(i) for i in range(3)])
    assert Store("memory://somewhere/store").images()[0] == [0, 1, 2]


def test_the_same_batch_is_the_same_file_byte_for_byte(store, tmp_path):
    batch = [outlier(i) for i in range(3)]
    other = Store(tmp_path / "other", made_by={}, dials=["rho"])
    names = [s.append(b) for s, b in ((store, batch), (other, batch[::-1]))]
    assert names[0] == names[1] == shard_name([o.request for o in batch])
    first, second = (Path(s.folder, names[0]).read_bytes() for s in (store, other))
    assert first == second
