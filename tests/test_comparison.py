"""Many methods on one page: its numbers are those of the JSON, its words those that the intervals allow, and it needs nothing beside it."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

import comparison_run
from outskirts import panels, ranking, verdict, wording
from outskirts.report import write_report
from outskirts.store import Store
from outskirts.types import Outlier, Request
from report_run import Page

METHODS, SCORES = ["good", "good-image", "noise", "vos"], ["energy", "knn", "unified"]


def written(folder):
    out = write_report(folder).parent
    text = (out / "comparison.html").read_text(encoding="utf-8")
    return Page(text), text, json.loads((out / "comparison.json").read_text())


def edit(folder, name, change):
    path = folder / "6-bench" / f"{name}.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path):
    own = ("good", "good-image")
    return comparison_run.make(tmp_path / "run", METHODS, SCORES, own=own, plain_scores=("vim",))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a run whose page is written, and the page; tests leave it as it is."""
    own, folder = ("good", "good-image"), tmp_path_factory.mktemp("runs") / "run"
    comparison_run.make(folder, METHODS, SCORES, own=own, plain_scores=("vim",))
    return folder, written(folder)


def rows_of_main(text):
    """(method and score as sorted by, {'metric number': values in the order of the places}, text of each cell) of each row."""
    body = text[text.index('<table class="sortable main"') :]
    body = body[: body.index("</tbody>")]
    for row in re.findall(r"<tr data-score.*?</tr>", body, re.DOTALL):
        cells = re.findall(r'<td class="m m(\d)[^"]*"(?: data-v="([^"]+)")?.*?</td>', row, re.DOTALL)
        values = {}
        for at, v in cells:
            values.setdefault(int(at), []).append(float(v) if v else None)
        yield re.search(r'data-v="([^"]+)"', row)[1], values, row


def test_every_number_of_the_main_table_is_the_one_of_the_json(done):
    _, (_, text, facts) = done
    known = {(s["method"], s["score"], s["place"]): s for s in facts["tables"]}
    names = {f"{wording.label(m)} {wording.label(s)}": (m, s) for m, s, _ in known}
    found = list(rows_of_main(text))
    assert len(found) == len(names) == 5 * 3 + 1
    for name, values, row in found:
        for at, metric in enumerate(verdict.METRICS):
            cells = [known[(*names[name], place)][metric] for place in verdict.MEANS]
            assert values[at] == pytest.approx([c[0] for c in cells], abs=1e-6)
            for c in cells:
                assert wording.pct(c[0]) in row
                assert f"{wording.pct(c[1])}{wording.DASH}{wording.pct(c[2])}" in row


def test_rows_start_in_the_order_that_the_heading_says_and_every_heading_can_be_pressed(done):
    _, (page, text, _) = done
    values = [v[0][2] for _, v, _ in rows_of_main(text)]
    assert values == sorted(values, reverse=True)
    sorted_by = [a for tag, a in page.tags if tag == "th" and "aria-sort" in a]
    assert [(a["data-place"], a["aria-sort"]) for a in sorted_by] == [("mean-all", "descending")]
    headings = re.findall(r'<th scope="col"[^>]*data-first="(\w+)"[^>]*>(.{8})', text)
    assert len(headings) > 15
    assert all(inner == "<button " for _, inner in headings)
    lower = re.findall(r'class="m m[12]" data-place="[^"]+" data-first="(\w+)"', text)
    assert set(lower) == {"ascending"}  # of both FPR95, the lowest first


def test_page_fetches_nothing_and_links_to_the_report_and_back(done):
    run, (page, text, _) = done
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert all("src" not in a for tag, a in page.tags if tag == "script")
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {x[1:] for x in links if x.startswith("#")} <= anchors
    assert {x for x in links if not x.startswith("#")} == {"report.html", "report.html#words"}
    report = (run / "7-report" / "report.html").read_text(encoding="utf-8")
    assert 'href="comparison.html"' in report
    assert 'id="words"' in report


def test_labels_are_escaped_in_the_page_and_in_the_data_of_its_script(tmp_path):
    evil = "</script><script>alert(1)</script>"
    folder = comparison_run.make(tmp_path / "run", ["good", evil], ["energy", "<i>"], sets={"<u>": "near", "b": "far"})
    page, text, facts = written(folder)
    assert evil not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert not {"i>", "u>"} & {tag for tag, _ in page.tags}
    assert evil in facts["standing"]["methods"]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert [evil, "plain"] in json.loads(data)["forest"]["pairs"]


