import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from outskirts.bench import _facts
from outskirts.cli import main
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.methods import methods
from outskirts.override import override
from outskirts.plan import plan
from outskirts.run import Run, load_run, run
from outskirts.stages import held_out, steps
from outskirts.store import Store
from outskirts.synthesis import _failures
from own.tiny import recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole run of the tiny recipe; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(recipe(), folder, progress=False)
    return folder


def read(path):
    return json.loads(Path(path).read_text())


def shards(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "3-synth" / "store").glob("shard-*"))}


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}


def test_every_step_is_closed_and_leaves_what_the_next_one_reads(folder):
    assert [s.folder for s in steps(recipe())] == [
        *("1-classifier", "3-synth", "3-synth-noise", "5-train/seed-0", "5-train/seed-1"),
        *("5-train/noise/seed-0", "5-train/noise/seed-1", "6-bench", "7-report"),
    ]
    assert all((folder / s.folder / "done.json").is_file() for s in steps(recipe()))
    assert (folder / "7-report" / "report.html").is_file()
    assert load_run(folder) == recipe()
    assert set(read(folder / "run.json")["stamp"]["inputs"]) >= {"train", "val", "test", "near", "far"}
    assert len(Store(folder / "3-synth" / "store").ids()) == len(Store(folder / "3-synth-noise" / "store").ids()) == 40


def test_the_bench_has_every_method_score_set_and_seed(folder):
    rows = read(folder / "6-bench" / "rows.json")
    seen = {(r["method"], r["seed"], r["score"], r["set"]) for r in rows}
    methods = [("plain", 0), *((m, s) for m in ("own.speckle", "noise") for s in (0, 1))]
    places = ("digits 3", "noise", "mean-near", "mean-far", "mean-all")
    assert seen == {(*m, score, place) for m in methods for score in recipe().scores for place in places}
    pairs = {(d["baseline"], d["method"]) for d in read(folder / "6-bench" / "differences.json")}
    assert pairs == {("plain", "own.speckle"), ("noise", "own.speckle"), ("plain", "noise")}
    scores = np.load(folder / "6-bench" / "scores.npz")
    assert len(scores["noise|1|energy|id"]) == next(r["n_id"] for r in rows)
    facts = read(folder / "6-bench" / "outliers.json")
    assert facts["outliers"]["id"] == list(range(40))
    assert set(facts["id_val"]) == {"energy", "knn", "nearest_id", "max_softmax"}


def test_the_detector_is_the_trained_one(folder):
    detector = Detector.load(folder / "6-bench" / "detector")
    weights = (folder / "5-train" / "seed-0" / "model.safetensors").read_bytes()
    assert (folder / "6-bench" / "detector" / "classifier" / "model.safetensors").read_bytes() == weights
    assert type(detector.scorer).__module__ == "outskirts.scores.energy"


def test_the_detector_before_training_is_kept_beside_it_with_the_same_score(folder):
    detector = Detector.load(folder / "6-bench" / "detector-plain")
    weights = (folder / "1-classifier" / "model.safetensors").read_bytes()
    assert (folder / "6-bench" / "detector-plain" / "classifier" / "model.safetensors").read_bytes() == weights
    assert type(detector.scorer).__module__ == "outskirts.scores.energy"
    assert "6-bench/detector-plain" in (folder / "7-report" / "report.html").read_text()


def test_the_same_command_does_nothing_again(folder):
    before = stamps(folder)
    run(recipe(), folder, progress=False)
    assert stamps(folder) == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("train.epochs=5", "train.epochs was 1, is 5: stage train in "),
        ("synth.contrast=0.5", "synth.contrast was not set, is 0.5: stage synth in "),
        ("n_outliers=41", "n_outliers was 40, is 41: stage synth in "),
        ("classes=0-3", 'classes was "0-2", is "0-3": stage classifier in '),
        ("seeds=0-2", "seeds was [0, 1], is [0, 1, 2]: stage bench in "),
        ("score.knn.k=5", "score.knn.k was 10, is 5: stage bench in "),
    ],
)
def test_a_changed_field_stops_with_its_name_and_changes_nothing(folder, change, error):
    before = stamps(folder)
    with pytest.raises(OutskirtsError) as e:
        run(override(recipe(), [change]), folder, progress=False)
    assert str(e.value).startswith(error)
    assert f"--redo {error.split()[-2]}" in str(e.value)
    assert "\n" not in str(e.value)
    assert stamps(folder) == before
    assert load_run(folder) == recipe()


