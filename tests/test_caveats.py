"""Numbers that say less than they seem to carry a mark: test sets of few images, methods that trained on what is tested."""

import re

import pytest

import comparison_run
from outskirts import caveats, checks
from outskirts.data import load
from outskirts.report import write_report
from test_comparison import edit, rows_of_main, written


def summary(place, group, n, auroc=(0.9, 0.8, 1.0)):
    return {"place": place, "group": group, "n_ood": n, "auroc": auroc}


MANY = [summary("a", "near", 80), summary("b", "far", 5), summary("c", "far", 1), summary("d", "far", 20)]


@pytest.mark.parametrize(
    ("summaries", "clause"),
    [
        (MANY, "2 of the 3 far sets have fewer than 20 images"),
        (MANY[1:3], "all 2 far sets have fewer than 20 images"),
        ([MANY[0], MANY[1]], "the one far set has fewer than 20 images"),
        (
            [*MANY[:2], MANY[3], summary("e", "near", 19)],
            "1 of the 2 near sets and 1 of the 2 far sets have fewer than 20 images",
        ),
        ([MANY[0], MANY[3], summary("f", "far", 2, None), summary("mean-far", "mean-far", 7)], None),
    ],
)
def test_sets_of_few_images_are_counted_where_they_are_in_the_means(summaries, clause):
    found = caveats.few(summaries)
    assert (found and found["clause"]) == clause


def shrink(rows):
    for r in rows:
        if r["set"] == "photos":
            r["n_ood"] = 5


@pytest.mark.parametrize("methods", [["good", "noise", "vos"], []])
def test_the_headlines_say_that_they_lean_on_few_images_and_the_set_is_marked(tmp_path, methods):
    folder = comparison_run.make(tmp_path / "run", methods, ["energy", "knn"], own=("good",) if methods else ())
    _, text, _ = written(folder)
    assert "fewer than" not in text
    edit(folder, "rows", shrink)
    _, text, facts = written(folder)
    assert facts["few"]["sets"] == ["photos"]
    report = (folder / "7-report/report.html").read_text(encoding="utf-8")
    for page in (text, report):
        marked = re.findall(r">([^<>]+)</(?:button|b)><sup title=\"fewer than 20 images\">", page)
        assert set(marked) == {"photos"}
        assert "§ has fewer than 20 images" in page
        heading = re.search(r"<h1>.*?</h1>", page, re.DOTALL)[0]
        assert "(1 of the 3 far sets has fewer than 20 images)" in heading


@pytest.mark.parametrize("kind", ["classes", "images"])
def test_a_method_that_trained_on_what_is_tested_is_marked_and_never_the_best(tmp_path, kind):
    sevens = load("digits[7]").take(3)
    lines = list(checks.of_outliers("vos", sevens, {"near one": ("near", sevens)}))
    (line,) = (x for x in lines if ("trains on classes" in x) == (kind == "classes"))
    recipe = {"methods": {"vos": {"outliers": "digits[7]"}, "shared": {"of": "vos"}, "noise": {"synth": "noise"}}}
    methods = ["good", "noise", "vos", "shared"]
    folder = comparison_run.make(tmp_path / "run", methods, ["energy", "knn"], recipe=recipe)

    def best(rows):
        for r in rows:
            if r["method"] in ("vos", "shared"):
                r |= {"auroc": 0.999, "auroc_lo": 0.998, "auroc_hi": 1.0}

    edit(folder, "rows", best)
    _, text, _ = written(folder)
    assert ">ceiling<" not in text
    assert any("best" in row for name, _, row in rows_of_main(text) if name.startswith("VOS"))
    edit(folder, "warnings", lambda x: x.append(line))
    page, text, facts = written(folder)
    assert facts["leaked"] == {"vos": line, "shared": line}
    for name, _, row in rows_of_main(text):
        mine = name.split()[0] in ("VOS", "shared")
        assert ('href="#before"' in row) == mine
        assert not (mine and re.search(r'class="m m\d fair', row))
    assert any(" fair best" in row for _, _, row in rows_of_main(text))
    assert 'id="before"' in text
    assert "VOS and shared trained on images or classes that are tested" in page.text


def test_the_score_of_the_headline_of_a_bench_alone_has_a_histogram(tmp_path):
    folder = comparison_run.make(tmp_path / "run", [], ["energy", "vim"], own=())

    def best(rows):
        for r in rows:
            r["auroc"] = 0.99 if r["score"] == "vim" else 0.6

    edit(folder, "rows", best)
    text = write_report(folder).read_text(encoding="utf-8")
    assert re.findall(r"<figure><h3>([^<,]+), plain classifier</h3>", text) == ["ViM", "Energy"]
