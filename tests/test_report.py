"""The page says what the numbers allow, names what is missing, and needs nothing beside it."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from outskirts import inspection, verdict, wording
from outskirts.errors import OutskirtsError
from outskirts.report import write_report
from outskirts.store import Store
from outskirts.types import Outlier, Request
from report_run import Page, difference, make_run


def report(folder):
    page = write_report(folder)
    return Page(page.read_text(encoding="utf-8")), json.loads((page.parent / "report.json").read_text())


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", differences=[difference(), difference("noise", -0.01)])


@pytest.mark.parametrize(
    ("metric", "lo", "hi", "seeds", "expected"),
    [
        ("auroc", 0.01, 0.1, 3, "improves"),
        ("auroc", -0.1, -0.01, 3, "worsens"),
        ("fpr95_id", -0.1, -0.01, 3, "improves"),
        ("fpr95_ood", 0.01, 0.1, 3, "worsens"),
        ("auroc", -0.01, 0.1, 3, "no clear difference"),
        ("auroc", 0.0, 0.1, 3, "no clear difference"),
        ("auroc", 0.01, 0.1, 1, "no clear difference"),
        ("auroc", float("nan"), float("nan"), 3, "no clear difference"),
        ("auroc", None, None, 3, "no clear difference"),
    ],
)
def test_a_claim_needs_an_interval_without_zero_over_seeds(metric, lo, hi, seeds, expected):
    assert verdict.call(metric, lo, hi, seeds) == expected


def test_over_seeds_is_the_bootstrap_interval_for_one_seed_and_the_t_interval_without_bootstrap_error():
    assert verdict.over_seeds([(0.5, 0.4, 0.7)]) == pytest.approx([0.5, 0.4, 0.7])
    assert verdict.over_seeds([(0.5, 0.4, 0.7)] * 3) == pytest.approx([0.5, 0.4, 0.7])
    values = [0.5, 0.6, 0.64]
    lo, hi = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert verdict.over_seeds([(v, v, v) for v in values]) == pytest.approx([np.mean(values), lo, hi])
    assert verdict.over_seeds([(0.5, None, None), (float("nan"), 0, 1)]) == [0.5, None, None]
    assert verdict.over_seeds([(float("nan"), 0, 1)]) is None


def test_verdict_speaks_of_the_plain_classifier_and_of_the_noise_floor(run):
    page, facts = report(run)
    expected = (
        "GOOD improves on the plain classifier (+10.0 points of AUROC, +6.0 to +14.0), "
        "but shows no clear difference from the noise floor (-1.0 points of AUROC, -5.0 to +3.0)."
    )
    expected = expected.replace("-", wording.MINUS)
    assert facts["verdict"]["sentence"] == expected
    assert expected.replace(" ", "") in page.text.replace(" ", "").replace("\xa0", "")


def test_verdict_does_not_repeat_a_claim_that_the_interval_does_not_allow(tmp_path):
    claims = [difference(half=0.2, verdict="improves"), difference("noise", verdict="improves", seeds=1)]
    page, facts = report(make_run(tmp_path / "run", differences=claims, seeds=(0,)))
    assert [c["verdict"] for c in facts["verdict"]["clauses"]] == ["no clear difference"] * 2
    assert "one training seed" in page.text
    assert "GOOD improves" not in page.text


def test_verdict_never_rests_on_a_transductive_score_or_on_two_different_scores(tmp_path):
    unfair = [difference(score="unified", baseline_score=s, diff=0.3) for s in ("unified", "energy")]
    _, facts = report(make_run(tmp_path / "run", differences=unfair))
    assert [c["verdict"] for c in facts["verdict"]["clauses"]] == [None, None]
    assert "was not compared" in facts["verdict"]["sentence"]


def test_groups_that_disagree_with_the_verdict_are_named(tmp_path):
    worse = difference(set="mean-near", diff=-0.1)
    page, facts = report(make_run(tmp_path / "run", differences=[difference(), worse]))
    assert facts["verdict"]["exceptions"] == ["against the plain classifier, AUROC on near sets: worsens"]
    assert facts["verdict"]["exceptions"][0] in page.text


def test_a_better_score_of_the_plain_classifier_alone_is_named():
    row = {
        "method": "good",
        "baseline": "plain",
        "place": "mean-all",
        "metric": "auroc",
        "diff": 0.1,
        "lo": 0.05,
        "hi": 0.15,
    }
    row |= {"seeds": 3, "transductive": False, "verdict": "improves"}
    energy = row | {"score": "energy", "baseline_score": "energy", "before": 0.85, "after": 0.95}
    knn = row | {"score": "knn", "baseline_score": "knn", "before": 0.976, "after": 0.98}
    told = "the plain classifier's kNN score alone reaches 97.6, GOOD 95.0"
    assert verdict.verdict([energy, knn], "good")["exceptions"] == [told]
    assert verdict.verdict([energy, knn | {"transductive": True}], "good")["exceptions"] == []
    assert verdict.verdict([energy, knn | {"before": 0.94}], "good")["exceptions"] == []


def test_scores_that_disagree_with_the_verdict_are_named(tmp_path):
    def by(score, diff, **changes):
        return difference("noise", diff, score=score, baseline_score=score, **changes)

    others = [by("knn", -0.1), by("msp", -0.1), by("gen", 0.01), by("vim", 0.2), by("unified", -0.1, transductive=True)]
    folder = make_run(tmp_path / "run", differences=[difference(), difference("noise"), *others])
    page, facts = report(folder)
    told = ["against the noise floor, AUROC with kNN, MSP: worsens"]
    told += ["against the noise floor, AUROC with GEN: no clear difference"]
    assert facts["verdict"]["exceptions"] == told
    assert all(line in page.text for line in told)


def test_a_baseline_above_every_row_of_the_method_is_named_under_the_headline(tmp_path):
    across = difference("noise", -0.02, half=0.01)
    page, facts = report(make_run(tmp_path / "run", differences=[difference(), across]))
    told = "The noise floor with energy ranks above GOOD with any score: AUROC 82.5 against at best 80.5 (energy), a clear difference."
    assert facts["verdict"]["ahead"]["sentence"] == told
    assert page.text.index("GOOD improves on") < page.text.index(told) < page.text.index("Mean over all OOD test sets")
    page, facts = report(make_run(tmp_path / "two", differences=[difference()], methods=("plain", "good")))
    assert facts["verdict"]["ahead"] is None
    assert "ranks above" not in page.text


@pytest.mark.parametrize(
    ("diff", "says"),
    [
        (-0.1, "Training made detection worse: take the plain one."),
        (0.1, "Training made detection better: take the trained one."),
        (0.01, "Training made no clear difference: either will do."),
    ],
)
def test_the_detector_to_take_is_named_by_the_verdict(tmp_path, diff, says):
    folder = make_run(tmp_path / "run", differences=[difference(diff=diff), difference("noise")])
    assert report(folder)[1]["detectors"] is None
    for name in ("detector", "detector-plain"):
        (folder / "6-bench" / name).mkdir()
        (folder / "6-bench" / name / "detector.json").write_text('{"score": "energy"}')
    page, facts = report(folder)
    words = page.text.replace(" .", ".")
    assert all(f"6-bench/{name}" in words for name in ("detector ,", "detector-plain ,"))
    assert says in words
    assert facts["detectors"]["take"] == {-0.1: "6-bench/detector-plain", 0.1: "6-bench/detector"}.get(diff)


def test_what_the_intervals_cover_is_said_once(run):
    page, _ = report(run)
    assert page.text.count("another classifier or another set of outliers can shift a difference by more than") == 1
    assert ("a", {"href": "#interval"}) in page.tags


def test_transductive_numbers_carry_their_mark_and_no_other_number_does(run):
    page, _ = report(run)
    by_score = {
        s: [r for r in page.rows if r and r[0].strip().startswith(s) and len(r) > 2] for s in ("unified", "energy")
    }
    assert by_score["unified"]
    assert by_score["energy"]
    assert all("transductive" in r[0] for r in by_score["unified"])
    assert all("†" in cell for r in by_score["unified"] for cell in r[1:])
    assert not any("†" in cell for r in by_score["energy"] for cell in r)


def test_tables_print_percent_with_one_decimal_and_the_json_is_not_rounded(run):
    page, facts = report(run)
    good = next(s for s in facts["tables"] if (s["method"], s["score"], s["place"]) == ("good", "energy", "mean-all"))
    assert good["auroc"][0] == pytest.approx(0.805)
    assert good["auroc"][1] < 0.785  # wider than the bootstrap alone: two seeds differ
    assert any("80.5" in cell for r in page.rows for cell in r)


def test_noise_floor_row_is_there_even_where_it_was_not_measured(tmp_path):
    folder = make_run(tmp_path / "run", differences=[difference()], methods=("plain", "good"))
    page, facts = report(folder)
    assert ["noise floor", "not in this run"] in [[c.strip() for c in r] for r in page.rows]
    assert "noise floor" in [m["part"] for m in facts["missing"]]
    assert "was not compared with the noise floor" in facts["verdict"]["sentence"]


def test_missing_parts_are_named_and_the_rest_is_shown(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"name": "bare"}}))
    page, facts = report(tmp_path)
    for part in (
        "rows.json",
        "differences.json",
        "scores.npz",
        "outliers.json",
        "fit.json",
        "shard-*.parquet",
        "log.json",
    ):
        assert part in page.text
    assert "no verdict" in page.text
    assert facts["verdict"] is None


@pytest.mark.parametrize("gone", ["run.json", "6-bench/differences.json", "6-bench/outliers.json", "3-synth/fit.json"])
def test_any_single_part_may_be_missing(run, gone):
    (run / gone).unlink()
    page, facts = report(run)
    assert [m["file"] for m in facts["missing"]] == [gone]
    assert gone in page.text


def test_probe_and_time_of_each_step_are_shown(run):
    page, facts = report(run)
    assert facts["probe"]["image"]["unit"] == 0.5
    assert facts["probe"]["image"]["grid"] == [0.05, 2.5]
    assert "Where the strength landed: image level" in page.text
    assert facts["seconds"] == {"6-bench": 12.5}


def test_inverted_energy_is_shown_as_a_failure(run):
    page, _ = report(run)
    assert ["GOOD", "0", *[f"{wording.MINUS}5.00"] * 4, "\N{BALLOT X} fails"] in page.rows


def test_a_torn_file_is_named_in_one_line(run):
    scores = run / "6-bench/scores.npz"
    scores.write_bytes(scores.read_bytes()[:200])
    with pytest.raises(OutskirtsError, match=r"cannot read .*scores\.npz"):
        write_report(run)


def test_page_fetches_nothing(run):
    path = write_report(run)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    tags = Page(text).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    links = [a[k] for _, a in tags for k in ("src", "href") if k in a]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    anchors = {a["id"] for _, a in tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert "A &lt;tiny&gt; run." in text


def test_outside_counts_what_lies_beyond_the_id_validation_images(run):
    _, facts = report(run)
    # ID validation runs evenly from -10 to 3, so its 95 % point is 2.35: energies 3 .. 8 of 0 .. 8 lie beyond.
    assert facts["outside"]["bound"]["energy"] == pytest.approx(2.35)
    assert facts["outside"]["all"]["beyond_energy"] == pytest.approx(6 / 9)
    assert facts["outside"]["all"]["confident"] == pytest.approx(4 / 9)
    assert facts["outside"]["id_val"]["confident"] == 1
    assert facts["energy_grid"]["mean_energy"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert sum(lv["n"] for lv in facts["outside"]["levels"]) == 9


def test_gallery_goes_from_weak_to_strong_and_shows_the_stored_pixels(run):
    path = write_report(run)
    facts = json.loads((path.parent / "report.json").read_text())
    span = f"0.2{wording.DASH}1.1"
    assert [g["label"] for g in facts["gallery"]] == [f"{inspection.RHO_MU} {x}" for x in (span, "2", "5.1", "6", "10")]
    ids = [i["id"] for g in facts["gallery"] for i in g["images"]]
    assert sorted(ids) == list(range(9))
    figures = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" alt="outlier (\d+)"', path.read_text(encoding="utf-8")
    )
    assert len(figures) == 9
    for data, i in figures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (int(i), 0, 255 - int(i))


def test_levels_keep_equal_strengths_together_and_leave_failures_out():
    dials = [{"strength": s} for s in (3.0, 1.0, 3.0, 1.0, 2.0)]
    outliers = [{"dials": d, "left_out": None} for d in dials] + [{"dials": {"strength": 9.0}, "left_out": "NaN"}]
    found = inspection.levels(outliers, np.zeros(6))
    assert [lv["rows"] for lv in found] == [[1, 3], [4], [0, 2]]


def test_levels_of_bad_ood_are_the_ratios_that_were_asked_for():
    outliers = [{"dials": {"ratio": r}, "notes": {"knn_ratio": 9.0}, "left_out": None} for r in (1.2, 1.0, 1.1, 1.0)]
    found = inspection.levels(outliers, np.array([-9.0, -1.0, -2.0, -3.0]))
    assert [(lv["label"], lv["rows"]) for lv in found] == [
        ("kNN ratio 1", [1, 3]),
        ("kNN ratio 1.1", [2]),
        ("kNN ratio 1.2", [0]),
    ]


@pytest.mark.parametrize(
    ("dials", "heading", "order"),
    [
        ([{"ratio": 1 + i / 10} for i in range(4)], "weak to strong", "sorted by how hard they were pushed"),
        ([{"strength": 3.75}] * 4, "weak to strong", "all pushed equally hard"),
        ([{}] * 4, "by their energy", "sorted by the energy that the plain classifier gives them"),
    ],
)
def test_the_heading_says_by_what_the_outliers_are_sorted(run, dials, heading, order):
    for shard in (run / "3-synth/store").glob("shard-*"):
        shard.unlink()
    grey = torch.zeros(3, 8, 8, dtype=torch.uint8)
    made = [Outlier(Request(i, i, 0, dials=d), grey) for i, d in enumerate(dials)]
    Store(run / "3-synth/store").append(made)
    page, facts = report(run)
    assert f"The outliers, {heading} Stored outliers, {order}" in page.text
    assert ("by how hard" in page.text) == (order == "sorted by how hard they were pushed")
    assert facts["sorted_by"] == {"ratio": "kNN ratio", "strength": "strength"}.get(next(iter(dials[0]), ""), "energy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "no folder"),
        (lambda p: p, "neither run.json nor"),
        (lambda p: (p / "run.json").write_text("{") and p, "cannot read"),
    ],
)
def test_bad_folders_are_told_in_one_line(tmp_path, make, message):
    with pytest.raises(OutskirtsError, match=message) as error:
        write_report(make(tmp_path))
    assert "\n" not in str(error.value)