def test_fields_that_change_no_result_do_not_stop(folder):
    before = stamps(folder)
    run(override(recipe(), ["about=other words"]), folder, progress=False)
    assert stamps(folder) == before


def test_redo_makes_a_stage_and_the_later_ones_again(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = stamps(copy)
    changed = dataclasses.replace(recipe(), seeds=(1,), floor=False)
    run(changed, copy, redo="bench", progress=False)
    moved = {p.relative_to(copy).parts[0] for p, t in stamps(copy).items() if before.get(p) != t}
    assert moved == {"6-bench", "7-report"}
    assert {r["seed"] for r in read(copy / "6-bench" / "rows.json") if r["method"] != "plain"} == {1}
    with pytest.raises(OutskirtsError, match="no stage 'filter'"):
        run(changed, copy, redo="filter")


def test_a_corrupt_shard_is_made_again_and_nothing_else(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole, before = shards(copy), stamps(copy)
    shard = copy / "3-synth" / "store" / "shard-00000008-00000015.parquet"
    os.truncate(shard, 100)
    run(recipe(), copy, progress=False)
    assert shards(copy) == {**whole, shard.name + ".corrupt": whole[shard.name][:100]}
    assert {p.parent.name for p, t in stamps(copy).items() if before[p] != t} == {"3-synth"}


def test_images_that_changed_stop_with_their_name(tmp_path):
    from PIL import Image

    for y in range(2):
        (tmp_path / "in" / str(y)).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (y * 100, i, 0)).save(tmp_path / "in" / str(y) / f"{i}.png")
    small = dataclasses.replace(recipe(), id=f"folder:{tmp_path}/in", classes=None, near=(), far=("noise",))
    run(small, tmp_path / "out", until="classifier", progress=False)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "in" / "0" / "0.png")
    with pytest.raises(OutskirtsError, match=rf"the images of id=folder:{tmp_path}/in changed since: stage classifier"):
        run(small, tmp_path / "out", until="classifier", progress=False)


def test_outliers_of_the_user_s_own_are_not_made(folder, tmp_path):
    own = dataclasses.replace(
        override(
            recipe(), [f"classifier={folder}/1-classifier", f"outliers=parquet:{folder}/3-synth/store/shard-*.parquet"]
        ),
        seeds=(0,),
        floor=False,
        scores=("energy",),
        score_with={},
    )
    assert [s.folder for s in steps(own)] == ["5-train/seed-0", "6-bench", "7-report"]
    run(own, tmp_path, until="bench", progress=False)
    assert {r["method"] for r in read(tmp_path / "6-bench" / "rows.json")} == {"plain", "outliers"}


def test_a_plain_classifier_alone_can_be_measured(folder, tmp_path):
    alone = override(recipe(), [f"classifier={folder}/1-classifier", "stages=bench", "scores=msp,energy"])
    run(alone, tmp_path, progress=False)
    assert {r["method"] for r in read(tmp_path / "6-bench" / "rows.json")} == {"plain"}
    assert Detector.load(tmp_path / "6-bench" / "detector").scorer is not None
    assert not (tmp_path / "6-bench" / "detector-plain").exists()
    with pytest.raises(OutskirtsError, match="classifier=fit, but stages leaves 'classifier' out"):
        run(override(recipe(), ["stages=bench"]), tmp_path / "b")


def test_all_failing_is_an_error_and_one_failing_is_counted(folder, tmp_path):
    few = override(recipe(), [f"classifier={folder}/1-classifier", "n_outliers=1", "synth.fail=0"])
    with pytest.raises(OutskirtsError, match="none of 1 outliers could be made: NaN in guidance"):
        run(few, tmp_path, until="synth", progress=False)


