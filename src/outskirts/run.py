"""The story of a run: a recipe's steps, in order, each in a numbered folder that `done.json` closes.

A step is begun by `inputs.json`, which says what it depends on: recipe fields, hashes of the images, hashes of what earlier
steps left. The same command again continues. Where an input differs from the one that a step was begun with, the run stops
and names it: nothing is ever made again, or mixed, in silence.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from outskirts.errors import OutskirtsError
from outskirts.fanout import rank_and_world, wait_for_all_ranks
from outskirts.files import writable, writing
from outskirts.peak import Peak
from outskirts.recipe import STAGES, Recipe
from outskirts.redo import Redo
from outskirts.settings import as_plain, from_plain
from outskirts.stamp import folder_hashes, short_hash, stamp
from outskirts.store import replace_file

INPUTS, DONE = "inputs.json", "done.json"
log = logging.getLogger("outskirts")


@dataclass(frozen=True)
class Step:
    """A stage, or one seed of a stage."""

    stage: str
    folder: str
    """Below the run's folder."""
    fields: tuple[str | tuple[str, ...], ...]
    """Recipe fields that decide what it makes; a tuple leads to one inside a field, ("methods", "VOS", "with")."""
    images: tuple[str, ...]
    """Image sets that it reads, as `Inputs.fingerprint` knows them."""
    reads: tuple[str, ...]
    """Folders of earlier steps that it reads."""
    make: Callable[["Run", Path], None]
    """Writes the folder; called again after a stop, it continues."""


@dataclass(frozen=True)
class Run:
    """A recipe at work in a folder."""

    recipe: Recipe
    folder: Path
    workers: str = "serial"
    """Who synthesizes, see `fanout`."""
    progress: bool = True

    @cached_property
    def inputs(self):
        """The images and models that the recipe names; loaded when they are asked for."""
        from outskirts.inputs import Inputs

        return Inputs(self.recipe, self.folder)

    @cached_property
    def steps(self) -> list[Step]:
        from outskirts.stages import steps

        return steps(self.recipe)

    def path(self, step: Step) -> Path:
        return self.folder / step.folder

    def is_done(self, step: Step) -> bool:
        """Is the step closed, and is every file that it left still there, of the size that it had?"""
        done = read_json(self.path(step) / DONE)
        if done is None:
            return False
        sizes = {name: (self.path(step) / name) for name in done["files"]}
        return all(p.is_file() and p.stat().st_size == done["files"][n]["size"] for n, p in sizes.items())

    def needs(self, step: Step) -> dict[str, Any]:
        """What the step depends on, as it is now: fields, images, steps."""
        images = {part: self.inputs.fingerprint(part) for part in step.images}
        steps = {}
        for folder in step.reads:
            done = read_json(self.folder / folder / DONE)
            if done is None:
                raise OutskirtsError(
                    f"stage {step.stage} reads {self.folder / folder}, which is not there; run the stage that makes it first"
                )
            steps[folder] = short_hash({n: f["hash"] for n, f in done["files"].items()})
        return {"fields": fields_of(self.recipe, step), "images": images, "steps": steps}


def run(
    recipe: Recipe,
    folder: str | Path,
    *,
    until: str | None = None,
    redo: str | None = None,
    workers: str = "serial",
    progress: bool = True,
) -> Run:
    """Run the recipe's stages in `folder`, continuing where an earlier call stopped; all of them, or up to stage `until`.

    `redo` makes that stage and the later ones again; what they left before is back where it refuses. Raises OutskirtsError where a stage was begun
    with another recipe field or other input than now, naming it.
    """
    for stage in (until, redo):
        if stage is not None and stage not in recipe.stages:
            raise OutskirtsError(f"no stage {stage!r} in this recipe; it has {', '.join(recipe.stages)}")
    from outskirts import filter_steps, stages

    this = Run(recipe, writable(folder), workers, progress)
    again = [s for s in this.steps if redo is not None and STAGES.index(s.stage) >= STAGES.index(redo)]
    for step in this.steps:
        if step not in again:  # before any work, before anything is removed, and before anything is loaded
            _compare(this, step, {"fields": fields_of(recipe, step)})
    last = STAGES.index(until or recipe.stages[-1])
    todo = [step for step in this.steps if STAGES.index(step.stage) <= last]
    left = [step for step in todo if step in again or not this.is_done(step)]
    stages.check(this, left)
    filter_steps.check(this, left)
    final = next((s for s in reversed(todo) if s.stage == redo), None)  # once it is made, the new settings are good
    aside = Redo(this.folder, _left_by(again))
    wait_for_all_ranks(recipe.device)
    settle(this)
    for step in todo:
        try:
            _step(this, step)
        except OutskirtsError:
            aside.bring_back()
            raise
        if step == final:
            aside.forget()
    return this


