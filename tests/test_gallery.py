"""The report's gallery: which outliers it shows, and the ID images beside those that were made from one."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from outskirts import bench_facts, inspection
from outskirts.gallery import PER_ROW, gallery, shown
from outskirts.methods import methods
from outskirts.report import gather, write_report
from outskirts.run import run
from outskirts.store import Store
from outskirts.types import Outlier, Request
from own.tiny import recipe
from report_run import Page, difference, make_run


def grey(value):
    return torch.full((3, 8, 8), value, dtype=torch.uint8)


def test_classes_stand_side_by_side_smallest_ids_first():
    rows = [{"id": 30 - i, "label": i % 3} for i in range(30)]
    level = {"rows": list(range(30))}
    (picked,) = shown(rows, [level])
    each = PER_ROW // 3
    assert [rows[i]["label"] for i in picked] == [y for y in range(3) for _ in range(each)]
    for y in range(3):
        mine = sorted(r["id"] for r in rows if r["label"] == y)[:each]
        assert [rows[i]["id"] for i in picked if rows[i]["label"] == y] == mine


def test_source_and_outlier_stand_side_by_side(tmp_path):
    folder = make_run(tmp_path / "run", differences=[difference()])
    for shard in (folder / "3-synth/store").glob("shard-*"):
        shard.unlink()
    requests = [Request(i, i, 0, source=7 - i, prompt="six", dials={"T": 1 + i}) for i in range(8)]
    Store(folder / "3-synth/store").append([Outlier(r, grey(10 * r.id)) for r in requests])
    where = "ID images that outliers were made from"
    assert where in [m["part"] for m in gather(folder)["missing"]]
    images = np.stack([np.full((3, 8, 8), 200 + (7 - i), np.uint8) for i in range(8)])
    np.savez(folder / "6-bench/sources.npz", id=np.arange(8), images=images)
    facts = gather(folder)
    assert where not in [m["part"] for m in facts["missing"]]
    spans = ("1\N{EN DASH}2", "3\N{EN DASH}4", "5", "6\N{EN DASH}7", "8")
    assert [g["label"] for g in facts["gallery"]] == [f"T {x}" for x in spans]
    page = write_report(folder).read_text(encoding="utf-8")
    Page(page)  # its tags nest
    pair = r'<img src="data:image/png;base64,([^"]+)" alt="ID image (\d)"[^>]*><img src="data:image/png;base64,([^"]+)" alt="outlier (\d)"'
    found = re.findall(pair, page)
    assert len(found) == 8
    for source, row, outlier, id in found:
        pixels = [Image.open(io.BytesIO(base64.b64decode(x))).getpixel((0, 0)) for x in (source, outlier)]
        assert int(row) == 7 - int(id)
        assert pixels == [(200 + int(row),) * 3, (10 * int(id),) * 3]
    assert "towards six" in page


def test_the_bench_keeps_the_id_images_that_the_gallery_wants(tmp_path, monkeypatch):
    """Rows of the training images, by outlier id, for those that are shown and no others; nothing where nothing has a source."""
    few = {"floor": False, "seeds": (0,), "scores": ("energy",), "score_with": {}, "n_outliers": 100}
    shuffled = replace(recipe(), synth="shuffle", synth_with={}, **few)
    done = run(shuffled, tmp_path / "run", until="bench", progress=False)
    facts = gather(tmp_path / "run")
    with np.load(tmp_path / "run/6-bench/sources.npz") as kept:
        sources = {int(i): x for i, x in zip(kept["id"], kept["images"], strict=True)}
    pictures = {i["id"]: i["source"] for g in facts["gallery"] for i in g["images"]}
    assert sources.keys() == pictures.keys()
    train = done.inputs.parts["train"].pixels.numpy()
    assert all((sources[i] == train[row]).all() for i, row in pictures.items())
    assert all(i["made_from"]["src"] for g in facts["gallery"] for i in g["images"])
    own = methods(shuffled)[0]
    measured = {"id": [], "energy": []}
    monkeypatch.setattr(inspection, "read_rows", lambda folder: [{"source": None}])
    assert bench_facts.sources(done, own, measured) == {}


def test_without_sources_nothing_changes(tmp_path):
    rows = [{"id": 0, "label": 0, "source": None, "prompt": None}]
    Store(tmp_path, made_by={}).append([Outlier(Request(0, 0, 0), grey(9))])
    level = {"target": None, "about": "outliers", "label": "x", "level": 0, "of": 1, "rows": [0]}
    (strip,) = gallery(tmp_path, rows, [level], {}, {})
    assert strip["images"][0]["made_from"]["src"] is None
