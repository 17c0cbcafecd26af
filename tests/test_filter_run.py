"""A filtered run: who trains on what, what is stored, what a stop and a change cost, what the page and the verb say."""

import dataclasses
import json
import re
import shutil

import pytest
from click.testing import CliRunner

from outskirts import filter_steps, scout
from outskirts.cli import main
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.filter_settings import FilterSettings
from outskirts.methods import methods
from outskirts.outlier_sets import VERDICT, labels_of, made, outliers
from outskirts.override import override
from outskirts.plan import plan
from outskirts.recipe import STAGES
from outskirts.run import Run, load_run, run
from outskirts.store import Store
from own.tiny import recipe
from report_run import Page

FILTERED = {
    "all": {"of": "own.speckle", "filter": {"band": "none", "calibration": "constructed"}},
    "twin": {"of": "own.speckle", "filter": {"band": "none", "calibration": "held_out_classes", "score": "energy"}},
    "crossed": {"of": "own.speckle", "filter": {"cross_fit": 2, "n_keep": 10}},
    "unseen": {"synth": "noise"},
}


@pytest.fixture(scope="module")
def filtered():
    r = dataclasses.replace(
        recipe(),
        classes="0-4",
        near=("digits 9=digits[9]",),
        seeds=(0,),
        stages=STAGES[:1] + STAGES[2:],
        floor=False,
        methods=FILTERED,
    )
    return dataclasses.replace(r, filter=FilterSettings(calibration="rank"), scores=("energy",), score_with={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, filtered):
    folder = tmp_path_factory.mktemp("runs") / "filtered"
    run(filtered, folder, progress=False)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_every_verdict_is_stored_and_only_what_is_kept_is_trained_on(filtered, folder):
    this = Run(filtered, folder)
    by = {m.label: m for m in methods(filtered)}
    verdict = read(folder / "4-filter" / "verdict" / VERDICT)
    assert sorted(verdict["id"]) == list(range(40)) == made(this, by["own.speckle"])[0]
    assert {len(column) for column in verdict.values()} == {40}
    assert set(verdict) == {"id", "energy", "phi", "fold", "label", "p_id", "band", "keep", "reason"}
    kept = sorted(i for i, k in zip(verdict["id"], verdict["keep"], strict=True) if k)
    assert outliers(this, by["own.speckle"])[0] == kept
    assert len(kept) == pytest.approx(0.77 * 40, abs=1)
    store = Store(folder / "3-synth" / "store")
    assert store.images()[0] == kept  # whoever opens the store finds them
    assert store.selection()["p_id"] == verdict["p_id"]
    assert [len(outliers(this, by[label])[0]) for label in ("all", "twin", "crossed", "unseen")] == [40, 40, 10, 40]
    assert labels_of(this, by["own.speckle"], [0, 1, 5]) == [0, 1, 2]


def test_the_budget_is_the_same_with_and_without(folder):
    """As many steps of training, and as many outliers made for the others as were made, not kept."""
    logs = [read(folder / "5-train" / d / "seed-0" / "log.json")["epochs"] for d in ("", "all", "crossed", "unseen")]
    assert len({len(epochs) for epochs in logs}) == 1
    assert len({epochs[0]["loss_ood"] for epochs in logs}) == 4
    assert {r["method"]: r["outliers"] for r in read(folder / "6-bench" / "methods.json")}["unseen"] == 40


def test_the_report_of_a_calibration_is_kept_with_its_set(folder):
    facts = {v: read(folder / "4-filter" / f"verdict{v}" / "filter.json") for v in ("", "-all", "-twin", "-crossed")}
    assert facts[""]["reports"] == facts["-crossed"]["reports"] == []
    beta = facts["-all"]["reports"][0]
    assert beta["n_id"] == beta["n_ood"] >= 50
    assert set(beta["params"]) == {"a", "b", "c"}
    assert beta["nll_after"] <= beta["nll_before"]
    assert "2" in facts["-twin"]["against"]
    assert facts["-twin"]["reports"][0]["n_ood"] > 100  # every image of a class that the twin does not know
    assert read(folder / "4-filter" / "twin-twin" / "twin.json")["classes"] == ["2"]
    known = read(folder / "4-filter" / "twin-twin" / "classifier" / "classifier.json")["classes"]
    assert known == ["0", "1", "3", "4"]


def test_of_two_scouts_each_scores_what_it_did_not_train_on(folder):
    parts = [read(folder / "4-filter" / "scout-crossed" / f"fold-{f}" / "scores.json") for f in range(2)]
    assert sorted(parts[0]["id"] + parts[1]["id"]) == list(range(40))
    assert not set(parts[0]["apart"]) & set(parts[0]["id"])
    assert set(read(folder / "4-filter" / "verdict-crossed" / VERDICT)["fold"]) == {0, 1}


def test_a_scout_that_is_the_wrong_way_round_is_refused_and_not_filtered_by(filtered, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("5-*", "6-*", "7-*", "verdict*"))
    path = copy / "4-filter" / "scout" / "fold-0" / "scores.json"
    scores = read(path)
    scores["phi_id"] = [
        -1e3 + i for i in range(len(scores["phi_id"]))
    ]  # every ID image below what is constructed of it
    path.write_text(json.dumps(scores))
    this = Run(dataclasses.replace(filtered, methods={}, filter=FilterSettings()), copy)
    m = methods(this.recipe)[0]
    (copy / "4-filter" / "verdict").mkdir()
    with pytest.raises(OutskirtsError, match="phi is no higher on held-out ID images than on images constructed"):
        filter_steps.verdict(m, this, copy / "4-filter" / "verdict")


def test_the_page_shows_the_filter(folder):
    page, facts = Page((folder / "7-report" / "report.html").read_text()), read(folder / "7-report" / "report.json")
    shown = facts["filtered"]
    assert [v["method"] for v in shown["verdicts"]] == ["own.speckle", "all", "crossed", "twin"]
    assert sum(t["n"] for t in shown["looked"]["types"]["types"].values()) == 40
    assert [row["n"] for row in shown["gallery"]] == [b["n"] for b in shown["main"]["counts"]["bands"].values()]
    assert shown["shift"]["grids"][0]["rows"][0] == "ID test"
    for words in (
        "The filter",
        "Every filter of this run",
        "What lies in each band",
        "OOD-III",
        "What the score answers to",
    ):
        assert words in page.text
    assert facts["left_out"] == shown["main"]["counts"]["reasons"]
    assert 'href="report.html#filter"' in (folder / "7-report" / "comparison.html").read_text()


def test_a_changed_filter_stops_by_name_and_is_made_again_by_the_scout_that_is_there(filtered, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    changed = override(filtered, ["filter.low=0.2"])
    with pytest.raises(OutskirtsError, match=r"filter.low was null, is 0.2: stage filter in .*verdict.* --redo filter"):
        run(changed, copy, progress=False)
    before = {p: p.stat().st_mtime_ns for p in (copy / "4-filter").glob("scout*/done.json")}
    run(changed, copy, redo="filter", until="filter", progress=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not (copy / "5-train").exists()
    assert len(Store(copy / "3-synth" / "store").images()[0]) < len(Store(folder / "3-synth" / "store").images()[0])


def test_without_the_filter_s_stages_its_word_is_not_heard(filtered, folder):
    plain = dataclasses.replace(
        filtered, stages=tuple(s for s in filtered.stages if s not in ("train:scout", "filter")), methods={}
    )
    assert len(outliers(Run(plain, folder), methods(plain)[0])[0]) == 40


def test_what_the_user_left_out_stays_out_whatever_the_filter_says(filtered, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("4-*", "5-*", "6-*", "7-*"))
    Store(copy / "3-synth" / "store").select([3, 4], [False, True], ["blurred", None])
    one = dataclasses.replace(filtered, methods={})
    for _ in range(2):  # and the filter does not take its own word for the user's
        run(one, copy, until="filter", redo="filter", progress=False)
        verdict = read(copy / "4-filter" / "verdict" / VERDICT)
        assert 3 not in verdict["id"]
        assert len(verdict["id"]) == 39
        assert Store(copy / "3-synth" / "store").dropped(filtered=False) == {3: "blurred"}


def test_stopped_between_two_scouts_it_goes_on_with_the_second(filtered, folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("4-*", "5-*", "6-*", "7-*"))
    crossed = dataclasses.replace(filtered, methods={"crossed": FILTERED["crossed"]})
    real, done = scout.train, []

    def stops(*args, **kwargs):
        done.append(args[5])
        if len(done) == 3:  # scout, then the first and the second of the crossed ones
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(scout, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        run(crossed, copy, until="filter", progress=False)
    first = copy / "4-filter" / "scout-crossed" / "fold-0" / "scores.json"
    assert not (copy / "4-filter" / "scout-crossed" / "done.json").exists()
    before = first.stat().st_mtime_ns
    run(crossed, copy, until="filter", progress=False)
    assert first.stat().st_mtime_ns == before
    assert len(done) == 4
    for verdict in ("verdict", "verdict-crossed"):
        assert read(copy / "4-filter" / verdict / VERDICT) == read(folder / "4-filter" / verdict / VERDICT)


def cli(*words):
    return CliRunner().invoke(main, ["filter", *map(str, words)])


def test_the_verb_adds_the_filter_to_a_run(filtered, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("4-*", "5-*", "6-*", "7-*"))
    plain = dataclasses.replace(filtered, stages=("classifier", "synth", "train", "bench", "report"), methods={})
    run(plain, copy, until="synth", progress=False)
    done = cli(copy, "-q", "filter.n_keep=20")
    assert done.exit_code == 0, done.output
    assert re.search(
        r"4-filter/verdict: own.speckle: 20 of 40 kept, band mid \(P\(ID\) 0.15 to 0.92; high \d+", done.output
    )
    assert "filter" in load_run(copy).stages
    assert not (copy / "5-train").exists()


def test_the_verb_takes_a_store_alone(filtered, folder, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(folder / "3-synth" / "store", store)
    (store / "selection.json").unlink()
    own = [
        "--classifier",
        folder / "1-classifier",
        "--id",
        "digits[0-4]",
        "train.epochs=1",
        "train.augment=none",
        "threads=1",
    ]
    done = cli(store, "-q", "-o", tmp_path / "out", *own, "filter.band=none", "device=cpu")
    assert done.exit_code == 0, done.output
    assert "stored: 40 of 40 kept, band none" in done.output
    assert len(Store(store).selection()["p_id"]) == 40
    page = Page((tmp_path / "out" / "7-report" / "report.html").read_text())
    assert "40 of 40 outliers are kept" in page.text
    assert "Nothing was trained on them yet" in page.text
    assert "No result rows" not in page.text
    again = cli(store, "-q", "-o", tmp_path / "out", *own, "filter.band=none", "device=cpu")
    assert again.exit_code == 0, again.output  # its own selection is no other input


def test_the_verb_s_bad_input_is_one_line(folder, tmp_path):
    for words, message in (
        ([folder / "3-synth" / "store"], "is a store alone; give --classifier and --id"),
        ([folder, "--id", "digits"], "--classifier and --id are for a store"),
        (["nowhere"], "nowhere"),
        (["own.tiny", "filter.bnad=low"], "no recipe field 'filter.bnad'"),
    ):
        done = cli(*words, "-o", tmp_path / "x")
        assert done.exit_code == 2
        assert message in done.output
        assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["classes=0-1"],
            r"filter: \d+ ID images \(digits.*\) are held out from training, and a calibration needs 50 a side",
        ),
        (["filter.calibration=given", "filter.images=folder:nowhere"], "no such folder: nowhere"),
        (["filter.calibration=held_out_classes", "filter.classes_out=0.9"], "leaves 4 of 5 classes out"),
        (
            ["filter.calibration=held_out_classes", "classifier={folder}/1-classifier"],
            "classifier=.* is given; take classifier=fit",
        ),
        (
            ["filter.calibration=synthetic"],
            "the scout leaves out, 4 of 40, and 50 are needed; give 495 or more, n_outliers=495, or give filter.cal",
        ),
        (
            ["filter.calibration=synthetic", "filter.cross_fit=2", "n_outliers=600"],
            "each scout leaves out, 30 of 600, and 50 are needed; .* n_outliers=990, or filter.cross_fit=1",
        ),
        (
            ["filter.calibration=given", "filter.images=digits[0-4]"],
            r"(\d+) of \1 images of filter.images=digits\[0-4\] are ID images, pixel by pixel, and .* give images of none",
        ),
    ],
)
def test_a_calibration_set_with_one_side_missing_is_found_before_anything_is_trained(
    filtered, folder, tmp_path, change, message
):
    alone = dataclasses.replace(filtered, methods={}, filter=FilterSettings())
    wrong = override(alone, [c.format(folder=folder) for c in change])
    with pytest.raises(OutskirtsError, match=message):
        run(wrong, tmp_path / "new", progress=False)
    assert not list((tmp_path / "new").glob("*"))


def test_too_few_outliers_that_were_made_are_found_before_a_scout_is_trained(filtered, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("4-*", "5-*", "6-*", "7-*"))
    alone = dataclasses.replace(filtered, methods={}, filter=FilterSettings(calibration="synthetic"))
    Store(copy / "3-synth" / "store").select([3, 4], [False, True], ["blurred", None])
    with pytest.raises(OutskirtsError, match="4 of 39, and 50 are needed"):  # of what is there, whatever was asked for
        run(alone, copy, progress=False)
    this = Run(alone, copy)
    with pytest.raises(OutskirtsError, match="4 of 39, and 50 are needed"):
        filter_steps.scout(methods(alone)[0], this, copy / "4-filter" / "scout")
    assert not (copy / "4-filter").exists()


def test_some_id_images_among_the_ood_validation_images_are_counted(filtered, tmp_path, caplog):
    given = dataclasses.replace(
        filtered,
        methods={},
        filter=FilterSettings(calibration="given", images="digits[4-9]"),
        near=("eights=digits[8]",),
    )
    list(plan(given, tmp_path / "new"))
    n = len(load("digits[4]"))
    assert f"filter: {n} of {len(load('digits[4-9]'))} images of filter.images=digits[4-9] are ID images" in caplog.text


def test_ood_validation_images_that_are_tested_too_are_warned_of(filtered, tmp_path, caplog):
    given = dataclasses.replace(
        filtered, methods={}, filter=FilterSettings(calibration="given", images="digits[3,7]"), classes="0-2"
    )
    list(plan(dataclasses.replace(given, near=("threes=digits[3]",)), tmp_path / "new"))
    assert re.search(r"filter: \d+ images of filter.images=digits\[3,7\] are in the test set threes too", caplog.text)


def test_the_plan_has_the_scout_the_filter_and_the_look(filtered, tmp_path):
    text = "\n".join(plan(filtered, tmp_path / "new"))
    for words in (
        "4-filter/scout ",
        "2 scouts of 1 epochs",
        "4-filter/twin-twin",
        "and its classifier",
        "band none, calibrated on",
        "6-shift",
    ):
        assert words in text


def changed(folder):
    """When each file was."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_redo_that_refuses_leaves_all_as_it_was(filtered, folder, tmp_path):
    """A band that keeps nothing is known only when the scout has scored: until then what was trained is set aside, not removed."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = changed(copy)
    with pytest.raises(OutskirtsError, match="0 of 40 outliers kept with band=mid"):
        run(override(filtered, ["filter.low=0.9999", "filter.high=1"]), copy, redo="filter", progress=False)
    assert changed(copy) == before
    run(filtered, copy, progress=False)
    now = changed(copy)
    assert {p.name for p in now if now[p] != before.get(p)} == {"run.json"}  # nothing was left to do
