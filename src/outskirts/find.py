"""A name is a module: `find("scores", "knn")` is `outskirts.scores.knn`; a dotted path is the user's own module."""

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from outskirts.errors import OutskirtsError

SHELVES = {"scores": "Score", "synth": "Synthesizer", "recipes": "recipe"}
"""Every module on a shelf defines this one name."""


def names(shelf: str) -> list[str]:
    """The names on a shelf, in alphabetical order, without importing them."""
    package = importlib.import_module(f"outskirts.{shelf}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(shelf: str, name: str):
    """The class or function called `name` on `shelf`: its `Score`, `Synthesizer` or `recipe`.

    Raises OutskirtsError for a name that is neither on the shelf nor an importable dotted path.
    """
    if "/" in name or name.startswith("."):  # a folder, whatever importlib would make of its dots
        is_recipe = shelf == "recipes"
        there = "no run in it" if Path(name).is_dir() else "no such folder"
        raise OutskirtsError(
            f"{name}: {there if is_recipe else 'a folder is none of them'}; give a name that `outskirts list {shelf}` shows"
            f"{', the folder of a run' * is_recipe}, or an importable path such as package.module"
        )
    if "." not in name:
        known = names(shelf)
        if name not in known:
            raise OutskirtsError(f"no {name!r} in {shelf}{did_you_mean(name, known)}; known: {', '.join(known)}")
        name = f"outskirts.{shelf}.{name}"
    return _entry(_import(name), SHELVES[shelf])


def did_you_mean(given: str, known) -> str:
    """'' or ', did you mean ...' for an error message, which goes on with '; ...'."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f", did you mean {close[0]!r}" if close else ""


def _import(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as e:
        if e.name is not None and (path == e.name or path.startswith(e.name + ".")):
            raise OutskirtsError(
                f"no module {path!r}; give a name that `outskirts list` shows or an importable path"
            ) from e
        raise


def _entry(module: ModuleType, entry: str):
    try:
        return getattr(module, entry)
    except AttributeError:
        raise OutskirtsError(f"{module.__name__} defines no {entry!r}; a module used by name must define it") from None
