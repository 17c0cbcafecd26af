"""Manifests as they are written: the packaged ones by name, and a file of the user's own, checked before it is used."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean

ROLES = {"id": "ID training", "id_val": "ID validation", "id_test": "ID test", "near": "near OOD", "far": "far OOD", "shifted": "shifted ID"}  # fmt: skip
GROUPS = ("near", "far", "shifted")
"""Roles that several parts may have; the others have one."""
PLACES = ("imglist", "folder", "parquet", "hf", "torchvision")
KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
WHOLE = {"about": str, "source": str, "classes": dict, "parts": list}
CLASSES = {"n": int, "sha256": str}
PART = {"role": str, "label": str, "get": str, "at": list}
MAY = {"root": str, "size": list, "published": str, "names": list, "images": int, "note": str, "why": str}
"""Keys that may be left out, or be null, wherever they stand."""


def names() -> list[str]:
    """Every packaged benchmark, in alphabetical order."""
    files = (f.name for f in resources.files("outskirts").joinpath("manifests").iterdir())
    return sorted(f.removesuffix(".json") for f in files if f.endswith(".json") and f != "published.json")


def manifest(name: str) -> dict[str, Any]:
    """The manifest as it is written; of a file of the user's own where `name` ends in .json."""
    if name.endswith(".json"):
        return own(Path(name).expanduser())
    if name not in (known := names()):
        raise OutskirtsError(f"no benchmark {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return packaged(name)


def packaged(name: str) -> dict[str, Any]:
    """A file of the package's folder manifests, without its suffix."""
    return json.loads(resources.files("outskirts").joinpath("manifests", f"{name}.json").read_text(encoding="utf-8"))


def own(path: Path) -> dict[str, Any]:
    """The manifest in the file `path`. Raises OutskirtsError that says what is missing, or where the JSON breaks."""
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except OSError as e:
        wrong = e.strerror
    except UnicodeDecodeError as e:
        wrong = f"byte {e.start} is not UTF-8"
    except json.JSONDecodeError as e:
        wrong = f"line {e.lineno}, column {e.colno} is not JSON: {e.msg}"
    except OutskirtsError as e:
        wrong = str(e)
    raise OutskirtsError(
        f"{path} cannot be read as a benchmark's manifest: {wrong}; the ones in the package's folder manifests show the form"
    )


def _checked(facts: Any) -> dict[str, Any]:
    _need("it", facts, WHOLE)
    _need("its 'classes'", facts["classes"], CLASSES)
    size = facts.get("size")
    if size and not (len(size) == 2 and all(type(s) is int and s > 0 for s in size)):
        raise OutskirtsError(f"its 'size' is {size}, it takes [HEIGHT, WIDTH]")
    for number, part in enumerate(facts["parts"], 1):
        label = part.get("label") if isinstance(part, Mapping) else None
        where = f"part {number}{f' ({label})' if label else ''}"
        _need(where, part, PART)
        if part["role"] not in ROLES:
            raise OutskirtsError(f"{where} has the role {part['role']!r}, accepted: {', '.join(ROLES)}")
        for place in part["at"]:
            _need(f"a place in 'at' of {where}", place, {"name": str})
            if place["name"].partition(":")[0] not in PLACES:
                raise OutskirtsError(f"{where} is at {place['name']!r}, accepted: {', '.join(f'{p}:' for p in PLACES)}")
    return facts


def _need(where: str, given: Any, keys: Mapping[str, type]) -> None:
    """Raise OutskirtsError unless `given` is an object that has `keys`, each of its kind."""
    if not isinstance(given, Mapping):
        raise OutskirtsError(f"{where} is {json.dumps(given)[:40]}, it takes an object with {', '.join(keys)}")
    for key, kind in (keys | {k: MAY[k] for k in MAY if given.get(k) is not None}).items():
        if key not in given:
            raise OutskirtsError(f"{where} has no {key!r}")
        if type(given[key]) is not kind:
            raise OutskirtsError(f"{key!r} of {where} is {json.dumps(given[key])[:40]}, it takes {KINDS[kind]}")