def test_forest_holds_the_differences_of_the_bench_with_the_verdict_of_their_interval(done):
    run, (_, text, _) = done
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    forest = json.loads(data)["forest"]
    rows = json.loads((run / "6-bench/differences.json").read_text())
    places, seen = list(verdict.MEANS), 0
    for d in (d for d in rows if d["set"] in places):
        at = forest["pairs"].index([d["method"], d["baseline"]])
        *numbers, call = forest["cells"][f"{d['score']}|{d['metric']}"][at][places.index(d["set"])]
        assert numbers == pytest.approx([d["diff"], d["lo"], d["hi"]], abs=1e-5)
        assert forest["calls"][call] == verdict.call(d["metric"], d["lo"], d["hi"], d["seeds"])
        seen += 1
    assert seen == sum(v is not None for grid in forest["cells"].values() for row in grid for v in row)
    assert forest["transductive"] == ["unified"]


def standing(values, own, differences=()):
    """`ranking.standing` of methods with these mean AUROCs, energy score."""
    cell = {"score": "energy", "place": "mean-all", "seeds": 3, "transductive": False, "n_excluded": 0}
    summaries = [cell | {"method": m, "auroc": [v, v - 0.01, v + 0.01]} for m, v in values.items()]
    pair = {"baseline_score": "energy", "score": "energy", "place": "mean-all", "metric": "auroc", "seeds": 3}
    pair |= {"before": None, "after": None, "transductive": False}
    rows = [pair | {"method": m, "baseline": b, "diff": d, "lo": d - 0.02, "hi": d + 0.02} for m, b, d in differences]
    rows = [r | {"verdict": verdict.call("auroc", r["lo"], r["hi"], 3)} for r in rows]
    return ranking.standing(summaries, rows, own, "energy")


def test_own_methods_are_held_against_the_best_baseline_by_the_paired_interval_alone():
    values = {"plain": 0.80, "a": 0.95, "b": 0.93, "vos": 0.90, "npos": 0.91}
    found = standing(values, ["a", "b"], [("a", "npos", 0.04), ("b", "npos", 0.015), ("a", "vos", 0.05)])
    assert found["best_is_own"]
    assert found["best_baseline"]["method"] == "npos"
    assert [(c["method"], c["verdict"]) for c in found["against"]] == [("a", "improves"), ("b", "no clear difference")]
    # The values differ by 4 points, but nothing was compared: nothing is claimed.
    assert standing(values, ["a"])["against"][0]["verdict"] is None
    assert not standing(values | {"vos": 0.99}, ["a", "b"])["best_is_own"]


def test_sides_with_scores_of_their_own_are_held_against_the_best_of_the_plain_classifier_and_of_the_baselines(run):
    _, text, facts = written(run)
    forest = re.search(r'"forest": (.*?)"heat"', text, re.DOTALL)[1]
    assert all(c["verdict"] is None for c in facts["standing"]["across"] if c["score"] != c["baseline_score"])
    fair = ranking.whole(facts["tables"])
    sides = [(a, b) for a, b in ranking.across(fair, facts["own"]) if a["score"] != b["score"]]
    top = {
        m: max(s["auroc"][0] for s in fair if (s["method"], s["place"]) == (m, "mean-all")) for m in (*METHODS, "plain")
    }
    assert {b["method"] for _, b in sides} <= {"plain", max(("plain", "noise", "vos"), key=top.get)}
    assert all(
        b["auroc"][0] == top[b["method"]] and (a["score"] == "energy" or a["auroc"][0] == top[a["method"]])
        for a, b in sides
    )
    assert not any(s["transductive"] for pair in sides for s in pair)

    def cross(rows):
        for a, b in sides:
            d = a["auroc"][0] - b["auroc"][0]
            pair = {"method": a["method"], "score": a["score"], "baseline": b["method"], "baseline_score": b["score"]}
            rows.append(
                pair | {"set": "mean-all", "metric": "auroc", "diff": d, "lo": d - 0.01, "hi": d + 0.01, "seeds": 3}
            )

    edit(run, "differences", cross)
    page, text, facts = written(run)
    found = [c for c in facts["standing"]["across"] if c["verdict"]]
    assert len(found) >= len(sides) > 0
    assert "Each with a score of its own" in page.text
    assert "Every method with a score of its own, against the plain classifier" in page.text
    for c in found:
        assert f"{wording.label(c['score'])} {wording.pct(c['auroc'][0])}</small>" in text
        assert wording.signed(c["diff"]) in text
    assert re.search(r'"forest": (.*?)"heat"', text, re.DOTALL)[1] == forest  # of equal scores alone


