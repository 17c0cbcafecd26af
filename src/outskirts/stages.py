"""The stages: each writes one folder of a run from what earlier ones left. `steps` says which a recipe has, and on what each depends."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.inputs import CLASSIFIER, DIFFUSION, device
from outskirts.load_diffusion import SHIPPED, read_index
from outskirts.models import load_classifier
from outskirts.recipe import Recipe, labelled
from outskirts.run import DONE, Run, Step, read_json, settle
from outskirts.store import Store
from outskirts.synthesis import build_for, synthesize

SYNTH, NOISE, TRAIN, BENCH, REPORT = "3-synth", "3-synth-noise", "5-train", "6-bench", "7-report"
ID_FIELDS = ("id", "classes", "id_test", "id_val", "size", "seed")
HELD_OUT = 0.1
"""Share of the outliers that no training sees: for validation, and for scores that are fitted on outliers."""


def steps(recipe: Recipe) -> list[Step]:
    """Every step of the recipe's stages in order; models and outliers that are the user's own are read, not made."""
    for name in ("classifier", "diffusion"):
        if (
            getattr(recipe, name) == "fit"
            and name not in recipe.stages
            and (name, recipe.outliers) != ("diffusion", None)
            and set(recipe.stages) - {"classifier", "diffusion"}
        ):
            raise OutskirtsError(f"{name}=fit, but stages leaves {name!r} out; add it, or give {name}=FOLDER")
    classifier = _from(recipe.classifier == "fit", CLASSIFIER, "classifier")
    diffusion = _from(recipe.diffusion == "fit", DIFFUSION, "diffusion")
    ours = _from(recipe.outliers is None, SYNTH, "outliers")
    data, fields = Source(("train", "val"), ()), (*ID_FIELDS, "classifier")
    tests = Source(("calibration", "test", "near", "far"), ())
    methods = {"": ours, "noise": Source((), (NOISE,))} if has_floor(recipe) else {"": ours}

    found = []
    if recipe.classifier == "fit":
        found.append(_step("classifier", CLASSIFIER, (*ID_FIELDS, "fit_classifier"), _classifier, data))
    if recipe.diffusion == "fit" and recipe.outliers is None:
        found.append(_step("diffusion", DIFFUSION, (*ID_FIELDS, "fit_diffusion"), _diffusion, data))
    if recipe.outliers is None:
        synth = (*fields, "diffusion", "synth", "synth_with", "n_outliers", "recode")
        found.append(_step("synth", SYNTH, synth, _synth, data, classifier, diffusion))
    if has_floor(recipe):
        found.append(_step("synth", NOISE, (*fields, "n_outliers", "recode", "outliers"), _noise, data, ours))
    seeds = [(m, seed, "/".join(filter(None, (TRAIN, m, f"seed-{seed}")))) for m in methods for seed in recipe.seeds]
    for m, seed, folder in seeds:
        found.append(
            _step("train", folder, (*fields, "outliers", "train"), _train(m, seed), data, classifier, methods[m])
        )
    bench, read = (*fields, "near", "far", "outliers", "seeds", "scores", "score_with", "floor"), Source((), ())
    if "train" in recipe.stages:
        read = Source(ours.images, (*ours.reads, *(folder for *_, folder in seeds)))
    found.append(_step("bench", BENCH, bench, _bench, data, tests, classifier, read))
    found.append(_step("report", REPORT, (), _report, Source((), (BENCH,))))
    return [s for s in found if s.stage in recipe.stages]


def check(run: Run, todo: Sequence[Step]) -> None:
    """Raise OutskirtsError for what would only fail in a later step of `todo`, where finding it early costs little."""
    r, stages = run.recipe, {step.stage for step in todo}
    if "synth" in stages and r.outliers is None:
        synthesizer = build_for(run, r.synth, r.synth_with)()
        model = getattr(synthesizer, "diffusion", None)
        if isinstance(model, str) and (r.diffusion != "fit" or model != run.inputs.diffusion):
            read_index(SHIPPED / model if (SHIPPED / model).is_dir() else model, model)
    if "bench" in stages:
        from outskirts.bench import make_scores

        if not (*r.near, *r.far):
            raise OutskirtsError("near and far are both empty, so bench has no OOD test set; give one, e.g. far=noise")
        names, n = dict(map(labelled, r.scores)), len(run.inputs.parts["train"])
        for label, score in make_scores(r):
            if names[label] in ("knn", "unified") and not 1 <= score.k <= n:
                raise OutskirtsError(
                    f"score.{label}.k is {score.k}, but there are {n} training images; give 1 to {n}, e.g. score.{label}.k={min(50, n)}"
                )
        _ = run.inputs.ood  # every set is loaded


class Source(NamedTuple):
    """Where a step reads from: image sets and models by name, folders of earlier steps."""

    images: tuple[str, ...]
    reads: tuple[str, ...]


def has_floor(recipe: Recipe) -> bool:
    """Is the noise floor measured too?"""
    return recipe.floor and recipe.synth != "noise" and "train" in recipe.stages


def _from(is_step: bool, folder: str, name: str) -> Source:
    return Source((), (folder,)) if is_step else Source((name,), ())


def _step(stage: str, folder: str, fields: Sequence[str], make: Callable[[Run, Path], None], *sources: Source) -> Step:
    images, reads = ((*(x for s in sources for x in s[i]),) for i in range(2))
    return Step(stage, folder, tuple(fields), images, reads, make)


def _classifier(run: Run, out: Path) -> None:
    from outskirts.fit_classifier import fit_classifier

    r, parts = run.recipe, run.inputs.parts
    fit_classifier(
        parts["train"], parts["val"], out, r.fit_classifier, size=r.size, device=r.device, progress=run.progress
    )


def _diffusion(run: Run, out: Path) -> None:
    from outskirts.fit_diffusion import fit_diffusion

    train, r = run.inputs.parts["train"], run.recipe
    fit_diffusion(train, out, r.fit_diffusion, device=device(r.device), progress=run.progress)


def _synth(run: Run, out: Path) -> None:
    synthesize(run, out, run.recipe.synth, run.recipe.synth_with, run.recipe.n_outliers)


def _noise(run: Run, out: Path) -> None:
    n = len(outliers(run, "")[1])
    synthesize(run, out, "noise", {}, n)


def outliers(run: Run, method: str) -> tuple[list[int], Images | torch.Tensor]:
    """(ids, outliers) of a method ("" or "noise"): images, or features [N, D]."""
    if method == "" and run.recipe.outliers is not None:
        return list(range(len(run.inputs.outliers))), run.inputs.outliers
    store = Store(run.folder / (NOISE if method else SYNTH) / "store")
    is_feature = "feature" in store.rows(["id", "feature"]).column_names
    return store.features() if is_feature else store.images(run.inputs.classifier().size)


def held_out(ids: Sequence[int], share: float = HELD_OUT) -> list[bool]:
    """Which outliers are set apart: a share of them by the hash of their id, so that classes and grid cells stay mixed."""
    order = sorted(ids, key=lambda i: hashlib.sha256(f"held out/{i}".encode()).digest())
    apart = set(order[: max(1, round(share * len(ids)))])
    return [i in apart for i in ids]


def split_outliers(run: Run, method: str) -> tuple[Any, Any]:
    """(for training, held out) of a method's outliers."""
    ids, found = outliers(run, method)
    if len(ids) < 2:
        raise OutskirtsError(f"{len(ids)} outlier to train against and to hold out; make more of them")
    apart = torch.tensor(held_out(ids))
    return (found.subset(~apart), found.subset(apart)) if isinstance(found, Images) else (found[~apart], found[apart])


def _train(method: str, seed: int) -> Callable[[Run, Path], None]:
    def make(run: Run, out: Path) -> None:
        from outskirts.train import train

        r, parts = run.recipe, run.inputs.parts
        mine, apart = split_outliers(run, method)
        classifier = run.inputs.classifier()
        train(
            classifier,
            parts["train"],
            mine,
            parts["val"],
            apart,
            out,
            r.train,
            seed,
            device=r.device,
            progress=run.progress,
        )

    return make


def trained(run: Run, method: str, seed: int):
    """The classifier of a method and seed, after outlier training."""
    folder = run.folder / TRAIN / method / f"seed-{seed}"
    return load_classifier(folder).to(device(run.recipe.device))


def _bench(run: Run, out: Path) -> None:
    from outskirts.bench import bench

    bench(run, out)


def _report(run: Run, out: Path) -> None:
    from outskirts.report import write_report

    settle(run, inputs=read_json(run.folder / BENCH / DONE)["read"]["images"])
    write_report(run.folder, out)