def load_run(folder: str | Path) -> Recipe:
    """The recipe of an earlier run, from the run.json in its folder."""
    facts = read_json(Path(folder) / "run.json")
    if facts is None:
        raise OutskirtsError(
            f"no run in {folder}; give a recipe that `outskirts list recipes` shows, or the folder of a run"
        )
    return from_plain(facts["recipe"], Recipe)


def fields_of(recipe: Recipe, step: Step) -> dict[str, Any]:
    """The fields that the step depends on, flat: {"train.epochs": 3, "synth.steps": 20, ...}."""
    plain, found = as_plain(recipe), {}
    for path in step.fields:
        name, *keys = (path,) if isinstance(path, str) else path
        value = plain[name]
        for key in keys:
            value = value.get(key, {})
        found |= dict(_flat(".".join((name.replace("_with", ""), *keys)), value))
    return found


def read_json(path: Path) -> Any | None:
    """What a JSON file holds; None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise OutskirtsError(f"cannot read {path}: {e}; remove it and run the same command again") from e


def write_json(path: Path, facts: Any) -> None:
    replace_file(path, json.dumps(facts, indent=1).encode())


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value


def settle(this: Run, inputs: Mapping[str, str] | None = None) -> None:
    """Threads, and run.json: the recipe and where, when, with what and on which inputs it runs."""
    import torch

    if this.recipe.threads is not None:
        torch.set_num_threads(this.recipe.threads)
    if rank_and_world()[0] == 0:
        seeds = [this.recipe.seed, *this.recipe.seeds]
        with writing(this.folder):
            write_json(
                this.folder / "run.json", {"recipe": as_plain(this.recipe), "stamp": stamp(seeds=seeds, inputs=inputs)}
            )


def _step(this: Run, step: Step) -> None:
    """Begin the step, or continue it, and close it; nothing where it is closed and its inputs are what they were."""
    rank, world = rank_and_world()
    needs, folder = this.needs(step), this.path(step)
    _compare(this, step, needs)
    if this.is_done(step):
        return
    if world > 1 and step.stage != "synth":
        raise OutskirtsError(
            f"torchrun spreads the stage synth only, and {step.stage} is not done; run `outskirts run ... --out {this.folder}` without torchrun"
        )
    start = time.monotonic()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            (folder / DONE).unlink(missing_ok=True)
            write_json(folder / INPUTS, needs)
        with Peak() as peak:
            step.make(this, folder)
        if rank == 0:
            hashes = folder_hashes(folder, leave_out=(INPUTS, DONE))
            files = {n: {"hash": h, "size": (folder / n).stat().st_size} for n, h in hashes.items()}
            seconds = round(time.monotonic() - start, 1)
            cost = {"seconds": seconds, **peak.facts}
            write_json(folder / DONE, {"stage": step.stage, **cost, "read": needs, "files": files, "stamp": stamp()})
    wait_for_all_ranks(this.recipe.device)


def _compare(this: Run, step: Step, needs: Mapping[str, Any]) -> None:
    """Stop where the step was begun with other inputs than `needs`, naming the first that differs."""
    way = f"stage {step.stage} in {this.path(step)} was made with the former; use another --out, or --redo {step.stage}"
    for change in changes(this, step, needs):
        raise OutskirtsError(f"{change}: {way}")


def changes(this: Run, step: Step, needs: Mapping[str, Any]) -> Iterator[str]:
    """What differs between `needs` and the inputs that the step was begun with, in words; nothing where it has left nothing yet."""
    begun, folder = read_json(this.path(step) / INPUTS), this.path(step)
    if begun is None or not any(p.is_file() and p != folder / INPUTS for p in folder.rglob("*")):
        return
    needs = json.loads(json.dumps(needs))
    for name, (old, new) in _differences(begun["fields"], needs["fields"]):
        yield f"{name} was {old}, is {new}"
    for name, _ in _differences(begun["images"], needs.get("images", begun["images"])):
        yield f"{this.inputs.describe(name)} changed since"
    for name, _ in _differences(begun["steps"], needs.get("steps", begun["steps"])):
        yield f"what {this.folder / name} holds changed since"


def _differences(old: Mapping, new: Mapping) -> Iterator[tuple[str, tuple[str, str]]]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):  # a field that is none is as one that another version did not have
            yield key, tuple(json.dumps(d[key]) if key in d else "not set" for d in (old, new))


def _left_by(steps: Sequence[Step]) -> list[str]:
    """What they left, run.json too; folders of seeds and methods that the recipe no longer has are among it, scouts outlive verdicts."""
    kinds = {"run.json"} if steps else set()
    for step in steps:
        place, _, part = step.folder.partition("/")
        kinds.add(f"{place}/{part.partition('-')[0]}*" if place == "4-filter" else place.partition("-")[0] + "-*")
    return sorted(kinds)