def test_the_headline_says_that_a_baseline_leads(run):
    page, _, facts = written(run)
    best = facts["standing"]["best"]
    values = {s["method"]: s["auroc"][0] for s in facts["tables"] if (s["score"], s["place"]) == ("energy", "mean-all")}
    assert best["method"] == max(values, key=values.get)
    assert facts["own"] == ["good", "good-image"]

    def spoil(rows):
        for r in rows:
            if r["method"] in ("good", "good-image"):
                r["auroc"] -= 0.3

    edit(run, "rows", spoil)
    page, _, facts = written(run)
    assert not facts["standing"]["best_is_own"]
    assert ", a baseline, has the highest mean AUROC of 5 methods" in page.text
    assert "picked after looking" in page.text


def test_what_is_transductive_or_misses_a_set_is_marked_and_never_the_best(run):
    def change(rows):
        for r in rows:
            if r["score"] == "unified":
                r["auroc"] = 0.999
            if (r["method"], r["score"]) != ("vos", "knn"):
                continue
            if r["set"] == "svhn":
                r |= {k: None for k in r if re.match("auroc|aupr|fpr95", k)} | {"excluded": "every score is <0>"}
            elif r["set"] in ("mean-far", "mean-all"):
                r |= {"auroc": 0.998, "n_excluded": 1, "n_sets": 4}

    edit(run, "rows", change)
    _, text, facts = written(run)
    rows = {name: row for name, _, row in rows_of_main(text)}
    assert "best" not in rows["VOS kNN"]
    assert "99.8<sup" in rows["VOS kNN"]
    assert all("best" not in row and "transductive" in row for name, row in rows.items() if name.endswith("unified"))
    assert sum("best" in row for row in rows.values()) > 0
    assert facts["standing"]["best_of_all"]["auroc"][0] < 0.99
    assert "every score is &lt;0&gt;" in text
    assert text.count("VOS, kNN") == 1  # in the notes


def test_only_what_may_be_bold_is_marked_for_the_script_that_makes_the_shown_best_bold(done):
    _, (_, text, facts) = done
    fair = {(s["method"], s["score"]) for s in ranking.whole(facts["tables"])}
    names = {f"{wording.label(m)} {wording.label(s)}": (m, s) for m, s in fair}
    for name, _, row in rows_of_main(text):
        assert len(re.findall(r'class="m m\d fair', row)) == (15 if name in names else 0), name
        assert f'data-who="{name.rpartition(" ")[0]} with {name.rpartition(" ")[2]}"' in row
    assert 'id="hidden-best"' in text


def test_inverted_energies_are_one_line_per_method_and_marked_where_energy_ranks_them(run):
    for key, seed, turned in (
        ("vos", 0, True),
        ("vos", 1, True),
        ("vos", 2, False),
        ("good-image", 0, False),
        ("", 0, True),
    ):
        folder = run / "5-train" / key / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "log.json").write_text(json.dumps({"epochs": [], "energy_check": {"inverted": turned}}))
    page, text, facts = written(run)
    assert [(x["method"], x["seeds"], x["of"]) for x in facts["inverted"]] == [("good", 1, 1), ("vos", 2, 3)]
    assert "VOS: after training, its held-out outliers have less energy than ID images in 2 of 3 seeds" in page.text
    assert page.text.count("held-out outliers have less energy") == 2  # a line for each of two methods
    assert "no score" not in page.text
    assert "train.phi=monotone" in page.text
    assert "The training of GOOD and VOS left energy pointing the wrong way on their own outliers" in page.text
    marked = {name for name, _, row in rows_of_main(text) if ">inverted<" in row}
    assert marked == {"GOOD energy", "VOS energy"}
    best = max(
        s["auroc"][0] for s in ranking.whole(facts["tables"]) if (s["method"], s["place"]) == ("vos", "mean-all")
    )
    assert facts["inverted"][1]["best"]["auroc"][0] == best


