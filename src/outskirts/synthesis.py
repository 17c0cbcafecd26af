"""Make the outliers of a run: fit the synthesizer, keep what its search found, spread its requests, fill the store."""

import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from outskirts.errors import OutskirtsError
from outskirts.fanout import Maker, batches, fan_out, first_rank_first, rank_and_world, wait_for_all_ranks
from outskirts.find import find
from outskirts.images import Images
from outskirts.inputs import device
from outskirts.recipe import Recipe
from outskirts.recode import recode
from outskirts.run import Run, read_json, write_json
from outskirts.settings import as_plain, field_types
from outskirts.store import Store
from outskirts.synth._artefact import ARTEFACTS
from outskirts.tensors import write
from outskirts.types import Outlier, Request

BATCH = 64
"""Outliers made at a time where the synthesizer has no `batch_size`."""
NAMED = 8
"""Failed requests that the warning lists."""
MODELS = "3-models"
"""Folder of a run where synthesizers keep the models that they train, by what these were made of: methods share them."""
log = logging.getLogger("outskirts")


def synthesize(
    run: Run, out: Path, name: str, options: Mapping[str, Any], n: int | None, *, control: bool = False
) -> None:
    """Fit the synthesizer `name`, record what it found in fit.json, and fill the store below `out`; with `control`, the one that it says by `control()`."""
    r, parts = run.recipe, run.inputs.parts
    built = build_for(run, name, options)
    make = (lambda: built().control()) if control else built

    def fitted():
        classifier = run.inputs.classifier().frozen()
        try:
            return fit(make(), parts["train"], parts["val"], classifier, out / "fit.json", r, progress=run.progress)
        except OutskirtsError as e:
            raise OutskirtsError(f"{out.name}, synth={name}: {e}") from e

    with first_rank_first(r.device):
        synthesizer = fitted()
    requests = synthesizer.requests(n, seed=r.seed)
    if not requests:
        raise OutskirtsError(f"{name} gives no requests for n_outliers={n}; give a number above 0")
    dials = {k for request in requests for k, v in request.dials.items() if isinstance(v, int | float)}
    codec = None if getattr(synthesizer, "coded", False) else r.recode
    made_by = {"synth": name, "n_outliers": n, "seed": r.seed, "recode": codec, **_settings(synthesizer, r)}
    made_by |= {f"images of {p}": parts[p].fingerprint for p in ("train", "val")}

    def open_store():
        return Store(out / "store", made_by=made_by, dials=sorted(dials))

    todo = batches(requests, getattr(synthesizer, "batch_size", BATCH))
    ready = fitted if run.workers.startswith("ray") else lambda: synthesizer
    fan_out(lambda: recoding(ready(), codec), todo, open_store, workers=run.workers, progress=run.progress)
    wait_for_all_ranks(r.device)
    failed = open_store().failed()
    if 0 < len(failed) < len(requests) and rank_and_world()[0] == 0:
        log.warning("%s", _failures(failed, len(requests)))
    if flagged := _flagged(open_store()):
        log.warning("%s", flagged)
    if len(failed) == len(requests):
        raise OutskirtsError(
            f"none of {len(requests)} outliers could be made: {next(iter(failed.values()))}; change the synthesizer's settings and --redo synth"
        )


def _flagged(store: Store) -> str | None:
    """How many outliers have a `flag` in their notes, and what it says, in one line; they are kept."""
    notes = store.rows(["id", "notes"]).to_pylist()
    flags = {row["id"]: json.loads(row["notes"] or "{}").get("flag") for row in notes}
    flags = {i: flag for i, flag in flags.items() if flag}
    if not flags or rank_and_world()[0] != 0:
        return None
    (flag, _), *_ = Counter(flags.values()).most_common()
    return (
        f"{len(flags)} of {len(notes)} outliers are flagged ({flag}), e.g. {', '.join(map(str, sorted(flags)[:NAMED]))}: training takes them as they are; "
        "make them otherwise, or leave them out with Store.select"
    )


def _failures(failed: Mapping[int, str], n: int) -> str:
    """How many of `n` outliers failed, which, and why, in one line."""
    reasons = Counter(" ".join(reason.split()) for reason in failed.values()).most_common()
    ids, also = sorted(failed), f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
    which = ", ".join(map(str, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
    return f"{len(ids)} of {n} outliers failed: requests {which}: {reasons[0][0]}{also}"


def recoding(synthesizer: Maker, codec: str | None) -> Maker:
    """The same outliers after a pass through the lossy format of the ID images, so that no detector learns the format."""

    def recoded(requests: Sequence[Request]) -> Iterator[Outlier]:
        for outlier in synthesizer(requests):
            yield outlier if outlier.image is None else replace(outlier, image=recode(outlier.image, codec))

    return synthesizer if codec is None else recoded


def build_for(run: Run, name: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    """`build` with the run's diffusion model and device, where `options` names no other."""
    return build(name, {"diffusion": run.inputs.diffusion, "device": device(run.recipe.device)}, dict(options))


def build(name: str, defaults: dict[str, Any], options: dict[str, Any]) -> Callable[[], Any]:
    """A function that makes the synthesizer `name` with `options`, and with those of `defaults` that it has a field for."""
    cls = find("synth", name)
    known = field_types(cls)
    if unknown := [k for k in options if k not in known]:
        raise OutskirtsError(f"synth_with names {unknown[0]!r}, which {name} does not have; it has {', '.join(known)}")
    return lambda: cls(**{k: v for k, v in {**defaults, **options}.items() if k in known})


def fit(synthesizer, train: Images, val: Images, classifier, path: Path, recipe: Recipe, *, progress: bool = False):
    """The synthesizer fitted. What its search finds (`state`, plain numbers) is kept in `path`, and taken from there later."""
    found = read_json(path)
    given = {"val": val, "state": found and {**found["targets"], **found["numbers"]}, "progress": progress}
    given["folder"] = path.parent.parent / MODELS
    accepted = inspect.signature(synthesizer.fit).parameters
    fitted = synthesizer.fit(train, classifier, **{k: v for k, v in given.items() if k in accepted})
    if found is None and rank_and_world()[0] == 0:
        state = getattr(fitted, "state", {})
        targets = {k: v for k, v in state.items() if isinstance(v, dict)}
        numbers = {k: v for k, v in state.items() if k not in targets}
        if seen := getattr(fitted, "artefacts_", None):
            write(path.parent / ARTEFACTS, seen)
        write_json(path, {**_settings(fitted, recipe), "targets": targets, "numbers": numbers})
    return fitted


def _settings(synthesizer, recipe: Recipe) -> dict[str, Any]:
    """Its fields as plain values, without those that only say where it runs; a model of the run's own by its name, not its path."""
    plain = {k: v for k, v in as_plain(synthesizer).items() if k not in ("device", "compile", "checkpointing")}
    return plain | ({"diffusion": recipe.diffusion} if "diffusion" in plain else {})
