"""`bench` on its own: a classifier as it is, folders of images, and what is said of them."""

import html
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from outskirts import boards, imglist
from outskirts.bench import make_scores
from outskirts.cli import main
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.fit_classifier import fit_classifier
from outskirts.recipe import ClassifierSettings, Recipe

FEW = 30
"""Images of each of the two ID classes, and of each OOD set."""


def save(images, folder):
    for i in range(len(images)):
        label = int(images.labels[i])
        place = folder / (images.classes[label] if images.classes else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels[i].permute(1, 2, 0).numpy()).save(place / f"{i:03}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of digits: zeros and ones as train and test, sevens near, negatives far; and a classifier of zeros and ones."""
    root = tmp_path_factory.mktemp("pictures")
    digits = load("digits[0-1]")
    save(digits.take(100), root / "train")
    test = digits.subset(torch.arange(100, 100 + 2 * FEW))
    save(test, root / "test")
    save(load("digits[7]").take(FEW), root / "near")
    save(load("invert", like=test).take(FEW), root / "far")
    settings = ClassifierSettings(arch="resnet_tiny", epochs=2, batch_size=32, augment="none")
    fit_classifier(digits.take(100), test, root / "classifier", settings, device="cpu", progress=False)
    return root


def bench(root, out, *more, options=("--train", "train", "--id", "test", "--near", "near", "--far", "far")):
    words = [str(root / w) if i % 2 else w for i, w in enumerate(options)]
    args = ["bench", "-q", "--classifier", str(root / "classifier"), *words, "--out", str(out), *map(str, more)]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    found = {p.stem: json.loads(p.read_text()) for p in (Path(out) / "6-bench").glob("*.json")}
    page = (Path(out) / "7-report" / "report.html").read_text()
    words = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))
    return found, re.sub(r"\s+", " ", words), result


def test_who_reads_images_is_not_shown_those_that_it_does_not_score(pictures, tmp_path, monkeypatch):
    odin, seen = find("scores", "odin"), []
    observe = odin.observe
    monkeypatch.setattr(odin, "observe", lambda self, look: seen.append(len(look.images)) or observe(self, look))
    bench(pictures, tmp_path, "--score", "odin")
    assert seen == [
        2,
        10,
        2 * FEW,
        6,
        FEW,
        FEW,
    ]  # a try, validation, test, threshold, near, far; of 84 to learn from, none


def test_a_score_without_a_mark_that_every_score_has_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "mine_own").mkdir()
    (tmp_path / "mine_own" / "bare.py").write_text(
        "class Score:\n    differentiable = False\n\n    def fit(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OutskirtsError, match=r"the Score of mine_own\.bare has no 'transductive'; give it one"):
        list(make_scores(Recipe("a", scores=("mine_own.bare",))))


def test_a_bench_alone_measures_folders_and_writes_the_page(pictures, tmp_path):
    found, page, result = bench(pictures, tmp_path, "--score", "msp", "--score", "energy")
    assert result.stdout.strip() == str(tmp_path / "7-report" / "report.html")
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "6-bench", "7-report"}
    seen = {(r["method"], r["score"], r["set"]) for r in found["rows"]}
    places = ("near", "far", "mean-near", "mean-far", "mean-all")
    assert seen == {("plain", s, p) for s in ("msp", "energy") for p in places}
    row = next(r for r in found["rows"] if r["set"] == "near")
    assert (row["n_id"], row["n_ood"], row["group"]) == (2 * FEW, FEW, "near")
    assert found["warnings"] == []
    pairs = {(d["method"], d["baseline"], d["score"], d["baseline_score"]) for d in found["differences"]}
    (pair,) = pairs  # the better score against the other one, on the same images
    value = {r["score"]: r["auroc"] for r in found["rows"] if r["set"] == "mean-all"}
    assert pair == ("plain", "plain", max(value, key=value.get), min(value, key=value.get))
    d = next(d for d in found["differences"] if (d["set"], d["metric"]) == ("mean-all", "auroc"))
    assert d["diff"] == pytest.approx(max(value.values()) - min(value.values()))
    assert (d["verdict"] == "improves") == (d["lo"] > 0)
    assert "holds the score" not in result.stderr  # no detector: too few images to set its threshold on
    assert "The classifier as it is tells ID from OOD best with" in page
    assert "Nothing was trained, and no outliers were made." in page
    for absent in (
        "no verdict",
        "noise floor not in this run",
        "Before and after",
        "Not in this run",
        "Training against",
    ):
        assert absent not in page