def test_memory_is_what_a_step_added_and_has_no_bar_where_that_is_not_known(run):
    page, text, _ = written(run)
    costs = re.search(r'<section id="cost">.*?</section>', text, re.DOTALL)[0]
    assert "memory added" not in costs
    assert costs.count("<u>") == 2 * len(METHODS)  # times alone
    assert "peaked at 1.50 to 1.50" in page.text

    def measure(rows):
        for i, m in enumerate(rows[:3]):
            m |= {"train_start_gib": 1.0, "train_peak_gib": 1.0 + 0.25 * (i + 1)}
            m |= {"train_memory_apart": True, "synth_start_gib": 1.0, "synth_peak_gib": 1.5}  # synth: an older run

    edit(run, "methods", measure)
    _, text, _ = written(run)
    costs = re.search(r'<section id="cost">.*?</section>', text, re.DOTALL)[0]
    assert re.findall(r'data-v="([\d.]+)"><span>[\d.]+&nbsp;GiB <small>peak', costs) == ["0.25", "0.5", "0.75"]
    assert costs.count('<i style="width:33.3%">') == 1
    assert costs.count("<u>") == 2 * len(METHODS) + 3  # none for what cannot be told from what earlier steps left
    assert "<small>peak 1.50</small></td>" in costs  # of the method without a start: no bar


def test_numbers_that_are_missing_are_named_and_do_not_stop_the_page(run):
    def forget(rows):
        for r in rows:
            if r["method"] == "vos":
                r |= {k: None for k in r if re.match("auroc|aupr|fpr95", k)} | {"n_excluded": 5}
            if r["set"] not in verdict.MEANS and r["method"] == "vos":
                r["excluded"] = "3 of 80 ID scores are NaN or infinite"

    edit(run, "rows", forget)
    for name in ("differences.json", "scores.npz", "methods.json"):
        (run / "6-bench" / name).unlink()
    page, text, facts = written(run)
    assert {m["file"] for m in facts["missing"]} >= {"6-bench/methods.json", "6-bench/scores.npz"}
    vos = next(row for name, _, row in rows_of_main(text) if name == "VOS energy")
    assert vos.count("excluded</td>") == 15
    assert "No differences in this run." in page.text
    assert facts["own"] == ["good", "good-image"]  # from the recipe


def test_a_bench_without_methods_compares_its_scores(tmp_path):
    folder = comparison_run.make(tmp_path / "run", [], ["msp", "knn", "unified"], own=())
    page, _, facts = written(folder)
    best = max(
        (s for s in facts["tables"] if s["place"] == "mean-all" and s["score"] != "unified"), key=lambda s: s["auroc"]
    )
    assert facts["standing"]["best"]["score"] == best["score"]
    assert f"{wording.label(best['score'])} has the highest mean AUROC of 2 scores" in page.text
    assert "differences" not in {a.get("id") for _, a in page.tags}
    assert [p["set"] for p in facts["roc"]] == list(comparison_run.SETS)
    assert "Compare its 2 scores" in (folder / "7-report/report.html").read_text(encoding="utf-8")
    assert facts["missing"] == [{"part": "example images of the test sets", "file": "6-bench/examples.npz"}]


