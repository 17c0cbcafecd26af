"""The stages: each writes one folder of a run from what earlier ones left. `steps` says which a recipe has, and on what each depends."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from outskirts import filter_steps, roundtrips
from outskirts.checks import enough_for, not_empty, of_codec, of_losses
from outskirts.errors import OutskirtsError
from outskirts.filtered import PARTS
from outskirts.inputs import CLASSIFIER, DIFFUSION, device
from outskirts.load_diffusion import located, read_index
from outskirts.look import look
from outskirts.methods import Method, methods
from outskirts.models import load_classifier
from outskirts.outlier_sets import HELD_OUT as HELD_OUT  # bench and users find them here
from outskirts.outlier_sets import held_out as held_out
from outskirts.outlier_sets import made, outliers, parted, sources, unpaired
from outskirts.outlier_sets import split_outliers as split_outliers
from outskirts.recipe import Recipe
from outskirts.run import DONE, Run, Step, read_json, settle
from outskirts.score_checks import enough_for_scores
from outskirts.shift_map import shift
from outskirts.synthesis import build_for, synthesize

TRAIN, BENCH, SHIFT, REPORT = "5-train", "6-bench", "6-shift", "7-report"
ID_FIELDS = ("id", "classes", "id_test", "id_val", "imbalance", "size", "seed")
log = logging.getLogger("outskirts")


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
    data, fields = Source(("train", "val"), ()), (*ID_FIELDS, "classifier")
    tests = Source(("calibration", "test", "near", "far", *(["shifted"] if recipe.shifted else [])), ())

    found, read = [], []
    if recipe.classifier == "fit":
        found.append(_step("classifier", CLASSIFIER, (*ID_FIELDS, "fit_classifier"), _classifier, data))
    if recipe.diffusion == "fit" and recipe.outliers is None:
        found.append(_step("diffusion", DIFFUSION, (*ID_FIELDS, "fit_diffusion"), _diffusion, data))
    every = methods(recipe)
    for m in every:
        if m.store and not m.shares:
            budget = Source((), ()) if m is every[0] else _made_by(every[0])  # as many as the first one's
            model = diffusion if "diffusion" in m.fields else Source((), ())
            read_by = (*fields, "n_outliers", "recode", *m.fields)
            found.append(_step("synth", m.store, read_by, partial(_synth, m), data, classifier, model, budget))
    for folder, maker in roundtrips.needed(recipe, every).items():
        read_by = (*fields, "recode", *(("n_outliers", *maker.fields) if maker else ("diffusion",)))
        by = _made_by(maker) if maker else diffusion
        found.append(_step("synth", folder, read_by, partial(roundtrips.make, maker, every[0]), data, classifier, by))
    for part in PARTS:
        for m in (x for x in every if x.filtered and part in x.filtered.makes):
            also = _seen(m, every) if part != "verdict" and recipe.train.vae_roundtrip else []
            found.append(_step(*_filter_step(m, part, fields), data, classifier, *_filter_reads(m, part), *also))
    for m in every if "train" in recipe.stages else ():
        settings = (
            *fields,
            *m.fields,
            "train",
            *([("methods", m.label, "train")] if m.label in recipe.methods else []),
        )
        for seed in recipe.seeds:
            make = partial(_train, m, seed)
            also = _seen(m, every) if m.train.vae_roundtrip else []
            found.append(_step("train", trained_in(m, seed), settings, make, data, classifier, _outliers_of(m), *also))
            read.append(found[-1].folder)
    bench = (
        "near",
        "far",
        *(["shifted"] if recipe.shifted else []),
        "outliers",
        "seeds",
        "floor",
        "methods",
        "own",
        "scores",
        "plain_scores",
        "fit_images",
        "score_with",
        "detector_score",
    )
    outputs = Source(_outliers_of(every[0]).images, (*_outliers_of(every[0]).reads, *read)) if read else Source((), ())
    looks = [m for m in every if m.filtered and "look" in m.filtered.makes]
    for m in looks:
        verdicts = Source(
            (), tuple({x.filtered.verdict: 0 for x in every if x.filtered and x.filtered.look == m.filtered.look})
        )
        settings = (*fields, *m.fields, *m.filtered.fields["look"])
        stage = "bench" if "bench" in recipe.stages else "filter"
        found.append(_step(stage, m.filtered.look, settings, partial(look, m), data, classifier, _made_by(m), verdicts))
    found.append(_step("bench", BENCH, (*fields, *bench), _bench, data, tests, classifier, outputs))
    if looks and read and recipe.analyse.shift_map != "none":
        first = Source((), (looks[0].filtered.look, trained_in(every[0], recipe.seeds[0])))
        settings = (*fields, "near", "far", "analyse", "seeds")
        found.append(_step("bench", SHIFT, settings, shift, data, tests, classifier, first))
    told = (BENCH,) if "bench" in recipe.stages else tuple(m.filtered.look for m in looks) or (BENCH,)
    found.append(_step("report", REPORT, (), partial(_report, told[0]), Source((), told)))
    return [s for s in found if s.stage in recipe.stages]


def check(run: Run, todo: Sequence[Step]) -> None:
    """Raise OutskirtsError for what would only fail in a later step of `todo`, where finding it early costs little."""
    r, stages = run.recipe, {step.stage for step in todo}
    makers = [(m.synth, m.options) for m in methods(r) if m.store and not m.shares]
    makers += [("roundtrip", {})] if roundtrips.CODEC in roundtrips.needed(r, methods(r)) else []
    if r.recode is not None and "synth" in stages:
        of_codec("recode", r.recode)
    if "synth" in stages:
        roundtrips.check(run, methods(r))
    for name, options in makers if "synth" in stages else ():
        synthesizer = build_for(run, name, options)()
        enough_for(name, synthesizer, run.inputs.parts["train"])
        model = getattr(synthesizer, "diffusion", None)
        if isinstance(model, str) and (r.diffusion != "fit" or model != run.inputs.diffusion):
            index = read_index(located(model), model)
            getattr(synthesizer, "check", lambda *_: None)(index, run.inputs.parts["train"].classes)
    for m in (x for x in methods(r) if "train" in stages and x.train.mi is not None):
        if why := unpaired(run, m):
            raise OutskirtsError(
                f"train.mi pairs outliers with the ID images that they were made from, and those of {m.label} {why}; take synth=sona, "
                "or leave train.mi out (for an entry of methods: train.mi=none)"
            )
    said = list(of_losses(methods(r) if "train" in stages else ()))
    if "bench" in stages:
        from outskirts import bench_facts, kept
        from outskirts.bench import make_scores

        if not (*r.near, *r.far):
            raise OutskirtsError("near and far are both empty, so bench has no OOD test set; give one, e.g. far=noise")
        not_empty(run.inputs.ood)  # every set is loaded
    if r.classifier != "fit" and any("classifier" in step.images for step in todo):
        run.inputs.classifier()  # loaded, and of as many classes as the images have
    if "bench" in stages:
        enough_for_scores(r, make_scores(r), run.inputs.bank)
        kept.choose(r.detector_score, dict(make_scores(r)))
        said += bench_facts.early(run)
    for line in said:
        log.warning("%s", line)


class Source(NamedTuple):
    """Where a step reads from: image sets and models by name, folders of earlier steps."""

    images: tuple[str, ...]
    reads: tuple[str, ...]


def _seen(m: Method, every: Sequence[Method]) -> list[Source]:
    """ID images after their pass through what made the outliers of `m`."""
    return [Source((), (roundtrips.folder_of(m, every),))]


def _made_by(m: Method) -> Source:
    return Source((), (m.store,)) if m.store else Source(("outliers",), ())


def _outliers_of(m: Method) -> Source:
    """What was made, and which of it is kept."""
    made_by = _made_by(m)
    return made_by._replace(reads=(*made_by.reads, m.filtered.verdict)) if m.filtered else made_by


def _filter_step(m: Method, part: str, fields: Sequence) -> tuple:
    """(stage, folder, recipe fields, what makes it) of one part of a method's filter."""
    stage = "train:scout" if part in ("scout", "twin") else "filter"
    read_by = (*fields, *m.fields, *m.filtered.fields[part])
    return stage, getattr(m.filtered, part), read_by, partial(getattr(filter_steps, part), m)


