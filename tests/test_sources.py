"""Which ID images outliers start from: bytes per pixel, ranks within classes, names in lists."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from outskirts.data import Images
from outskirts.errors import OutskirtsError
from outskirts.sources import bytes_per_pixel, chosen, listed, look_up
from pictures import colour


def held(n=6, side=8):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)
    return Images("held", ["a", "b"], torch.arange(n) % 2, pixels)


def ratios(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_ratios_are_sorted_as_numbers_not_as_texts():
    images = Images("x", ["a"], torch.zeros(3, dtype=torch.long), torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert chosen(images, 2, ratios(9.9e-05, 1.3, 10.2)) == [2, 1]  # as texts, 9.9e-05 is the largest


def test_the_best_of_every_class_come_first_and_ties_by_name():
    images = held()
    assert chosen(images, 3, ratios(1, 5, 3, 5, 2, 9)) == [2, 5, 4, 1, 0, 3]
    assert chosen(images, 1, ratios(1, 5, 3, 5, 2, 9)) == [2, 5]
    assert chosen(images, 3, ratios(1, 5, 3, 5, 2, 9), rows=[0, 3]) == [0, 3]
    ten = Images("x", ["a"], torch.zeros(11, dtype=torch.long), files=[f"{i}.png" for i in range(10, -1, -1)])
    assert chosen(ten, 2, torch.ones(11, dtype=torch.float64)) == [10, 9]  # 0.png, 1.png


def test_jpeg_files_are_measured_as_they_are_and_others_coded_at_95(tmp_path):
    flat, busy = Image.new("RGB", (20, 10), "grey"), Image.fromarray(colour(np.random.default_rng(0), 10, 20))
    paths = [tmp_path / "flat.jpg", tmp_path / "busy.jpg"]
    flat.save(paths[0], quality=95, comment=b"makes the file longer")
    busy.save(paths[1], quality=30)
    labels = torch.zeros(2, dtype=torch.long)
    of_files = bytes_per_pixel(Images("x", ["a"], labels, files=paths))
    assert of_files.tolist() == [p.stat().st_size / 200 for p in paths]
    in_bytes = Images("x", ["a"], labels, files=[p.read_bytes() for p in paths])
    assert torch.equal(bytes_per_pixel(in_bytes), of_files)

    busy.save(tmp_path / "busy.png")
    mixed = bytes_per_pixel(Images("x", ["a"], labels, files=[paths[0], tmp_path / "busy.png"]))
    coded = io.BytesIO()
    busy.save(coded, "JPEG", quality=95)
    assert mixed[1] == coded.tell() / 200
    assert mixed[0] != of_files[0]  # one measure for all
    assert torch.equal(bytes_per_pixel(held()), bytes_per_pixel(held()))


def test_names_are_ends_of_paths_or_rows():
    files = ["root/dog/1.jpg", "root/cat/1.jpg", "root/cat/2.jpg"]
    images = Images("x", ["cat", "dog"], torch.tensor([1, 0, 0]), files=files)
    assert look_up(images, {"dog/1.jpg": "a", "root/cat/1.jpg": "b", "2.jpg": "c"}, "f") == {0: "a", 1: "b", 2: "c"}
    assert look_up(held(), {"4": "x"}, "f") == {4: "x"}
    with pytest.raises(OutskirtsError, match=r"'1.jpg' stands for 2 images"):
        look_up(images, {"1.jpg": "a"}, "f")
    with pytest.raises(OutskirtsError, match=r"names no image of x; its first is called root/dog/1.jpg"):
        look_up(images, {"9.jpg": "a"}, "f")
    with pytest.raises(OutskirtsError, match="called by their row"):
        look_up(held(), {"9.jpg": "a"}, "f")


def test_a_list_keeps_its_order(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("5\n\n2\n5\n")
    assert listed(held(), str(path)) == [5, 2]
    path.write_text("5\n17\n")
    with pytest.raises(OutskirtsError, match="'17' is no image of held"):
        listed(held(), str(path))
    with pytest.raises(OutskirtsError, match="one a line"):
        listed(held(), str(tmp_path / "missing"))
