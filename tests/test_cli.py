import csv
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from outskirts.cli import main
from outskirts.detector import Detector
from outskirts.find import find
from outskirts.fit_classifier import fit_classifier
from outskirts.images import Images
from outskirts.recipe import ClassifierSettings
from outskirts.settings import as_plain

RUN = ["fields", "recipe", "--dry-run", "--out", "--quiet", "--redo", "--workers", "-o", "-q"]
FIT = ["fields", "images", "out", "--classes", "--device", "--quiet", "--size", "-q"]
FLAGS = {
    "run": RUN,
    "synth": RUN,
    "filter": ["fields", "outliers", "--classifier", "--dry-run", "--id", "--out", "--quiet", "--redo", "-o", "-q"],
    "train": RUN,
    "bench": sorted(
        [*RUN, "--classifier", "--id", "--near", "--far", "--shifted", "--train", "--score", "--benchmark", "--root"]
    ),
    "report": ["folder", "--out", "-o"],
    "score": ["detector", "images", "--batch-size", "--device", "--format", "-b", "-f"],
    "export": ["detector", "file", "--size"],
    "fit-classifier": FIT,
    "fit-diffusion": FIT,
    "clip-tune": sorted({*FIT, "--clip", "--words", "--outliers", "--test", "--near", "--far"} - {"--size"}),
    "convert-rcg": ["mage", "out", "--encoder", "--rdm", "--tokenizer"],
    "list": ["shelf"],
    "show": ["fields", "recipe"],
}
"""What may be given to each verb. A run is a recipe: think of a recipe field before a new flag."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test can touch the user's files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def outskirts(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_no_new_flags():
    assert {
        n: sorted(o for p in c.params for o in (p.opts if p.name in ("recipe", "fields") or p.opts else []))
        for n, c in main.commands.items()
    } == {n: sorted(f) for n, f in FLAGS.items()}


@pytest.mark.parametrize("verb", ["", *FLAGS])
def test_help_starts_with_a_sentence_and_has_examples(verb):
    text = outskirts(*verb.split(), "--help").output
    first = text.split("\n\n")[1].strip()
    assert first[0].isupper()
    assert first.endswith(".")
    assert f"  outskirts {verb}".rstrip() in text


def test_examples_in_help_are_commands_that_exist():
    for name, command in main.commands.items():
        lines = [line.strip() for line in command.help.splitlines() if line.strip().startswith("outskirts ")]
        for line in lines:
            words = line.replace("'", "").split()
            assert words[1] == name
            for option in (w for w in words if w.startswith("--")):
                assert option in FLAGS[name]


def test_help_and_import_load_nothing_heavy_and_are_quick():
    code = (
        "import time; t = time.perf_counter(); import sys, outskirts, outskirts.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'diffusers', 'datasets', 'timm', 'matplotlib', 'pyarrow', 'rich'} & set(sys.modules), time.perf_counter() - t)"
    )
    last = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[
        -1
    ]
    loaded, _, seconds = last.rpartition(" ")
    assert loaded == "set()"
    assert float(seconds) < 0.5


def test_list_and_show():
    assert "quickstart" in outskirts("list", "recipes").output
    names = [line.split()[0] for line in outskirts("list", "scores").output.splitlines()]
    assert {"energy", "knn", "msp", "unified"} <= set(names)
    assert all(
        len(line.split()) > 3 for line in outskirts("list", "synth").output.splitlines()
    )  # each with its sentence
    text = outskirts("show", "quickstart", "synth=noise", "train.epochs=7").output
    assert "train.epochs=7\n    Passes over the ID training images, each in a new order." in text
    assert "synth.kind=gaussian" in text
    assert "channels=32,64,64" in outskirts("show", "fit-diffusion").output
    assert "channels=8,16\n" in outskirts("show", "fit-diffusion", "channels=8,16").output
    everything = outskirts("list").output
    assert all(
        f"  {line}" in everything
        for s in ("scores", "synth", "recipes", "benchmarks")
        for line in outskirts("list", s).output.splitlines()
    )


def test_show_of_a_benchmark_says_what_is_there_and_how_to_get_the_rest():
    text = outskirts("show", "cifar10", "download=true").output
    assert re.search(
        r"near OOD +TinyImageNet +7,793  missing: no data/.*; to get it: git clone .*--datasets tin --save_dir data",
        text,
    )
    assert re.search(r"far OOD +SVHN +26,032  approximation: torchvision's PNG pixels", text)
    assert "published rows are printed beside yours where every part matches" in text
    assert "below elsewhere:" in outskirts("show", "cifar10", "root=elsewhere").output


def test_what_show_prints_can_be_given_back():
    text = outskirts("show", "quickstart", "synth=noise").output
    fields = [
        line for line in text.splitlines() if "=" in line and not line.startswith((" ", "score ", "synthesizer "))
    ]
    assert len(fields) > 50
    again = outskirts("show", "quickstart", *fields)
    assert again.output == text


def test_a_run_is_shown_as_its_recipe_is(tmp_path):
    plain = as_plain(find("recipes", "quickstart")())
    (tmp_path / "runs" / "q").mkdir(parents=True)
    (tmp_path / "runs" / "q" / "run.json").write_text(json.dumps({"recipe": plain}))
    assert outskirts("show", "runs/q").output == outskirts("show", "quickstart").output


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["run", "quikstart"], "no 'quikstart' in recipes, did you mean 'quickstart'; known: "),
        (["run", "quickstart", "train.epoch=1"], "did you mean 'train.epochs'; `outskirts show"),
        (["run", "quickstart", "train.epochs=x"], "train.epochs is 'x'; it must be a whole number"),
        (["run", "quickstart", "--redo", "filter"], "no stage 'filter' in this recipe"),
        (["run", "quickstart", "id=folder:nowhere", "--dry-run"], "no such folder: nowhere"),
        (["run", "quickstart", "-o", "file/q"], "cannot write to file/q"),
        (["bench", "quickstart", "stages=bench"], "classifier=fit, but stages leaves 'classifier' out"),
        (["run", "quickstart", "device=cuda:77", "--dry-run"], "device 'cuda:77' is not available here"),
        (["score", "nowhere", "."], "no images at '.'"),
        (["export", "nowhere", "x.onnx"], "no detector.json in nowhere"),
        (["fit-classifier", "digits", "out", "epoch=3"], "did you mean 'epochs'; "),
        (["fit-classifier", "digits", "out", "--classes", "3"], "images of one class only"),
        (["show", "my.recipe"], "no module 'my.recipe'"),
        (["show", "fit-difusion"], "did you mean 'fit-diffusion'"),
        (["show", "quickstrat"], "did you mean 'quickstart'"),
        (["run", "./nosuch"], "./nosuch: no such folder; "),
        (["run", "../b", "--dry-run"], "../b: no such folder; "),
        (["run", "."], ".: no run in it; "),
        (["show", "fit-diffusion", "lrr=3"], "no field 'lrr', did you mean 'lr'; "),
        (["run", "quickstart", "diffusion=empty", "--dry-run"], "diffusion folder 'empty' has no model_index.json"),
        (["run", "quickstart", "near=", "far="], "near and far are both empty"),
        (["bench"], "bench what? Give a recipe, or --classifier"),
        (["bench", "seeds=0"], "bench what?"),
        (
            ["bench", "quickstart", "--classifier", "c"],
            "a recipe (quickstart) and --classifier were given; with a recipe",
        ),
        (["bench", "--id", "digits"], "needs a classifier; give --classifier"),
        (["bench", "--classifier", "c", "--id", "digits"], "needs images: --id, and --near or --far; or --benchmark"),
        (["bench", "--classifier", "c", "--benchmark", "cifar"], "no benchmark 'cifar', did you mean 'cifar10'"),
        (["bench", "--classifier", "c", "--benchmark", "cifar10"], "ID test 'CIFAR-10 test' is missing: no data/bench"),
        (["bench", "--classifier", "c", "--id", "digits", "--far", "noise", "--benchmark", "cifar10"], "leave --id, "),
        (
            ["bench", "--classifier", "c", "--id", "digits", "--far", "noise", "--root", "d"],
            "give --benchmark NAME too",
        ),
        (["bench", "--classifier", "c", "--id", "digits", "--far", "noise", "--near", "noise"], "called 'noise'"),
        (["bench", "--classifier", "nowhere", "--id", "digits", "--far", "noise"], "nowhere"),
        (["list", "score"], "nothing to list under 'score', did you mean 'scores'"),
        (["report", "empty"], "empty has no results to report; run `outskirts bench empty` first"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, error, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    result = outskirts(*args)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert error in lines[0]


def test_a_recipe_of_the_user_s_own_in_the_folder_where_they_are(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.py").write_text(
        "from outskirts.recipe import Recipe\ndef recipe(): return Recipe('letters', synth='noise')\n"
    )
    assert outskirts("show", "mine.letters").output.startswith("letters\n")


def test_dry_run_prints_counts_and_time_and_writes_nothing(tmp_path):
    result = outskirts(
        "run", "quickstart", "synth=noise", "n_outliers=30", "seeds=0,1", "--dry-run", "-o", tmp_path / "q"
    )
    assert result.exit_code == 0, result.output
    assert "533" in next(
        line for line in result.output.splitlines() if "digits 7-9" in line
    )  # sevens to nines of 1797 digits
    assert "30 outliers in 1 batches" in result.output
    assert sum("5-train/" in line for line in result.output.splitlines()) == 2
    assert "estimated time   about" in result.output
    assert not (tmp_path / "q").exists()


def test_dry_run_tries_few_images_of_a_class(tmp_path, monkeypatch):
    monkeypatch.setattr("outskirts.plan.TRIAL_IMAGES", 70)  # ten a class, fewer than NPOS's neighbour
    result = outskirts("run", "quickstart", "synth=npos", "n_outliers=30", "--dry-run", "-o", tmp_path / "q")
    assert result.exit_code == 0, result.output
    assert "npos, 30 outliers" in result.output


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector that knows black from white, trained on 8x8 images."""
    from outskirts.scores.energy import Score

    folder = tmp_path_factory.mktemp("detector")
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = (torch.randint(0, 60, (64, 3, 8, 8), generator=g) + 195 * labels[:, None, None, None]).to(torch.uint8)
    images = Images("shades", ["dark", "light"], labels, pixels)
    settings = ClassifierSettings(arch="resnet_tiny", epochs=3, lr=0.05, batch_size=16, augment="none")
    classifier = fit_classifier(images, images, folder / "c", settings, device="cpu", progress=False)
    Detector.fit(classifier, Score(), images, images).save(folder / "d")
    return folder / "d"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, shade, size in (("a.png", 20, (8, 8)), ("b.jpg", 230, (30, 20)), ("deep/c.png", 25, (8, 8))):
        Image.new("RGB", size, (shade,) * 3).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("passed over")
    return folder


