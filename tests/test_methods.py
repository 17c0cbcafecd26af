"""Several methods in one run: under one budget, each resumable on its own, all against the same plain classifier."""

import dataclasses
import json

import pytest

from outskirts import verdict
from outskirts.errors import OutskirtsError
from outskirts.methods import methods
from outskirts.override import override
from outskirts.plan import plan
from outskirts.recipe import Recipe
from outskirts.run import run
from outskirts.stages import steps
from outskirts.store import Store
from own.tiny import recipe

MANY = {
    "uniform noise": {"synth": "noise", "with": {"kind": "uniform"}},
    "OE": {"of": "uniform noise", "train": {"loss": "oe_uniform"}},
}


@pytest.fixture(scope="module")
def many():
    return dataclasses.replace(recipe(), methods=MANY, own=("own.speckle",), plain_scores=("entropy",), seeds=(0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, many):
    folder = tmp_path_factory.mktemp("runs") / "many"
    run(many, folder, progress=False)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_every_method_has_its_outliers_and_its_trainings(many, folder):
    assert [s.folder for s in steps(many) if s.stage == "synth"] == [
        "3-synth",
        "3-synth-noise",
        "3-synth-uniform-noise",
    ]
    assert len(Store(folder / "3-synth-uniform-noise" / "store").ids()) == len(
        Store(folder / "3-synth" / "store").ids()
    )
    rows = read(folder / "6-bench" / "rows.json")
    assert {r["method"] for r in rows} == {"plain", "own.speckle", "noise", "uniform noise", "OE"}
    assert {r["method"] for r in rows if r["score"] == "entropy"} == {"plain"}
    own, other = (read(folder / "5-train" / d / "seed-0" / "log.json")["epochs"] for d in ("uniform-noise", "oe"))
    assert own[-1]["loss_ood"] != other[-1]["loss_ood"]


def test_who_is_held_against_whom(
    folder,
):
    pairs = {(d["baseline"], d["method"]) for d in read(folder / "6-bench" / "differences.json")}
    own = {(b, "own.speckle") for b in ("plain", "noise", "uniform noise", "OE")}
    assert pairs == own | {("plain", m) for m in ("noise", "uniform noise", "OE")} | {("uniform noise", "OE")}
    costs = {c["method"]: c for c in read(folder / "6-bench" / "methods.json")}
    assert costs["own.speckle"]["own"]
    assert not costs["OE"]["own"]
    assert all(c["train_seconds"] >= 0 and c["outliers"] == 40 for c in costs.values())
    assert all(c[f"{s}_peak_gib"] >= c[f"{s}_start_gib"] > 0.05 for c in costs.values() for s in ("train", "synth"))


def test_all_are_held_against_the_best_score_of_the_plain_classifier_and_the_compared_ones_of_every_baseline(folder):
    tables = verdict.summarise(read(folder / "6-bench" / "rows.json"))
    means = {(s["method"], s["score"]): s["auroc"][0] for s in tables if s["place"] == "mean-all"}
    able = {k: v for k, v in means.items() if k[1] != "unified" or not tables[0]["transductive"]}
    rows = [
        d for d in read(folder / "6-bench" / "differences.json") if (d["set"], d["metric"]) == ("mean-all", "auroc")
    ]
    found = {(d["method"], d["score"], d["baseline"], d["baseline_score"]): d["diff"] for d in rows}

    def best(*who):
        return max((k for k in able if k[0] in who), key=able.get)

    for m in ("own.speckle", "noise", "uniform noise", "OE"):
        against = [best("plain"), *([best("plain", "noise", "uniform noise", "OE")] if m == "own.speckle" else [])]
        for mine in ((m, "energy"), best(m)):
            for other in against:
                assert found[(*mine, *other)] == pytest.approx(means[mine] - means[other], abs=1e-9)


def test_a_changed_method_stops_only_its_own_steps(many, folder):
    changed = dataclasses.replace(
        many, methods=MANY | {"OE": {"of": "uniform noise", "train": {"loss": "oe_uniform", "lam": 9.0}}}
    )
    with pytest.raises(OutskirtsError, match=r"methods.OE.train.lam was not set, is 9.0: stage train in .*oe/seed-0"):
        run(changed, folder, progress=False)


def test_another_method_leaves_what_was_made(many, folder):
    more = dataclasses.replace(many, methods=MANY | {"weak": {"of": "noise", "train": {"lam": 0.5}}})
    before = {p: p.stat().st_mtime_ns for p in folder.glob("[1-5]-*/**/done.json")}
    run(more, folder, redo="bench", progress=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "weak" in {r["method"] for r in read(folder / "6-bench" / "rows.json")}


def test_the_plan_has_every_step(many, tmp_path):
    text = "\n".join(plan(many, tmp_path / "new"))
    assert "3-synth-uniform-noise" in text
    assert "5-train/oe/seed-1" in text


def test_methods_are_read_from_the_command_line():
    changed = override(Recipe("a"), ['methods={"VOS": {"synth": "vos"}}'])
    assert [m.label for m in methods(changed)] == ["good", "noise", "VOS"]
    assert methods(dataclasses.replace(changed, stages=("bench",))) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"a": {"synth": "vos", "of": "good"}}, "must say one of synth"),
        ({"a": {}}, "it says nothing"),
        ({"a": {"snyth": "vos"}}, "has no 'snyth'.*synth"),
        ({"a": {"synth": 3}}, "synth is 3; it must be a text"),
        ({"a": {"of": "b"}}, "of='b' is no method before it; there are good, noise"),
        ({"a": {"synth": "vos", "train": {"lam": "big"}}}, "train.lam is 'big'"),
        ({"a": {"synth": "vos", "train": {"lamb": 1}}}, "train has no 'lamb'.*lam"),
        ({"noise": {"synth": "vos"}}, "'noise' stands for two methods"),
        ({"A b": {"synth": "vos"}, "a-b": {"synth": "vos"}}, "'a-b' stands for two methods"),
    ],
)
def test_wrong_methods_are_named(entry, message):
    with pytest.raises(OutskirtsError, match=message):
        methods(Recipe("a", methods=entry))


def test_labels_that_name_folders_of_a_run_and_unknown_own_methods_are_refused():
    for label in ("seed-0", "plain"):
        with pytest.raises(OutskirtsError, match=f"label '{label}' stands for something else"):
            methods(Recipe("a", methods={label: {"synth": "vos"}}))
    with pytest.raises(OutskirtsError, match=r"own names 'goood', which is no method.*good"):
        methods(Recipe("a", own=("goood",)))


def test_a_method_called_own_is_measured_as_itself(many, folder, tmp_path):
    """The parts of a bench are kept under keys; the recipe's own method has none that a label can have."""
    named = dataclasses.replace(many, methods={"own": MANY["uniform noise"]}, own=(), seeds=(0,), plain_scores=())
    run(named, tmp_path / "named", progress=False)
    rows = read(tmp_path / "named" / "6-bench" / "rows.json")
    of = {m: [r["auroc"] for r in rows if r["method"] == m and r["score"] == "energy"] for m in ("own.speckle", "own")}
    assert len(of["own"]) == len(of["own.speckle"]) > 0
    assert of["own"] != of["own.speckle"]