def test_without_training_images_the_test_images_are_split_and_that_is_said(pictures, tmp_path):
    options = ("--id", "test", "--far", "far")
    found, page, _ = bench(pictures, tmp_path, "score.knn.k=5", options=options)
    warning, small = found["warnings"]
    assert small.startswith("ID test has 12 images: ")
    assert warning.startswith(
        f"folder:{pictures}/test is the only ID set: split at random into 40 images that fit the scores"
    )
    assert warning in page
    assert {r["n_id"] for r in found["rows"]} == {12}


def test_the_detector_holds_the_score_that_is_asked_for(pictures, tmp_path):
    scores = ("--score", "energy", "--score", "msp", "--score", "knn", "score.knn.k=5", "id_val=digits[0-1]")
    _, page, result = bench(pictures, tmp_path, *scores)
    assert json.loads((tmp_path / "6-bench/detector/detector.json").read_text())["score"] == "energy"
    assert "holds the score 'energy', the default: no test set chooses it" in result.stderr
    _, page, result = bench(pictures, tmp_path, *scores, "detector_score=msp", "--redo", "bench")
    assert json.loads((tmp_path / "6-bench/detector/detector.json").read_text())["score"] == "msp"
    assert "holds the score 'msp', as detector_score says" in result.stderr
    assert "detector_score=energy|knn" in result.stderr
    assert "holds the MSP score, as detector_score says" in page
    base = f"--classifier {pictures}/classifier --id {pictures}/test --far {pictures}/far --out {tmp_path}/b"
    fields = "--score energy --score unified score.unified.mode=transductive score.unified.k=9"
    for wanted, why in (("vim", "accepted: energy, unified"), ("unified", "images around it; accepted: energy")):
        args = f"bench -q {base} {fields} detector_score={wanted}".split()
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert why in result.stderr


def test_what_is_wrong_with_the_sets_is_on_the_page(pictures, tmp_path):
    mixed = tmp_path / "mixed"
    for name, source in (("1", "train/1"), ("eight", "near/7")):
        (mixed / name).mkdir(parents=True)
        for f in sorted((pictures / source).iterdir())[:4]:
            (mixed / name / f.name).write_bytes(f.read_bytes())
    alone = tmp_path / "alone"
    save(load("digits[9]").take(1), alone)
    options = ("--train", "train", "--id", "test", "--near", mixed, "--far", alone)
    found, page, _ = bench(pictures, tmp_path / "out", "--score", "msp", options=options)
    said = [w.split(":")[0] for w in found["warnings"]]
    assert said == [
        "mixed has 8 images",
        "alone has one image",
        "mixed has 1 of its 2 classes in common with the ID set, by name",
        "4 of 8 images of mixed are also among the ID training images, pixel by pixel",
    ]
    assert all(w in page for w in found["warnings"])


def test_an_empty_set_and_classes_in_another_order_are_one_line(pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "list.txt").write_text("")
    cases = {
        f"imglist:{empty}/list.txt": "names no image",
        f"folder:{empty}": "no images in|has no images",
    }
    for name, error in cases.items():
        args = [
            "bench",
            "--classifier",
            str(pictures / "classifier"),
            "--id",
            str(pictures / "test"),
            "--far",
            name,
            "--score",
            "msp",
        ]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert re.search(error, result.stderr)
    args = ["bench", "--classifier", str(pictures / "classifier"), "--id", str(pictures / "test"), "--far", "noise", "--score", "msp", "-o", str(tmp_path / "o"), "classes=1,0"]  # fmt: skip
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "in another order; give classes=0,1" in result.stderr


