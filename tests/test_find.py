"""A name is a module, and a wrong name is one line."""

import subprocess
import sys
import time

import pytest

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean, find, names


def test_every_name_on_a_shelf_is_found():
    for shelf in ("scores", "synth", "recipes"):
        assert names(shelf)
        assert all(callable(find(shelf, name)) for name in names(shelf))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("knm", "did you mean 'knn'"),
        ("nowhere.at.all", "no module 'nowhere.at.all'"),
        ("outskirts.errors", "defines no 'Score'"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        find("scores", name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["./nosuch", "../b", ".", "..", "runs/q", "/nowhere/x.y", ".hidden"])
@pytest.mark.parametrize("shelf", ["recipes", "synth"])
def test_a_folder_is_never_a_module(shelf, name):
    with pytest.raises(OutskirtsError, match=f"`outskirts list {shelf}` shows") as e:
        find(shelf, name)
    assert str(e.value).startswith(f"{name}: ")
    assert "\n" not in str(e.value)


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_score.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "score.py").write_text("import a_library_that_is_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        find("scores", "mine.score")


def test_nothing_close_is_no_suggestion():
    assert did_you_mean("qqqq", ["knn", "energy"]) == ""


@pytest.mark.parametrize("line", ["import outskirts", "import outskirts.cli"])
def test_nothing_heavy_is_imported(line):
    code = f"import sys; {line}; print(sorted({{'torch', 'diffusers', 'transformers', 'datasets', 'numpy'}} & set(sys.modules)))"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.monotonic() - start < 20  # a guard against a hang; the half second is measured in benchmarks, not here
