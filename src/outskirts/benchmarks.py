"""Benchmarks by name: which images belong to one, where they are, and whether what is there is what the name says.

A benchmark is a manifest, `manifests/NAME.json`: its parts (ID, near, far and shifted ID sets) with their expected counts and
hashes, the places below a root folder where each may lie, and how to get it. Nothing is downloaded unless `download` is true.

    benchmark=pack-cifar10              its default root
    benchmark=cifar10?root=data         OpenOOD's layout below ./data
    benchmark=cifar10?download=true     parts that the Hub or torchvision have are fetched when they are read
    benchmark=mine.json?root=photos     a manifest of your own
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from outskirts.boards import FULL, STANDARD, barred, on_board
from outskirts.errors import OutskirtsError
from outskirts.manifest import GROUPS, ROLES, manifest
from outskirts.manifest import names as names
from outskirts.recipe import Recipe

MATCHES, APPROXIMATION, MISSING = "matches", "approximation", "missing"
COUNTED = "it has as many images as it should, but no hash of them is known, so that they may be others"
UNKNOWN = "neither its count nor a hash of it is known, so nothing was checked"


@dataclass(frozen=True)
class Part:
    """One image set of a benchmark, as it was found."""

    role: str
    """id, id_val, id_test, near, far or shifted."""
    label: str
    images: int | None
    """Expected count; none where it is not known."""
    get: str
    """How to get it, in words."""
    name: str | None = None
    """What `data.load` takes; none where the part is missing."""
    found: int | None = None
    """Images that are there; none where they are not counted before they are read."""
    state: str = MISSING
    why: str = ""
    """Why it is an approximation, what its match rests on, or what was looked for."""

    def __str__(self) -> str:
        said = f"{self.state}: {self.why}" if self.why else self.state
        return f"{said}; to get it: {self.get}" if self.state == MISSING else said


@dataclass(frozen=True)
class Benchmark:
    """A manifest, and what was found of it."""

    name: str
    about: str
    source: str
    root: str
    parts: tuple[Part, ...]
    size: tuple[int, int] | None = None
    board: str | None = None
    """Its name among the published rows."""
    barred: Mapping[str, str] = field(default_factory=dict)
    """Table -> why the published rows of that board can never stand beside it."""

    def fields(self) -> dict[str, Any]:
        """The recipe fields that this benchmark decides; parts that are missing are not in them."""
        at = {p.role: p.name for p in self.parts if p.name and p.role not in GROUPS}
        sets = {g: tuple(f"{p.label}={p.name}" for p in self.parts if p.role == g and p.name) for g in GROUPS}
        # Without training images, the scores are fitted on a part of the test images: see `load`.
        return {
            "id": at.get("id", at.get("id_test")),
            "id_test": at.get("id_test") if "id" in at else None,
            "id_val": at.get("id_val") if "id" in at else None,
            "classes": None,
            **sets,
        }

    @property
    def matches(self) -> bool:
        """Is every part but the shifted sets what the benchmark says?"""
        return all(p.state == MATCHES for p in self.parts if p.role != "shifted")

    def published(self) -> list[dict[str, Any]]:
        """The published rows that may stand beside what is measured: of each table whose parts all match."""
        wide = self.matches and all(p.state == MATCHES for p in self.parts)
        tables = [table for table, so in ((STANDARD, self.matches), (FULL, wide)) if so and table not in self.barred]
        return [row for table in tables for row in on_board(self.board, table)]

    @property
    def missing(self) -> list[Part]:
        return [p for p in self.parts if p.state == MISSING]


def load(
    name: str, root: str | os.PathLike | None = None, *, download: bool = False, trained: bool = False
) -> Benchmark:
    """The benchmark called `name` with its parts looked for below `root`, counted, hashed, and told apart by state.

    `download` also takes parts that the Hub or torchvision have; they are fetched when they are read. `trained`: there are ID
    training images, the benchmark's or others. Raises OutskirtsError for a name that is none.
    """
    facts = manifest(name)
    root = Path((facts.get("root") or ".") if root is None else root).expanduser()
    parts = tuple(_part(spec, facts["classes"], root, download) for spec in facts["parts"])
    if not trained and not any(p.role == "id" and p.name for p in parts):
        why = "a part of these images fits the scores, because there are no ID training images; bench takes others with --train"
        parts = tuple(_approximate(p, why) if p.role == "id_test" else p for p in parts)
    size = tuple(facts["size"]) if facts.get("size") else None
    return Benchmark(
        Path(name).stem, facts["about"], facts["source"], str(root), parts, size, facts.get("published"), barred(facts)
    )


def places(name: str) -> dict[str, Any]:
    """The recipe fields of the benchmark called `name` below its default root, for recipes: nothing is looked for."""
    facts = manifest(name)
    found = [
        Part(p["role"], p["label"], None, "", p["at"][0]["name"].replace("{root}", facts["root"]))
        for p in facts["parts"]
    ]
    return {"benchmark": name, **Benchmark(name, "", "", facts["root"], tuple(found)).fields()}


def parse(text: str, *, trained: bool = False) -> Benchmark:
    """The benchmark of `NAME[?root=DIR][&download=true]`, as it stands on the command line; `trained` is that of `load`."""
    name, _, rest = text.partition("?")
    options = dict(o.partition("=")[::2] for o in rest.split("&") if o)
    if unknown := [o for o in options if o not in ("root", "download")]:
        raise OutskirtsError(f"benchmark {text!r} has the option {unknown[0]!r}; it takes root=DIR and download=true")
    if options.get("download", "false") not in ("true", "false"):
        raise OutskirtsError(f"benchmark {text!r}: download is true or false")
    return load(name, options.get("root"), download=options.get("download") == "true", trained=trained)


def apply(recipe: Recipe, text: str | None) -> Recipe:
    """`recipe` with the ID and OOD sets of the benchmark `text`; parts that are not there are left out, and named in the report.

    Raises OutskirtsError where the ID test set, or every OOD set, is missing.
    """
    if text is None:
        return replace(recipe, benchmark=None)
    found = parse(text)
    fields = found.fields()
    if fields["id"] is None or not (*fields["near"], *fields["far"]):
        part = next(p for p in found.missing if p.role == "id_test" or p.role in GROUPS)
        name, absent = text.partition("?")[0], [p.label for p in found.missing]
        raise OutskirtsError(
            f"benchmark {found.name}: {len(absent)} of {len(found.parts)} parts are missing below {found.root}: {', '.join(absent)}; "
            f"{ROLES[part.role]} {part.label!r} is {part}; `outskirts show {name} root={found.root}` says it of each; where they lie elsewhere, "
            f"name that folder, with --benchmark {name} --root DIR or benchmark={name}?root=DIR"
        )
    return replace(recipe, benchmark=text, size=found.size or recipe.size, **fields)


def of_recipe(recipe: Recipe) -> Benchmark | None:
    """The recipe's benchmark; its parts are approximations where the recipe has other sets in their place."""
    if recipe.benchmark is None:
        return None
    found = parse(recipe.benchmark, trained=recipe.id_test is not None)
    mine = {k: getattr(recipe, k) for k in (*GROUPS, "id", "id_test", "id_val")}
    wanted = found.fields()
    for fields in (mine, wanted):  # without training images, the test images stand in their place
        fields["id_test"] = fields["id_test"] or fields["id"]
    changed = {role for role, value in mine.items() if value != wanted[role]} | ({"id"} if recipe.classes else set())
    why = "the recipe has other images in its place, or beside it"
    return replace(found, parts=tuple(_approximate(p, why) if p.role in changed else p for p in found.parts))


