"""The pages say what is so: their code runs, their commands and options exist, their links lead somewhere."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from outskirts.data import load
from outskirts.find import find
from outskirts.recipe import Recipe
from outskirts.types import Outputs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language, mark=""):
    """(page, rest of the fence, code) of every fenced block whose fence carries `mark`."""
    return [
        pytest.param(page, rest.strip(), code, id=f"{page.stem}-{i}")
        for page in PAGES
        for i, (kind, rest, code) in enumerate(BLOCK.findall(page.read_text()))
        if kind == language and mark in rest
    ]


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """The files of CONTRIBUTING's walks as modules of a package `mine` that is nowhere in the project."""
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, module)
    for _, rest, code in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        if "file=" in rest:
            (tmp_path / "mine" / rest.split("file=")[1].strip()).write_text(code)


@pytest.mark.usefixtures("walk")
def test_the_score_of_the_walk_ranks_by_margin():
    outputs = Outputs(torch.tensor([[5.0, 1, 0], [2, 2, 2], [3, 0, 2.5]]), torch.zeros(3, 4))
    score = find("scores", "mine.margin")().fit(outputs, torch.tensor([0, 1, 2]))
    assert score(outputs).tolist() == [-4, 0, -0.5]


@pytest.mark.usefixtures("walk")
def test_the_synthesizer_of_the_walk_makes_the_same_outlier_in_any_order():
    images = load("digits[0-1]")
    synthesizer = find("synth", "mine.halfway")(weight=0.25).fit(images, None)
    requests = synthesizer.requests(6, seed=3)
    assert requests == synthesizer.requests(6, seed=3)
    outliers = list(synthesizer(requests))
    backwards = list(synthesizer(requests[::-1]))[::-1]
    assert all(torch.equal(a.image, b.image) for a, b in zip(outliers, backwards, strict=True))
    made, source = outliers[4].image.float(), images.pixels[requests[4].source].float()
    others = images.pixels[images.labels != requests[4].label].float()
    assert (made - (0.25 * source + 0.75 * others)).abs().flatten(1).amax(1).min() <= 0.5


@pytest.mark.usefixtures("walk")
def test_the_recipe_of_the_walk_is_one():
    recipe = find("recipes", "mine.even")()
    assert isinstance(recipe, Recipe)
    assert load(f"{recipe.id}[{recipe.classes}]").classes == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize(("page", "rest", "code"), blocks("python", "run"))
def test_python_marked_run_runs(page, rest, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "page"})


def commands():
    """Every `outskirts VERB ...` of the pages, as words."""
    for page in PAGES:
        for language, _, code in BLOCK.findall(page.read_text()):
            if language in ("bash", "sh", "console"):
                for command in re.split(r"\n|&&|\||;", code.replace("\\\n", " ")):
                    words = shlex.split(command.removeprefix("$ "), comments=True)
                    if len(words) > 1 and Path(words[0]).name == "outskirts":
                        yield pytest.param(words[1:], id=f"{page.stem}: {command.strip()}")


@pytest.mark.parametrize("words", list(commands()))
def test_verbs_and_options_of_the_pages_exist(words):
    from outskirts.cli import main

    verb = main.commands[words[0]] if not words[0].startswith("-") else main
    known = {option for p in verb.params for option in p.opts} | {"--help"}
    assert {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


PAPERS = sorted((ROOT / "docs" / "papers").glob("*.md"))


@pytest.mark.parametrize("page", PAPERS, ids=lambda p: p.stem)
def test_symbols_of_the_papers_are_where_the_page_says(page):
    rows = re.findall(r"^\|[^|]*\|[^|]*\| `(outskirts\.[\w.]+)` \| `([\w/.]+)` \|$", page.read_text(), re.MULTILINE)
    assert rows
    for symbol, file in rows:
        module, _, name = symbol.rpartition(".")
        assert hasattr(importlib.import_module(module), name), symbol
        assert (ROOT / "src" / "outskirts" / file).as_posix().endswith(module.replace(".", "/") + ".py"), symbol
