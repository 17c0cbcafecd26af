"""The report of a run with filters on several stores: each store is shown once, with pictures of its own outliers."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from outskirts import filter_report
from outskirts.filter_settings import FilterSettings
from outskirts.report import write_report
from outskirts.run import run
from outskirts.store import Store
from own.tiny import recipe
from report_run import Page

METHODS = {
    "low": {"of": "own.speckle", "filter": {"band": "low"}},
    "shuffled": {"synth": "shuffle", "filter": {"band": "high"}},
    "shuffled, mid": {"of": "shuffled", "filter": {"band": "mid"}},
}
VERDICTS = ("4-filter/verdict", "4-filter/verdict-low", "4-filter/verdict-shuffled", "4-filter/verdict-shuffled-mid")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "filters"
    stages = ("classifier", "synth", "train:scout", "filter", "report")
    r = dataclasses.replace(recipe(), stages=stages, floor=False, methods=METHODS)
    run(dataclasses.replace(r, filter=FilterSettings(calibration="rank")), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def shown(folder):
    return filter_report.gather(folder, json.loads((folder / "run.json").read_text())["recipe"], [])


def test_every_store_that_was_looked_at_is_on_the_page(folder, shown):
    assert {p.parent.name for p in folder.glob("6-look*/look.json")} == {"6-look", "6-look-shuffled"}
    (further,) = shown["further"]
    look = json.loads((folder / "6-look-shuffled/look.json").read_text())
    assert further["looked"] == look["verdicts"]["4-filter/verdict-shuffled-mid"]
    assert further["main"]["method"] == "shuffled, mid"
    assert shown["main"]["method"] == "own.speckle"
    assert further.keys() <= shown.keys()  # all that is shown of the recipe's own, and nothing else
    page = Page((folder / "7-report/report.html").read_text(encoding="utf-8"))
    kept = further["main"]["counts"]["kept"]
    for words in ("What lies in each band", "What is seen in them", "Where P(ID) falls", "rank correlation"):
        assert page.text.count(words) == 2, words
    assert page.text.count(f"shuffled, mid: {kept} of 40 kept") == 1
    assert [tag for tag, _ in page.tags].count("details") == 2  # it, and the recipe


def test_its_pictures_are_few_and_its_own(folder, shown):
    (further,) = shown["further"]
    for x, name, most in ((shown, "3-synth", filter_report.PER_BAND), (further, "3-synth-shuffled", 6)):
        assert [row["n"] for row in x["gallery"]] == [b["n"] for b in x["main"]["counts"]["bands"].values()]
        assert [len(row["images"]) for row in x["gallery"]] == [min(row["n"], most) for row in x["gallery"]]
        ids, images = Store(folder / name / "store").images(without=())
        stored = dict(zip(ids, images.pixels, strict=True))
        for picture in (i for row in x["gallery"] for i in row["images"]):
            png = base64.b64decode(picture["src"].partition(",")[2])
            assert (np.array(Image.open(io.BytesIO(png))) == stored[picture["id"]].permute(1, 2, 0).numpy()).all()


def test_the_table_says_where_each_verdict_lies_and_how_many_it_keeps(folder, shown):
    assert tuple(v["folder"] for v in shown["verdicts"]) == VERDICTS
    rows = Page((folder / "7-report/report.html").read_text(encoding="utf-8")).rows
    for v in shown["verdicts"]:
        (row,) = (r for r in rows if r and r[-1] == v["folder"])
        assert row[0] == v["method"]
        kept = json.loads((folder / row[-1] / "verdict.json").read_text())["keep"]
        assert row[5:7] == [str(sum(kept)), str(len(kept))]


def test_what_an_earlier_recipe_left_is_not_shown(folder, shown, tmp_path):
    """A look at a filter that is not there any more."""
    stale = folder / "6-look-gone"
    stale.mkdir()
    (stale / "look.json").write_text(json.dumps({"verdicts": {"4-filter/verdict-gone": {}}}))
    page = write_report(folder, tmp_path).read_text(encoding="utf-8")
    (stale / "look.json").unlink()
    stale.rmdir()
    assert Page(page).text.count("What lies in each band") == 2
