"""What a bench leaves beside its numbers: warnings.json, benchmark.json (the parts and their state), published.json."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from outskirts import benchmarks, boards, checks, gallery, inspection, score_checks
from outskirts.benchmarks import APPROXIMATION, MATCHES, MISSING, ROLES, Benchmark
from outskirts.data import load
from outskirts.find import find
from outskirts.images import Images
from outskirts.inputs import Inputs
from outskirts.methods import Method, methods
from outskirts.recipe import labelled
from outskirts.run import Run, write_json
from outskirts.scored import Scored, exclusions

SIDE = 128
"""Pixels to which the ID images beside outliers are shrunk."""
log = logging.getLogger("outskirts")


def look(run: Run) -> tuple[Benchmark | None, list[str]]:
    """(the recipe's benchmark, what to warn of), before anything is measured; each warning is logged."""
    parts, said = run.inputs.parts, []
    found, known = counted(benchmarks.of_recipe(run.recipe), run.inputs), early(run)
    if run.recipe.id_test is None and run.recipe.classifier != "fit" and "train" not in run.recipe.stages:
        said.append(
            f"{run.recipe.id} is the only ID set: split at random into {len(parts['train']):,} images that fit "
            f"the scores, {len(parts['val']) + len(parts['calibration']):,} for validation and {len(parts['test']):,} that are tested; "
            "give --train beside --id, or id_test, for all of them to be tested; images that trained the classifier are no test"
        )  # fmt: skip
    for p in found.parts if found else ():
        if p.state != MATCHES:
            said.append(
                f"benchmark {found.name}: {ROLES[p.role]} {p.label!r} is {'an ' * (p.state == APPROXIMATION)}{p}"
            )
    for table, why in found.barred.items() if found else ():
        if table == boards.STANDARD or (run.recipe.shifted and boards.STANDARD not in found.barred):
            said.append(
                f"benchmark {found.name}: the rows published on {found.board} ({table}) are not printed beside yours: {why}"
            )
    said += checks.warnings_of(_not_tested(run), parts["test"], run.inputs.ood, run.inputs.shifted)
    said += [line for label, images in trained_on(run) for line in checks.of_outliers(label, images, run.inputs.ood)]
    said += _of_dimensions(run)
    said += [line for line in known if line not in said]
    for line in said:
        if line not in known:
            log.warning("%s", line)
    return found, said


def early(run: Run) -> list[str]:
    """What there is to warn of that can be told before anything is made, from what is in memory; the rest is told by `look`."""
    inputs, r = run.inputs, run.recipe
    ood = {label: images for label, (_, images) in inputs.ood.items()}
    said = checks.warnings_of(_not_tested(run), inputs.parts["test"], inputs.ood, inputs.shifted, decode=False)
    for label, images in trained_on(run) if checks.held(*ood.values()) else ():
        said += checks.of_outliers(label, images, inputs.ood) if checks.held(images) else []
    bank = run.inputs.bank
    for label, name in map(labelled, (*r.scores, *r.plain_scores)):
        if name in ("knn", "unified"):
            k = r.score_with.get(label, {}).get("k", find("scores", name).k)
            said += score_checks.of_neighbour(f"score.{label}.k", k, bank)
    return said


def _of_dimensions(run: Run) -> list[str]:
    """Scores that estimate more of the features than the images that they are fitted on can say; asks for the classifier."""
    from outskirts.bench import make_scores  # it imports this module

    bank, size = run.inputs.bank, run.inputs.classifier().feature_dim
    facts = (bank.labels.numpy(), bank.classes, size)
    return [
        line for label, s in make_scores(run.recipe) for line in score_checks.of_dimensions(f"score.{label}", s, *facts)
    ]


def _not_tested(run: Run) -> list[Images]:
    return [run.inputs.parts[name] for name in ("train", "val", "calibration")]


def trained_on(run: Run) -> Iterator[tuple[str, Images]]:
    """(method, images) of the real outliers that methods train against."""
    for m in methods(run.recipe) if "train" in run.recipe.stages else ():
        if not m.store and run.inputs.outlier_store is None:
            yield m.label, run.inputs.outliers
        elif m.synth == "real" and not m.shares:
            train = run.inputs.parts["train"]
            yield m.label, load(m.options["images"], like=train, size=run.recipe.size or train.size)


def sources(run: Run, m: Method, measured: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
    """`id` of the outliers that the report shows and `images`, the ID images that they were made from, UInt8[n, 3, H, W]; {} for none."""
    stored = inspection.read_rows(run.folder / m.store / "store") if m.store else []
    if all(r["source"] is None for r in stored):
        return {}
    energy = dict(zip(measured["id"], measured["energy"], strict=True))
    found = inspection.levels(stored, np.array([energy.get(r["id"], np.nan) for r in stored]))
    shown = [stored[i] for chosen in gallery.shown(stored, found) for i in chosen if stored[i]["source"] is not None]
    train = run.inputs.parts["train"]
    size = tuple(min(SIDE, s) for s in run.recipe.size or train.size or (SIDE, SIDE))
    images = train.subset(torch.tensor([r["source"] for r in shown])).resized(size)
    return {"id": np.array([r["id"] for r in shown]), "images": images.pixels.numpy()}


def write(out: Path, found: Benchmark | None, said: Sequence[str], scored: Sequence[Scored]) -> None:
    """Write the three files; published rows only where the benchmark matches, and is the one that they were measured on."""
    write_json(out / "warnings.json", [*said, *exclusions(scored)])
    if found is None:
        return
    parts = [asdict(p) | {"text": str(p)} for p in found.parts]
    facts = {"name": found.name, "about": found.about, "source": found.source, "matches": found.matches, "parts": parts}
    write_json(out / "benchmark.json", facts)
    write_json(out / "published.json", found.published())


def missing(found: Benchmark | None) -> dict[str, tuple[str, str]]:
    """Label -> (near or far, why) of the OOD sets that are skipped: they have rows without metrics."""
    skipped = (p for p in (found.missing if found else ()) if p.role in ("near", "far"))
    return {p.label: (p.role, f"missing: {p.why}") for p in skipped}


def counted(found: Benchmark | None, inputs: Inputs) -> Benchmark | None:
    """`found` with the images that were really read: another number than the manifest's makes an approximation."""
    if found is None:
        return None
    sizes = {label: len(images) for label, (_, images) in inputs.ood.items()}
    sizes |= {label: len(images) for label, images in inputs.shifted.items()}
    n = {name: len(images) for name, images in inputs.parts.items()}
    if inputs.recipe.id_test:
        val = n["val"] + n["calibration"]
        read = {"id_test": n["test"]} | (
            {"id": n["train"], "id_val": val} if inputs.recipe.id_val else {"id": n["train"] + val}
        )
        sizes |= {p.label: read[p.role] for p in found.parts if p.role in read}
    return replace(found, parts=tuple(_counted(p, sizes.get(p.label)) for p in found.parts))


def _counted(part: benchmarks.Part, n: int | None) -> benchmarks.Part:
    if part.state == MISSING or n is None:
        return part
    if part.images not in (None, n) and part.state == MATCHES:
        return replace(part, found=n, state=APPROXIMATION, why=f"{n:,} images, the benchmark has {part.images:,}")
    return replace(part, found=n)
