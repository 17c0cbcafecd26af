"""`outskirts clip-tune`, from images, outliers and words to a detector like any other, with what it measures on the way."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from outskirts.cli import main
from outskirts.clip import Clip, Residual
from outskirts.clip_detector import with_projection
from outskirts.detector import Detector
from outskirts.images import Images
from outskirts.models import load_classifier
from outskirts.store import Store
from outskirts.types import Outlier, Request
from texts import clip_classifier, clip_folder, words


def test_a_projection_stands_between_clip_and_the_texts():
    classifier, images = clip_classifier(), torch.rand(3, 3, 16, 16)
    before = classifier.fingerprint()
    project = Residual(8)
    tuned = with_projection(classifier, project)
    raw = classifier(images)
    torch.testing.assert_close(tuned(images).features, project(raw.features))
    torch.testing.assert_close(tuned(images).logits, classifier.net.head(project(raw.features)))
    assert classifier.fingerprint() == before != tuned.fingerprint()
    assert torch.equal(classifier(images).logits, raw.logits)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """Pictures of four classes in folders, and outliers: a store of a run, and a folder."""
    folder, g = tmp_path_factory.mktemp("verb"), torch.Generator().manual_seed(0)

    def picture(shift, side=20):
        return (torch.rand(3, side, side, generator=g) * 120 + torch.tensor([*shift])[:, None, None]).to(torch.uint8)

    def write(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)

    for k, shift in enumerate([(0, 0, 0), (130, 0, 0), (0, 130, 0), (0, 0, 130)]):
        for i in range(110):
            write(folder / "id" / "wxyz"[k] / f"{i}.png", picture(shift))
    for i in range(30):
        write(folder / "made" / f"{i}.png", picture((130, 130, 0)))
        write(folder / "near" / f"{i}.png", picture((130, 0, 130)))
    store = Store(folder / "run" / "3-synth" / "store", made_by={"synth": "test"})
    store.append([Outlier(Request(i, i), picture((0, 130, 130), 16)) for i in range(30)])
    return folder


def clip_tune(folder, out, *more, outliers=("run", "made"), near=True):
    given = [f"--outliers={folder / o}" for o in outliers] + ([f"--near=near=folder:{folder / 'near'}"] if near else [])
    args = ["clip-tune", f"folder:{folder / 'id'}", out, f"--clip={clip_folder()}", f"--words={words()}", *given]
    return CliRunner().invoke(main, [str(a) for a in (*args, "groups=3", "batch_size=32", "-q", *more)])


@pytest.fixture(scope="module", name="made")
def _made(folder):
    result = clip_tune(folder, folder / "out", "seeds=0,1", "--far=noise")
    assert result.exit_code == 0, result.output
    return folder / "out", result.stdout


def test_the_verb_measures_before_and_after(made):
    out, text = made
    log = json.loads((out / "log.json").read_text())
    rows = json.loads((out / "6-bench" / "rows.json").read_text())
    found = {(r["method"], r["seed"], r["set"]) for r in rows}
    tuned = ("labels", "projection", "both")
    assert found == {
        (m, s, x)
        for m, s in [("plain", 0), *((m, s) for m in tuned for s in (0, 1))]
        for x in ("near", "noise", "mean-near", "mean-far", "mean-all")
    }
    assert {r["score"] for r in rows} == {"neglabel"}
    differences = json.loads((out / "6-bench" / "differences.json").read_text())
    assert {(d["baseline"], d["method"]) for d in differences} == {
        *(("plain", m) for m in tuned), ("labels", "both"), ("projection", "both"),
    }  # fmt: skip
    assert log["images"]["outliers"] + log["images"]["held_out_outliers"] == 60
    assert log["labels"]["negative"] == 9
    assert sum(n for _, n in log["labels"]["most_used"]) == log["images"]["outliers"]
    by = {(v["variant"], v["seed"]): v for v in log["variants"]}
    assert by["plain", 0]["image_moved"] == 0
    assert by["labels", 0]["image_moved"] == 0 < by["projection", 0]["image_moved"]
    assert by["projection", 0]["label_cosine"] == 1 > by["labels", 0]["label_cosine"]
    assert by["labels", 0]["val_accuracy"] == by["plain", 0]["val_accuracy"]  # ID texts stay
    assert len(by["projection", 1]["epochs"]) == 3
    assert len(by["labels", 1]["epochs"]) == 5
    assert all(v["held_out_auroc_lo"] <= v["held_out_auroc"] <= v["held_out_auroc_hi"] for v in by.values())
    assert [line.split()[0] for line in text.splitlines()[2:-1]] == ["plain", *tuned]
    assert text.splitlines()[-1] == str(out / "detector")


def test_what_is_measured_is_what_the_detector_says(made, folder):
    """The rows come from features computed once; the saved detector reads the images again."""
    out, _ = made
    detector = Detector.load(out / "detector")
    log = json.loads((out / "log.json").read_text())
    assert detector.threshold.value == next(v["threshold"] for v in log["variants"] if v["variant"] == "both")
    images = Images("near", [], -torch.ones(30).long(), files=sorted((folder / "near").iterdir()))
    with np.load(out / "6-bench" / "scores.npz") as scores:
        wanted = torch.from_numpy(scores["both|0|neglabel|near"])
    torch.testing.assert_close(detector.score(images), wanted, atol=1e-4, rtol=1e-4)
    assert detector.classifier.classes == ("w", "x", "y", "z")
    assert isinstance(detector.classifier.net.project, Residual)
    untuned = load_classifier(f"clip:{clip_folder()}", classes=list("wxyz"))
    assert isinstance(untuned.net, Clip)
    for name, value in untuned.net.state_dict().items():
        assert torch.equal(value, detector.classifier.net.state_dict()[name]), name


def test_the_detector_and_the_report_are_like_any_other(made, folder):
    out, _ = made
    result = CliRunner().invoke(main, ["score", str(out / "detector"), str(folder / "made")])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 31
    assert {line.split(",")[4] for line in result.output.splitlines()[1:]} <= set("wxyz")
    result = CliRunner().invoke(main, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "7-report" / "comparison.html").is_file()


def test_before_is_what_bench_says(made, folder, tmp_path):
    """The same test images, the same score of CLIP as it is, by the ordinary way."""
    out, _ = made
    given = ["--id", f"folder:{folder / 'id'}", "--near", f"near=folder:{folder / 'near'}", "--score", "neglabel"]
    fields = [f"score.neglabel.words={words()}", "score.neglabel.groups=3"]
    args = ["bench", "--classifier", f"clip:{clip_folder()}", *given, *fields, "-q", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    ours, theirs = (
        next(
            r
            for r in json.loads((where / "6-bench" / "rows.json").read_text())
            if (r["method"], r["set"]) == ("plain", "near")
        )
        for where in (out, tmp_path)
    )
    assert {**ours, "n_excluded": 0} == {**theirs, "n_excluded": 0}


def test_given_again_it_reads_what_is_there(made, folder):
    out, text = made
    before = (out / "log.json").stat().st_mtime_ns
    assert clip_tune(folder, out, "seeds=0,1", "--far=noise").stdout == text
    assert (out / "log.json").stat().st_mtime_ns == before
    result = clip_tune(folder, out, "seeds=0,1", "--far=noise", "lr=0.1")
    assert result.exit_code == 2
    assert "lr was 0.001, is 0.1" in result.stderr


@pytest.mark.parametrize(
    ("mode", "tuned"), [("joint", ["joint"]), ("projection", ["projection"]), ("labels", ["labels"])]
)
def test_one_side_or_both_at_once(folder, tmp_path, mode, tuned):
    result = clip_tune(folder, tmp_path, f"mode={mode}", "seeds=3", "cap=4", near=False)
    assert result.exit_code == 0, result.output
    log = json.loads((tmp_path / "log.json").read_text())
    assert [v["variant"] for v in log["variants"]] == ["plain", *tuned]
    assert log["images"]["left_out_by_cap"] > 0
    assert all(n <= 4 for _, n in log["labels"]["most_used"])
    assert not (tmp_path / "6-bench").exists()
    project = Detector.load(tmp_path / "detector").classifier.net.project
    assert isinstance(project, nn.Identity if mode == "labels" else Residual)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["groups=20"], "9 negative labels for 20 groups"),
        (["share=0.01"], "no word is left"),
        (["--classes=w"], "images of one class only"),
        (["mode=both"], "mode is 'both'; it must be one of steps, joint, projection, labels"),
        (["keep=0.99"], "20 held-out ID scores cannot keep 99 %"),
        (["template=a photo"], "one {}"),
        (["epoch=3"], "did you mean 'epochs'; `outskirts show clip-tune` lists them"),
        (["--outliers=nowhere"], "nowhere"),
        (["--outliers=store:nowhere"], "no store of outliers in nowhere"),
        (["--near=folder:nowhere"], "no such folder: nowhere"),
        (["--words=nowhere.txt"], "cannot read the word list 'nowhere.txt'"),
        (["--clip=."], "cannot load CLIP model '.'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, tmp_path, more, error):
    result = clip_tune(folder, tmp_path / "out", *more)
    assert result.exit_code == 2, result.output
    assert error in result.stderr.splitlines()[-1]
    assert not [f for f in (tmp_path / "out").rglob("*") if f.is_file()]


def test_what_is_missing_is_named():
    result = CliRunner().invoke(main, ["clip-tune", "digits", "out"])
    assert result.exit_code == 2
    assert "clip-tune needs --clip and --words and --outliers" in result.stderr
    assert "label_lr=0.02" in CliRunner().invoke(main, ["show", "clip-tune"]).output