def test_scores_of_one_classifier_are_told_apart_by_paired_intervals_alone(tmp_path):
    folder = comparison_run.make(tmp_path / "run", [], ["energy", "knn", "msp"], own=())
    page, _, facts = written(folder)
    assert "no paired differences between scores were computed" in page.text
    first, close, far = (o["score"] for o in facts["standing"]["order"])

    def compare(rows):
        for other, diff in ((close, 0.01), (far, 0.04)):
            pair = {"method": "plain", "baseline": "plain", "score": first, "baseline_score": other, "set": "mean-all"}
            rows.append(pair | {"metric": "auroc", "diff": diff, "lo": diff - 0.02, "hi": diff + 0.02, "seeds": 1})

    edit(folder, "differences", compare)
    page, _, facts = written(folder)
    assert [c["verdict"] for c in facts["standing"]["against"]] == ["no clear difference", "improves"]
    told = f"These images do not tell it apart from {wording.label(close)}: the 95 % interval of the paired difference holds zero."
    assert told in page.text
    assert f"{wording.title(first)} against every other score, paired" in page.text
    report = json.loads((folder / "7-report/report.json").read_text())["alone"]
    assert (report["close"], report["paired"]) == ([close], 2)
    assert "Ahead of the other 1 by" in Page((folder / "7-report/report.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize("given", [None, "msp"])
def test_the_page_says_which_score_the_detector_holds_and_what_it_reaches(tmp_path, given):
    recipe = {"scores": ["knn", "energy", "msp"], "detector_score": given}
    folder = comparison_run.make(tmp_path / "run", [], ["knn", "energy", "msp"], own=(), recipe=recipe)
    held = given or "energy"
    (folder / "6-bench/detector").mkdir()
    (folder / "6-bench/detector/detector.json").write_text(json.dumps({"score": held}))
    page, _, facts = written(folder)
    value = {o["score"]: o["auroc"][0] for o in facts["standing"]["order"]}
    best = facts["standing"]["best"]["score"]
    report = Page((folder / "7-report/report.html").read_text(encoding="utf-8")).text
    for text in (page.text, report):
        assert f"holds the {wording.label(held)} score" in text.replace("  ", " ")
        assert ("detector_score says" in text) == (given is not None)
        assert "--redo bench detector_score=NAME" in text
        said = f"On these test sets its AUROC is {wording.pct(value[held])}; {wording.label(best)} reaches {wording.pct(value[best])}."
        assert (said in text) == (held != best)
    assert facts["detectors"]["others"] == [s for s in recipe["scores"] if s != held]


@pytest.mark.parametrize(("methods", "scores"), [(["good", "noise"], SCORES), ([], ["energy"])])
def test_where_there_is_nothing_to_compare_there_is_no_page(tmp_path, methods, scores):
    folder = comparison_run.make(tmp_path / "run", methods, scores, own=())
    write_report(folder)
    assert not (folder / "7-report" / "comparison.html").exists()
    assert "comparison.html" not in (folder / "7-report" / "report.html").read_text(encoding="utf-8")


def test_the_report_is_about_the_own_method_and_leaves_the_others_to_the_comparison(done):
    run, _ = done
    facts = json.loads((run / "7-report" / "report.json").read_text())
    assert {s["method"] for s in facts["tables"]} == {"plain", "good", "noise"}
    assert {(d["method"], d["baseline"]) for d in facts["differences"]} <= {
        ("good", "plain"),
        ("noise", "plain"),
        ("good", "noise"),
    }
    assert "comparison" not in facts


def test_published_rows_stand_apart_and_are_never_ranked(run):
    row = {"training": "ARPL", "score": "MSP", "table": "standard", "near_auroc": 0.9999, "near_auroc_sd": 0.01}
    row |= {"id_accuracy": 0.93, "source": "a board", "published": True}
    (run / "6-bench/published.json").write_text(json.dumps([row]))
    (run / "6-bench/benchmark.json").write_text(
        json.dumps({"name": "b", "about": "", "source": "s", "matches": True, "parts": []})
    )
    _, text, facts = written(run)
    assert "ARPL" not in [o["method"] for o in facts["standing"]["order"]]
    assert len(list(rows_of_main(text))) == 16  # the first body holds ours alone
    body = re.search(r'<tbody class="published">(.*?)</tbody>', text, re.DOTALL)[1]
    assert "ARPL" in body
    assert "published" in body
    assert f"{wording.pct(0.9999)}<small>± 1.00</small>" in body
    assert 'class="dot"' not in body  # beyond the scale of ours


def test_roc_has_the_area_of_the_scores_and_its_points_lie_on_the_curve():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300).round(1), rng.normal(1, 1, 200).round(1)  # rounded: many ties
    curve = panels.roc(a, b, 200)
    labels, scores = np.r_[np.zeros(300), np.ones(200)], np.r_[a, b]
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    fpr, tpr, _ = roc_curve(labels, scores)
    along = np.interp(np.add(curve["fpr"], curve["tpr"]), fpr + tpr, tpr)
    assert curve["tpr"] == pytest.approx(along, abs=2e-4)
    assert (curve["fpr"][0], curve["tpr"][-1]) == (0, 1)


def test_a_large_comparison_stays_a_page_that_opens(tmp_path):
    methods = ["good", "noise", *(f"method {i}" for i in range(17))]
    sets = {f"set {i}": "near" if i < 3 else "far" for i in range(9)}
    folder = comparison_run.make(tmp_path / "run", methods, ["energy", "unified", "msp"], sets=sets, seeds=(0, 1), n=30)
    _, text, facts = written(folder)
    assert len(text) < 1.2e6  # a quarter of the scores of a full comparison, which must stay below 3 MB
    assert sum(x["hot"] is not None for x in facts["entries"]) == 6
    assert max(len(c["fpr"]) for p in facts["roc"] for c in p["curves"]) == 200


def test_outliers_that_are_features_are_said_to_be_without_picture(run):
    outliers = [Outlier(Request(i, i, 0), feature=torch.arange(4.0) + i) for i in range(3)]
    Store(run / "3-synth/store", made_by={}).append(outliers)
    write_report(run)
    text = (run / "7-report/report.html").read_text(encoding="utf-8")
    assert "not images: there is nothing to picture" in text
    assert "No stored outlier images" not in text