def published(name: str, table: str = "standard") -> list[dict[str, Any]]:
    """Rows of papers and leaderboards on the benchmark `name`, each marked `published` and with its source; shares from 0 to 1.

    `table` is "standard", or "full-spectrum" where shifted ID images count as ID. They stand beside ours only where every
    part of the benchmark `matches`.
    """
    return on_board(manifest(name).get("published"), table)


def _approximate(part: Part, why: str) -> Part:
    if part.state == MISSING:
        return part
    return replace(
        part, state=APPROXIMATION, why="; ".join(filter(None, [part.why if part.state != MATCHES else "", why]))
    )


def _part(spec: Mapping[str, Any], classes: Mapping[str, Any], root: Path, download: bool) -> Part:
    """The first place where the part is, checked; where it is nowhere, what was looked for."""
    from outskirts.located import look

    get = spec["get"].replace("{root}", str(root))
    part = Part(spec["role"], spec["label"], spec.get("images"), get)
    tried = []
    for place in spec["at"]:
        name = place["name"].replace("{root}", str(root)).replace("{classes}", ",".join(classes.get("names") or ()))
        if name.startswith(("hf:", "torchvision:")):
            if download:
                return replace(part, name=name, **_fetched(name, place.get("why")))
            continue
        there = look(name)
        if isinstance(there, str):
            tried.append(there)
            continue
        why, fatal = there.differs(spec, classes)
        if fatal:
            tried.append(f"{name.partition('[')[0]} {why}")
            continue
        if (basis := there.bound(spec)) is None:
            why = why or (COUNTED if part.images else UNKNOWN)
        why = "; ".join(filter(None, (place.get("why"), why)))
        basis = "; ".join(filter(None, (basis, spec.get("note"))))
        state = APPROXIMATION if why else MATCHES
        return replace(part, name=name, found=there.images, state=state, why=why or basis)
    return replace(part, why=tried[0] if tried else f"not below {root}")


def _fetched(name: str, why: str | None) -> dict[str, str]:
    """State of a part that is fetched when it is read; it is counted then."""
    if why is None and name.startswith("torchvision:"):
        return {"state": MATCHES, "why": "torchvision checks its archive by MD5"}
    return {"state": APPROXIMATION, "why": why or "a copy on the Hub, not compared with the authors'"}