def test_score_writes_a_line_per_image_and_counts_what_it_skips(detector, pictures, caplog):
    with caplog.at_level(logging.WARNING, "outskirts"):
        result = outskirts("score", detector, pictures, "--batch-size", 2)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "1 files skipped"
    assert len(caplog.messages) == 1
    assert "broken.png cannot be read as an image" in caplog.messages[0]
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["path", "score", "is_ood", "p_value", "predicted"]
    assert [Path(r["path"]).name for r in rows] == ["a.png", "b.jpg", "c.png"]
    assert [r["predicted"] for r in rows] == ["dark", "light", "dark"]
    known = Detector.load(detector)
    image = torch.full((1, 3, 8, 8), 20 / 255)
    assert float(rows[0]["score"]) == pytest.approx(known.score(image).item(), rel=1e-4)
    assert float(rows[0]["p_value"]) == pytest.approx(known.decide(image)[1].item(), abs=1e-5)


def test_score_takes_files_and_globs_as_json_lines(detector, pictures):
    result = outskirts("score", detector, pictures / "a.png", str(pictures / "**" / "*.jpg"), "--format", "jsonl")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(r["path"]).name, r["predicted"]) for r in rows] == [("a.png", "dark"), ("b.jpg", "light")]
    assert isinstance(rows[0]["is_ood"], bool)
    alone = json.loads(outskirts("score", detector, pictures / "b.jpg", "-f", "jsonl").stdout)
    assert alone["score"] == pytest.approx(rows[1]["score"], rel=1e-4)


def test_fit_classifier_and_use_it(tmp_path):
    result = outskirts(
        "fit-classifier",
        "digits",
        tmp_path / "c",
        "--classes",
        "0,1",
        "epochs=1",
        "arch=resnet_tiny",
        "--device",
        "cpu",
        "-q",
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "c" / "classifier.json").read_text())["classes"] == ["0", "1"]


def test_version():
    import outskirts as package

    assert outskirts("--version").output == f"outskirts, version {package.__version__}\n"