BROKEN = """
from dataclasses import dataclass
import torch
@dataclass
class Score:
    differentiable = False
    transductive = False
    def fit(self, train, labels, *, val=None, outliers=None): return self
    def __call__(self, outputs):
        s = -outputs.logits.max(1).values
        return s / 0 if len(s) == 29 else s
"""


def test_scores_that_are_not_finite_are_left_out_and_counted_on_the_page(pictures, tmp_path, monkeypatch):
    (tmp_path / "broken_score.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    less = tmp_path / "less"
    less.mkdir()
    for f in sorted((pictures / "near" / "7").iterdir())[:29]:
        (less / f.name).write_bytes(f.read_bytes())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken.py").write_text(BROKEN)
    options = ("--train", "train", "--id", "test", "--near", less, "--far", "far")
    found, page, _ = bench(
        pictures, tmp_path / "out", "--score", "broken=mine.broken", "--score", "msp", options=options
    )
    rows = {(r["score"], r["set"]): r for r in found["rows"]}
    assert rows["broken", "less"]["auroc"] is None
    assert rows["broken", "mean-all"]["n_excluded"] == 1
    assert rows["broken", "mean-all"]["auroc"] == rows["broken", "far"]["auroc"]
    assert rows["msp", "mean-all"]["n_excluded"] == 0
    (warning,) = found["warnings"]
    assert warning.startswith(
        "score 'broken' (plain, seed 0) is left out on less, and from the means over sets: 29 of 29"
    )
    assert warning in page
    assert "broken: 1 test set not in the means" in page
    assert "left out" in page


UNABLE = """
import torch


class Score:
    differentiable = False
    transductive = False

    def fit(self, train, labels, *, val=None, outliers=None):
        return self

    def __call__(self, outputs):
        return torch.full((len(outputs),), {value})
"""


def test_what_is_constant_or_not_finite_sets_no_threshold_and_is_not_offered(pictures, tmp_path, monkeypatch, caplog):
    (tmp_path / "mine").mkdir()
    for name, value in (("constant", "1.0"), ("nan", "torch.nan")):
        (tmp_path / "mine" / f"{name}.py").write_text(UNABLE.format(value=value))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [w for x in ("energy", "msp", "c=mine.constant", "n=mine.nan") for w in ("--score", x)]
    shifted = ("id_val=digits[0-1]", f"shifted=folder:{pictures}/test")
    found, _, result = bench(pictures, tmp_path / "o", *words, *shifted)
    assert "give detector_score=msp and" in result.stderr
    told, written = ([w for w in words if "is left out on" in w] for words in (caplog.messages, found["warnings"]))
    assert told == written
    assert len(told) == 2  # of the full spectrum, nothing that was said already
    for name, why in (("c", "every score is 1"), ("n", "scores are NaN or infinite")):
        caplog.clear()
        bench(pictures, tmp_path / name, *words, "id_val=digits[0-1]", f"detector_score={name}")
        (line,) = (x for x in caplog.messages if x.startswith("no detector was written"))
        assert line.startswith(f"no detector was written: score '{name}' sets no threshold")
        assert why in line
        assert not (tmp_path / name / "6-bench/detector").exists()


@pytest.fixture
def named(pictures, tmp_path):
    """A benchmark of the folders, with shifted ID images; one part is nowhere."""

    def part(role, label, where, n):
        files = imglist.names_hash(f.name for f in (pictures / where).rglob("*.png"))
        at = [{"name": f"folder:{{root}}/{where}"}]
        return {"role": role, "label": label, "images": n, "at": at, "get": "ask us", "files_sha256": files}

    facts = {
        "about": "Zeros and ones.",
        "source": "here",
        "root": str(pictures),
        "published": "cifar10",
        "classes": {"n": 2, "sha256": imglist.names_hash(["0", "1"])},
        "parts": [
            part("id", "train", "train", 100),
            part("id_test", "test", "test", 2 * FEW),
            part("near", "sevens", "near", FEW),
            part("far", "negatives", "far", FEW),
            part("shifted", "again", "train", 100),
        ],
    }

    def write(*more):
        (tmp_path / "zeros.json").write_text(json.dumps(facts | {"parts": [*facts["parts"], *more]}))
        return tmp_path / "zeros.json"

    return lambda *more: write(*(part(*m) for m in more))


def test_a_benchmark_that_matches_has_published_rows_and_a_full_spectrum(pictures, named, tmp_path, monkeypatch):
    options = ()
    found, *_ = bench(pictures, tmp_path / "n", "--benchmark", named(), "--score", "msp", options=options)
    assert found["published"] == []
    assert any("(standard) are not printed beside yours: its class list" in w for w in found["warnings"])
    monkeypatch.setattr(boards, "boards", lambda: {"cifar10": json.loads(named().read_text())})
    found, page, _ = bench(pictures, tmp_path / "o", "--benchmark", named(), "--score", "energy", options=options)
    assert found["benchmark"]["matches"]
    assert found["published"]
    assert {p["state"] for p in found["benchmark"]["parts"]} == {"matches"}
    assert all(r["published"] for r in found["published"])
    assert "published" in page
    wide = {r["set"]: r for r in found["full_spectrum"]}
    assert wide["sevens"]["n_id"] == 2 * FEW + 100
    assert next(r for r in found["rows"] if r["set"] == "sevens")["n_id"] == 2 * FEW
    assert "Full spectrum" in page


def test_shifted_folders_of_one_s_own_give_a_full_spectrum(pictures, tmp_path):
    options = ("--train", "train", "--id", "test", "--near", "near", "--shifted", "train")
    found, page, _ = bench(pictures, tmp_path / "o", "--score", "msp", options=options)
    assert {r["set"]: r["n_id"] for r in found["full_spectrum"]}["near"] == 2 * FEW + 100
    assert "Full spectrum" in page


def test_a_part_that_is_missing_is_skipped_by_name(pictures, named, tmp_path):
    benchmark = named(("far", "photographs", "nowhere", 7))
    found, page, _ = bench(pictures, tmp_path / "o", "--benchmark", benchmark, "--score", "energy", options=())
    row = next(r for r in found["rows"] if r["set"] == "photographs")
    assert row["excluded"] == f"missing: no folder {pictures}/nowhere"
    assert row["auroc"] is None
    counts = {r["set"]: r["n_excluded"] for r in found["rows"] if r["set"].startswith("mean")}
    assert counts == {"mean-near": 0, "mean-far": 1, "mean-all": 1}
    assert found["published"] == []
    assert any(w.startswith("benchmark zeros: far OOD 'photographs' is missing") for w in found["warnings"]), found
    assert "photographs" in page
    assert "not every part matches" in page


def test_a_set_in_place_of_a_part_is_no_match(pictures, named, tmp_path):
    more = ("--benchmark", named(), "--score", "energy", "far=noise")
    found, _, _ = bench(pictures, tmp_path / "o", *more, options=())
    states = {p["label"]: p["state"] for p in found["benchmark"]["parts"]}
    assert states["negatives"] == "approximation"
    assert not found["benchmark"]["matches"]
    assert found["published"] == []


def test_a_score_that_cannot_be_fitted_is_left_out_by_name_and_costs_no_other(pictures, tmp_path):
    found, page, _ = bench(pictures, tmp_path, "--score", "energy", "--score", "unified", "score.unified.k=9")
    assert all(r["auroc"] is None for r in found["rows"] if r["score"] == "unified")
    assert all(r["auroc"] is not None for r in found["rows"] if r["score"] == "energy")
    (line,) = found["warnings"]
    assert "'unified'" in line
    assert "needs outliers" in line
    assert "needs outliers" in page


def test_a_score_that_cannot_look_at_images_is_left_out_by_name_and_costs_no_other(pictures, tmp_path):
    found, page, _ = bench(
        pictures, tmp_path, "--score", "energy", "--score", "rankfeat", "score.rankfeat.layers=nowhere"
    )
    assert all(r["auroc"] is not None for r in found["rows"] if r["score"] == "energy")
    (why,) = {r["excluded"] for r in found["rows"] if r["score"] == "rankfeat" and r["set"] == "near"}
    assert "no layer 'nowhere'" in why
    assert "no layer 'nowhere'" in page


def test_a_detector_of_pytorch_ood_that_lacks_something_or_fails_costs_no_other(pictures, tmp_path):
    labels = ("gram", "dice", "odin", "sparse", "layers")
    words = [w for x in labels for w in ("--score", f"{x}=pytorch_ood")]
    chosen = (
        "score.gram.detector=Gram",
        "score.dice.detector=DICE",
        "score.odin.detector=ODIN",
        "score.sparse.detector=DICE",
        "score.layers.detector=Gram",
    )
    options = (
        'score.odin.options={"epsilon": 1}',
        'score.sparse.options={"p": 0.5}',
        'score.layers.options={"feature_layers": ["stages.0", "stages.2"]}',  # fitted on the training images
    )
    found, page, _ = bench(pictures, tmp_path, *words, "--score", "energy", *chosen, *options)
    why = {r["score"]: r.get("excluded") for r in found["rows"] if r["set"] == "near"}
    assert why["energy"] is why["sparse"] is why["layers"] is None
    told = {
        "gram": "pytorch-ood's Gram needs the option 'feature_layers'",
        "dice": "needs the option 'p'",
        "odin": "ODIN: TypeError",
    }
    for label, said in told.items():
        assert said in why[label]
        assert said in page
        assert any(f"score '{label}'" in w and said in w for w in found["warnings"])


def test_a_covariance_of_more_dimensions_than_images_is_warned_of_on_the_page(pictures, tmp_path):
    found, page, _ = bench(pictures, tmp_path, "--score", "rmd", "--score", "energy", "fit_images=40")
    (warning,) = found["warnings"]
    assert re.match(
        r"score\.rmd estimates a covariance of \d+ feature dimensions from 40 images of 2 classes, which span 38 ",
        warning,
    )
    assert warning in page


def test_what_a_command_needs_is_told_in_its_own_words(pictures, tmp_path):
    few = tmp_path / "few"
    for name in ("0", "1"):
        (few / name).mkdir(parents=True)
        for f in sorted((pictures / "train" / name).iterdir())[:8]:
            (few / name / f.name).write_bytes(f.read_bytes())
    train, test = ("--train", str(pictures / "train")), ("--id", str(pictures / "test"), "--far", str(pictures / "far"))
    cases = [
        ((*train, *test, "--near", "d/nope", "--score", "msp"), "no folder and no image set 'd/nope'"),
        (
            ("--train", str(few), *test, "--score", "msp"),
            r"class '0' has 8 images, and 10 are needed, .* id_val=IMAGES",
        ),
        ((*train, *test, "--score", "unified", "score.unified.k=9"), "score.unified.mode=fixed score.unified.w=0.5"),
        (
            (*train, *test),
            r"score\.knn\.k is 100 by default, but there are 8\d training images; .* e\.g\. score\.knn\.k=2\d,",
        ),
    ]
    for words, told in cases:
        result = CliRunner().invoke(
            main, ["bench", "-q", "--out", str(tmp_path / "o"), "--classifier", str(pictures / "classifier"), *words]
        )
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert re.search(told, result.stderr), result.stderr