def _filter_reads(m: Method, part: str) -> tuple[Source, ...]:
    if part != "verdict":
        return (_made_by(m),)
    given = m.filtered.settings.images
    scouts = tuple(filter(None, (m.filtered.scout, m.filtered.twin)))
    return _made_by(m), Source((f"images {given}",) if given else (), scouts)


def trained_in(m: Method, seed: int) -> str:
    """Folder of a method's classifier, below the run's."""
    return "/".join(filter(None, (TRAIN, m.key, f"seed-{seed}")))


def _from(is_step: bool, folder: str, name: str) -> Source:
    return Source((), (folder,)) if is_step else Source((name,), ())


def _step(
    stage: str,
    folder: str,
    fields: Sequence[str | tuple[str, ...]],
    make: Callable[[Run, Path], None],
    *sources: Source,
) -> Step:
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


def _synth(m: Method, run: Run, out: Path) -> None:
    first = methods(run.recipe)[0]
    n = run.recipe.n_outliers if m.store == first.store else len(made(run, first)[0])
    synthesize(run, out, m.synth, m.options, n)


def _train(m: Method, seed: int, run: Run, out: Path) -> None:
    from outskirts.train import train

    parts, (mine, apart, ids, _) = run.inputs.parts, parted(*outliers(run, m))
    options = {"device": run.recipe.device, "progress": run.progress, "sources": sources(run, m, ids)}
    classifier = run.inputs.classifier()
    if m.train.vae_roundtrip:
        options["roundtrip"] = roundtrips.images(run, m, methods(run.recipe))
    train(classifier, parts["train"], mine, parts["val"], apart, out, m.train, seed, **options)


def trained(run: Run, m: Method, seed: int):
    """The classifier of a method and seed, after outlier training."""
    return load_classifier(run.folder / trained_in(m, seed)).to(device(run.recipe.device))


def _bench(run: Run, out: Path) -> None:
    from outskirts.bench import bench

    bench(run, out)


def _report(told: str, run: Run, out: Path) -> None:
    from outskirts.report import write_report

    settle(run, inputs=read_json(run.folder / told / DONE)["read"]["images"])
    write_report(run.folder, out)