def test_failed_outliers_are_named_in_one_line(folder, tmp_path, caplog):
    few = override(recipe(), [f"classifier={folder}/1-classifier", "n_outliers=3", "synth.fail=1"])
    run(few, tmp_path, until="synth", progress=False)
    assert caplog.messages == ["1 of 3 outliers failed: requests 1: NaN in guidance"]
    assert _failures(dict.fromkeys(range(0, 30, 3), "NaN"), 40) == (
        "10 of 40 outliers failed: requests 0, 3, 6, 9, 12, 15, 18, 21, ...: NaN"
    )
    assert _failures({4: "NaN", 2: "NaN", 3: "grey\nimage"}, 40).endswith("requests 2, 3, 4: NaN (and 1 other reasons)")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (["synth=good", "diffusion=/"], "diffusion folder '/' has no model_index.json"),
        (["near=nowhere=folder:nowhere"], "no such folder: nowhere"),
        (["near=", "far="], "near and far are both empty"),
        (["score.knn.k=100000"], "score.knn.k is 100000, but there are "),
        (["score.unified.mode=fixed"], "mode='fixed' needs w"),
        (["recode=foo:1"], "recode: codec 'foo:1'; accepted: jpeg:QUALITY"),
        (["recode=jpeg:101"], "recode: codec 'jpeg:101'; accepted: jpeg:QUALITY"),
        (["synth=good", "synth.k=5000"], r"k of synth=good is 5000, but there are \d+ training images; give 1 to "),
        (
            ["synth=npos", "synth.k=200"],
            r"k of synth=npos is 200, but there are 11\d training images of class '2'; give 1 to 11",
        ),
        (
            ["synth=npos", "synth.rows=9"],
            r"k of synth=npos is 50, but there are 9 rows held of each class; give 1 to 8",
        ),
    ],
)
def test_bad_input_is_found_before_the_first_step(tmp_path, change, error):
    with pytest.raises(OutskirtsError, match=error):
        run(override(recipe(), change), tmp_path, progress=False)
    with pytest.raises(OutskirtsError, match=error):  # before the plan of a step, whose trials are smaller
        assert not [line for line in plan(override(recipe(), change), tmp_path) if "classifier" in line]
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_other_classes_is_found_before_a_diffusion_model_is_trained(folder, tmp_path):
    given = [f"classifier={folder}/1-classifier", "classes=0-4", "near=", "synth=good", "diffusion=fit"]
    error = "has 5 classes and the classifier 3"
    with pytest.raises(OutskirtsError, match=error):
        run(override(recipe(), given), tmp_path, until="synth", progress=False)
    with pytest.raises(OutskirtsError, match=error):
        assert not [line for line in plan(override(recipe(), given), tmp_path) if "2-diffusion" in line]
    assert not list(tmp_path.iterdir())


def test_a_neighbour_that_nobody_asked_for_is_said_to_be_the_default_and_names_are_checked_before(folder, tmp_path):
    few = dataclasses.replace(
        recipe(), classifier=f"{folder}/1-classifier", fit_images=60, scores=("knn",), score_with={}
    )
    few = dataclasses.replace(few, stages=("bench",), floor=False)
    with pytest.raises(OutskirtsError, match=r"score\.knn\.k is 100 by default, but there are 60 training images"):
        run(few, tmp_path, progress=False)
    with pytest.raises(OutskirtsError, match=r"score\.knn\.k is 100, but there are 60 training images"):
        run(dataclasses.replace(few, score_with={"knn": {"k": 100}}), tmp_path, progress=False)
    with pytest.raises(OutskirtsError, match="no such folder: nowhere"):
        run(dataclasses.replace(few, far=("folder:nowhere",)), tmp_path, progress=False)
    with pytest.raises(OutskirtsError, match="no classifier 'nowhere'"):
        run(dataclasses.replace(few, classifier="nowhere"), tmp_path, progress=False)


def test_a_redo_with_bad_input_removes_nothing(folder):
    before = stamps(folder)
    for change in ("far=nowhere=folder:nowhere", "train.epochs=5"):
        with pytest.raises(OutskirtsError):
            run(override(recipe(), [change]), folder, redo="bench", progress=False)
    assert stamps(folder) == before


