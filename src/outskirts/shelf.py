"""What `outskirts list` and `outskirts show` print: names with their sentence, settings with value and meaning."""

import ast
import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from outskirts import benchmarks, boards
from outskirts.clip_settings import ClipTuneSettings
from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean, find, names
from outskirts.recipe import ClassifierSettings, DiffusionSettings, Recipe, labelled

VERBS = {"fit-classifier": ClassifierSettings, "fit-diffusion": DiffusionSettings, "clip-tune": ClipTuneSettings}


NAMES = {
    "images": ("data", ""),
    "classifiers": ("models", "load_classifier"),
    "diffusion": ("load_diffusion", "load_diffusion"),
}
"""What else has names: the docstring of this module, or of a function in it, lists them."""
FEW = 20
"""Published rows that `show` prints; of more it says the number."""
SHELVES = ("recipes", "synth", "scores", "benchmarks", *NAMES)


def lines(shelf: str) -> Iterator[str]:
    """What may stand where a name of this shelf is asked for. No module is imported for it."""
    if shelf in NAMES:
        module, function = NAMES[shelf]
        tree = ast.parse(importlib.util.find_spec(f"outskirts.{module}").loader.get_source(f"outskirts.{module}"))
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
        yield from (ast.get_docstring(nodes[0] if function else tree) or "").split("\n\nRaises ")[0].splitlines()
        return
    if shelf not in SHELVES:
        close = did_you_mean(shelf, SHELVES)
        raise OutskirtsError(f"nothing to list under {shelf!r}{close}; known: {', '.join(SHELVES)}")
    known = benchmarks.names() if shelf == "benchmarks" else names(shelf)
    for name in known:
        yield f"{name:{max(map(len, known))}}  {_about(shelf, name)}"


def _about(shelf: str, name: str) -> str:
    if shelf == "benchmarks":
        return benchmarks.manifest(name)["about"]
    source = importlib.util.find_spec(f"outskirts.{shelf}.{name}").loader.get_source(f"outskirts.{shelf}.{name}")
    return sentence(ast.get_docstring(ast.parse(source)) or "")


def all_lines() -> Iterator[str]:
    """Every shelf, its name above its lines."""
    for i, shelf in enumerate(SHELVES):
        yield from ("",) * (i > 0)
        yield f"{shelf}:"
        yield from (f"  {line}" for line in lines(shelf))


def sentence(text: str) -> str:
    """The first line of a docstring."""
    return text.strip().partition("\n")[0]


def settings_text(verb: str, fields: Sequence[str] = ()) -> str:
    """The fields of `fit-classifier` or `fit-diffusion` with value and meaning; `fields` are FIELD=VALUE texts that change them."""
    settings = VERBS[verb]()
    if fields:
        from outskirts.fit_verbs import changed  # loads torch

        settings = changed(settings, fields, verb)
    return "\n".join(_fields(settings, ""))


def recipe_text(recipe: Recipe) -> str:
    """Every field of a recipe, of its synthesizer and of its scores: what may stand before `=` on the command line."""
    text = [recipe.name, f"  {recipe.about}", "", *_fields(recipe, "")]
    try:
        synthesizer = find("synth", recipe.synth)(**recipe.synth_with)
        text += [
            "",
            f"synthesizer {recipe.synth}: {sentence(type(synthesizer).__doc__ or '')}",
            *_fields(synthesizer, "synth."),
        ]
        for label, name in map(labelled, (*recipe.scores, *recipe.plain_scores)):
            score = find("scores", name)(**recipe.score_with.get(label, {}))
            text += ["", f"score {label}: {sentence(type(score).__doc__ or '')}", *_fields(score, f"score.{label}.")]
    except TypeError as e:
        raise OutskirtsError(
            f"recipe {recipe.name!r}: {e}; its synth_with or score_with names a field that is not there"
        ) from None
    return "\n".join(text)


def check_name(name: str) -> None:
    """Raise OutskirtsError for a plain word, no recipe and no folder, that is closer to the name of a verb or a benchmark than to a recipe's."""
    if "." in name or Path(name).is_dir():
        return
    others = [*VERBS, *benchmarks.names()]
    known = names("recipes")
    close = did_you_mean(name, [*others, *known])
    if name not in known and close and close == did_you_mean(name, others):
        raise OutskirtsError(f"nothing to show under {name!r}{close}; known: {', '.join([*VERBS, *known])}")


def benchmark_text(name: str, fields: Sequence[str] = ()) -> str:
    """The parts of a benchmark: role, count, state, where it is or how to get it; `fields` may hold root=DIR and download=true."""
    text, _, options = name.partition("?")
    found = benchmarks.parse(f"{text}?{'&'.join(filter(None, (options, *fields)))}")
    wide = max(len(p.label) for p in found.parts)
    text = [text, f"  {found.about}", f"  {found.source}", "", f"below {found.root}:"]
    for p in found.parts:
        count = "?" if p.images is None else f"{p.images:,}"
        text += [
            f"{benchmarks.ROLES[p.role]:13} {p.label:{wide}} {count:>9}  {p}",
            *([f"    {p.name}"] if p.name else []),
        ]
    return "\n".join([*text, "", *_rows(found)])


def _rows(found: benchmarks.Benchmark) -> Iterator[str]:
    """How many published rows there are, and when they are printed beside one's own; of a few, the rows."""
    if not found.board:
        yield "no published rows"
        return
    printed = {r["table"] for r in found.published()}
    for table, every in ((boards.STANDARD, "every part"), (boards.FULL, "every part, shifted ID too,")):
        rows, what = boards.on_board(found.board, table), "" if table == boards.STANDARD else f"{table} "
        beside = "are printed beside yours" + (f" where {every} matches" if table not in printed else "")
        if why := found.barred.get(table):
            beside = f"are never printed beside yours: {why}"
        if rows or table == boards.STANDARD:
            yield f"{len(rows)} published {what}rows {beside}"
        yield from _published(rows) if len(rows) <= FEW else ()


def _published(rows: Sequence[dict]) -> Iterator[str]:
    """Rows as they are published, then their sources."""
    for r in rows:
        said = {"AUROC": "all_auroc", "fpr95 as published": "all_fpr95_published", "ID accuracy": "id_accuracy"}
        numbers = ", ".join(f"{what} {100 * r[key]:.2f}" for what, key in said.items() if key in r)
        notes = f" ({r['notes']})" if r.get("notes") else ""
        yield f"  {' / '.join(filter(None, (r['training'], r['score'])))}: {numbers}{notes}"
    yield from (f"  published: {source}" for source in dict.fromkeys(r["source"] for r in rows))


def _fields(settings, prefix: str) -> Iterator[str]:
    meanings = _meanings(type(settings))
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from ("", *_fields(value, f"{prefix}{f.name}."), "")
        elif f.init and not f.name.endswith("_with"):
            meaning = meanings.get(f.name, "")
            yield f"{prefix}{f.name}={_text(value)}" + (f"\n    {meaning}" if meaning else "")


def _text(value) -> str:
    """As it would be written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _meanings(cls: type) -> dict[str, str]:
    """Field -> the string that follows it in the class."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0].body
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