def test_a_step_that_left_nothing_may_be_begun_with_other_fields(folder, tmp_path):
    own = [f"classifier={folder}/1-classifier", "n_outliers=8", "floor=false"]
    run(override(recipe(), [*own, "synth.contrast=0.5"]), tmp_path, until="synth", progress=False)
    for path in (tmp_path / "3-synth").rglob("*"):
        if path.is_file() and path.name != "inputs.json":
            path.unlink()
    run(override(recipe(), own), tmp_path, until="synth", progress=False)
    assert "synth.contrast" not in read(tmp_path / "3-synth" / "inputs.json")["fields"]
    with pytest.raises(OutskirtsError, match=r"synth.contrast was not set, is 0.5"):
        run(override(recipe(), [*own, "synth.contrast=0.5"]), tmp_path, until="synth", progress=False)


def test_a_plan_names_the_field_that_changed(folder):
    lines = list(plan(override(recipe(), ["train.epochs=5"]), folder))
    changed = [line.split() for line in lines if " changed: " in line]
    assert [c[0] for c in changed] == [s.folder for s in steps(recipe()) if s.stage == "train"]
    assert "changed: train.epochs was 1, is 5; use another --out, or --redo train" in " ".join(changed[0])
    assert not any(" done " in line and "5-train" in line for line in lines)
    assert any(" done " in line and "3-synth" in line for line in lines)


def test_a_classifier_of_other_classes_is_told_with_what_to_do(folder, tmp_path):
    other = override(recipe(), [f"classifier={folder}/1-classifier", "classes=0-4"])
    with pytest.raises(
        OutskirtsError, match="has 5 classes and the classifier 3; choose the classes it was trained on"
    ):
        run(other, tmp_path, until="synth", progress=False)


def test_only_the_default_neighbour_is_capped_and_that_is_said(folder, tmp_path):
    from PIL import Image

    for i in range(60):
        (tmp_path / "in" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 3 * 100, 4 * i, 0)).save(tmp_path / "in" / str(i % 3) / f"{i}.png")
    mine = f"folder:{tmp_path}/in"
    few = dataclasses.replace(recipe(), id=mine, classes=None, outliers=mine, classifier=f"{folder}/1-classifier")
    default = dataclasses.replace(few, scores=("energy",), score_with={})
    capped = _facts(Run(default, tmp_path / "out"), methods(default)[0])
    assert capped["knn_k"] < 60
    assert capped["knn_k_capped_from"] == 100
    fewer = dataclasses.replace(few, fit_images=15)  # as for the scores, beside which the distances are drawn
    assert _facts(Run(fewer, tmp_path / "out"), methods(fewer)[0])["bank"] == 15 < capped["bank"]
    asked = _facts(Run(few, tmp_path / "out"), methods(few)[0])
    assert asked["knn_k"] == 10
    assert "knn_k_capped_from" not in asked


def test_held_out_outliers_are_a_tenth_and_mix_the_classes():
    apart = [i for i, out in enumerate(held_out(range(1000))) if out]
    assert len(apart) == 100
    assert max(np.bincount([i % 10 for i in apart])) < 20  # request ids visit the classes in turn
    assert held_out(range(1000))[::-1] == held_out(range(999, -1, -1))
    assert sum(held_out([5, 6])) == 1


def test_killed_at_any_moment_it_ends_with_the_same_outliers(folder, tmp_path):
    command = ["synth", "own.tiny", "-q", "-o", str(tmp_path), f"classifier={folder}/1-classifier"]
    command += ["synth.seconds=0.3", "floor=false"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    store = tmp_path / "3-synth" / "store"
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-m", "outskirts", *command], env=env, **out) as process:
        deadline = time.monotonic() + 120
        while len(list(store.glob("shard-*"))) < 2:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = shards(tmp_path)
    assert 2 <= len(kept) < 5
    assert not (tmp_path / "3-synth" / "done.json").exists()
    times = {p: p.stat().st_mtime_ns for p in store.glob("shard-*")}
    assert CliRunner().invoke(main, command).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert shards(tmp_path) == shards(folder)
