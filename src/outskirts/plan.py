"""`--dry-run`: what a run would do, with counts, steps and times estimated from a few steps of each kind made on this machine."""

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

from outskirts import roundtrips
from outskirts.evaluate import collect
from outskirts.fanout import batches
from outskirts.filter_steps import check as check_filters
from outskirts.images import spread
from outskirts.inputs import CLASSIFIER, device
from outskirts.methods import methods
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.recipe import STAGES, Recipe
from outskirts.run import Run, Step, changes, fields_of
from outskirts.scout import scout_settings
from outskirts.stages import check, trained_in
from outskirts.synthesis import BATCH, build
from outskirts.train import steps_of

TRIAL_IMAGES = 512
"""Images of a part that a synthesizer is fitted on for the trial."""
TRIAL_STEPS = 2
"""Sampling steps of the trial, where the synthesizer has a field `steps`."""


def plan(recipe: Recipe, folder: str | Path, *, until: str | None = None) -> Iterator[str]:
    """Lines of text: the image sets, then every step with its state, counts and estimated time. Nothing is written."""
    run = Run(recipe, Path(folder), progress=False)
    parts = run.inputs.parts
    yield f"{recipe.name} in {folder}"
    yield f"  in distribution  {recipe.id}, {len(parts['train'].classes)} classes: " + ", ".join(
        f"{len(x)} {p}" for p, x in parts.items()
    )
    for label, (group, images) in run.inputs.ood.items():
        yield f"  {group:4} OOD         {label}: {len(images)}"
    last = STAGES.index(until or recipe.stages[-1])
    total, unknown = 0.0, False
    steps = [step for step in run.steps if STAGES.index(step.stage) <= last]
    left = [step for step in steps if not run.is_done(step)]
    check(run, left)
    check_filters(run, left)
    trial = _Trial(run)
    for step in steps:
        change = next(changes(run, step, {"fields": fields_of(recipe, step)}), None)
        state = "done" if run.is_done(step) else "begun" if run.path(step).exists() else "to do"
        text, seconds = trial.estimate(step)
        if change is not None:  # a run would stop here
            state = f"changed: {change}; use another --out, or --redo {step.stage};"
        if state != "done":
            total, unknown = total + (seconds or 0.0), unknown or seconds is None
        yield f"  {step.folder:20} {state:6} {text}" + ("" if state == "done" else f", {_duration(seconds)}")
    yield f"  estimated time   {_duration(total)} on {device(recipe.device)}" + (
        " and what cannot be told yet" if unknown else ""
    )


class _Trial:
    """Times single steps; a classifier that is not there yet is stood in for by an untrained one, which is as fast."""

    def __init__(self, run: Run):
        self.run, self.recipe, self.n = run, run.recipe, {p: len(x) for p, x in run.inputs.parts.items()}
        self.outliers = 0

    def estimate(self, step: Step) -> tuple[str, float | None]:
        """(what the step does, seconds or None where it cannot be told before earlier steps are done)."""
        if step.folder.startswith(("6-look", "6-shift")):
            return self._look(step)
        return getattr(self, "_" + step.stage.replace(":", "_"))(step)

    def _classifier(self, step: Step) -> tuple[str, float]:
        s = self.recipe.fit_classifier
        steps = s.epochs * max(1, self.n["train"] // s.batch_size)
        return f"{s.arch}, {s.epochs} epochs, {steps} steps of {s.batch_size}", steps * self._training_step(
            s.batch_size
        )

    def _diffusion(self, step: Step) -> tuple[str, float | None]:
        from outskirts.new_diffusion import codec_of, new_model

        s, train = self.recipe.fit_diffusion, self.run.inputs.parts["train"]
        where = device(self.recipe.device)
        model = new_model(train.pixels, len(train.classes), s, *codec_of(train.pixels, s, where)).to(where)
        x = torch.randn(s.batch_size, model.config.in_channels, *_pair(model.config.sample_size), device=where)
        t = torch.zeros(s.batch_size, dtype=torch.long, device=where)
        each = _seconds(lambda: model(x, t, class_labels=t).sample.square().mean().backward())
        return f"{s.steps} steps of {s.batch_size}", s.steps * each

    def _synth(self, step: Step) -> tuple[str, float | None]:
        r, passed = self.recipe, roundtrips.needed(self.recipe, methods(self.recipe))
        control = passed.get(step.folder) is not None
        if step.folder == roundtrips.CODEC:
            name, options = "roundtrip", {}
        else:
            m = passed.get(step.folder) or next(m for m in methods(r) if m.store == step.folder and not m.shares)
            name, options = m.synth, dict(m.options)
        defaults = {"diffusion": self.run.inputs.diffusion, "device": device(r.device)}
        if (
            r.diffusion == "fit"
            and not Path(self.run.inputs.diffusion).is_dir()
            and hasattr(build(name, defaults, options)(), "diffusion")
        ):
            self.outliers = r.n_outliers or 0
            return f"{name}, {r.n_outliers or 'all'} outliers", None
        built = build(name, defaults, options)()
        steps, search = getattr(built, "steps", None), getattr(built, "search_cost", 0)
        options |= {} if steps is None else {"steps": min(steps, TRIAL_STEPS)}
        options.pop("start", None)  # a level of the whole grid
        if getattr(built, "strength", None) == "auto":  # the search is told from its count, not made
            options["strength"] = "literal"
        few = {p: spread(self.run.inputs.parts[p], TRIAL_IMAGES) for p in ("train", "val")}
        synthesizer = build(name, defaults, options)()
        synthesizer = synthesizer.control() if control else synthesizer
        synthesizer = getattr(synthesizer, "without_search", lambda s=synthesizer: s)()
        smallest = int(few["train"].labels.bincount().min())
        if (
            getattr(synthesizer, "k", 1) >= smallest
        ):  # a neighbour that the few images, or one class of them, do not have
            synthesizer.k = max(1, smallest - 1)
        longer = max(1.0, (self.n["train"] + self.n["val"]) / sum(map(len, few.values())))  # it reads every image

        def fit(synthesizer, warm_up: bool) -> float:
            return _seconds(lambda: synthesizer.fit(few["train"], self.classifier, val=few["val"]), warm_up=warm_up)

        if hasattr(synthesizer, "shortened"):  # it trains models of its own: told from what four steps more take
            (more, _), (synthesizer, times) = synthesizer.shortened(8), synthesizer.shortened(4)
            fitting = times * max(0.0, fit(more, True) - fit(synthesizer, False))
            fitting = 0.0 if control else fitting  # its models are there
        else:
            fitting = longer * fit(synthesizer, False)
        n = self.outliers or r.n_outliers  # as many as the first one's
        n = self.n["train"] if step.folder == roundtrips.CODEC else roundtrips.capped(n, self.run) if control else n
        requests = synthesizer.requests(n, seed=r.seed)
        size = getattr(synthesizer, "batch_size", BATCH)
        todo = batches(requests, size)
        each = _seconds(lambda: list(synthesizer(todo[0])))
        self.outliers = self.outliers or len(requests)
        scale = 1 if steps is None else steps / min(steps, TRIAL_STEPS)
        of = f", {steps} steps each" if steps else ""
        what = "ID images" if step.folder in passed else "outliers"
        text = f"{name}, {len(requests)} {what} in {len(todo)} batches{of}"
        return text, fitting + scale * each * (len(todo) + search / size)

    def _train_scout(self, step: Step) -> tuple[str, float]:
        m = next(m for m in methods(self.recipe) if m.filtered and step.folder in (m.filtered.scout, m.filtered.twin))
        twin = step.folder == m.filtered.twin
        s = scout_settings(self.recipe.train, m.filtered.settings.epochs)
        n = 1 if twin else m.filtered.settings.cross_fit
        steps = s.epochs * steps_of(s, self.n["train"])
        text = (
            f"{n} scout{'s' * (n > 1)} of {s.epochs} epochs, {steps} steps of {s.batch_size} + {s.outlier_batch_size}"
        )
        seconds = n * steps * self._training_step(s.batch_size + s.outlier_batch_size)
        return text + (", and its classifier" if twin else ""), seconds + (self._classifier(step)[1] if twin else 0)

    def _filter(self, step: Step) -> tuple[str, float]:
        s = next(m.filtered.settings for m in methods(self.recipe) if m.filtered and step.folder == m.filtered.verdict)
        return f"band {s.band}, calibrated on {s.calibration}", self._look(step)[1]

    def _look(self, step: Step) -> tuple[str, float]:
        n = max(self.outliers, self.recipe.n_outliers or 0) + self.n["train"] + self.n["val"]
        return "a look at what the report shows", n * self.per_image + 2

    def _train(self, step: Step) -> tuple[str, float]:
        s = next(m.train for m in methods(self.recipe) for n in self.recipe.seeds if trained_in(m, n) == step.folder)
        steps = s.epochs * steps_of(s, self.n["train"])
        text = f"{s.epochs} epochs, {steps} steps of {s.batch_size} + {s.outlier_batch_size}"
        return text, steps * self._training_step(s.batch_size + s.outlier_batch_size)

    def _bench(self, step: Step) -> tuple[str, float]:
        once = sum(self.n[k] for k in ("val", "test"))  # the two whose detectors are kept look at `calibration` too
        images = len(self.run.inputs.bank) + once + sum(len(x) for _, x in self.run.inputs.ood.values())
        classifiers = 1 + sum(s.stage == "train" for s in self.run.steps)
        return f"{classifiers} classifiers, {images} images each", classifiers * images * self.per_image

    def _report(self, step: Step) -> tuple[str, float]:
        return "one page", 1.0

    @cached_property
    def per_image(self) -> float:
        """Seconds that the classifier takes for one."""
        some = self.run.inputs.parts["train"].take(256)
        return _seconds(lambda: collect(self.classifier, some)) / len(some)

    @property
    def classifier(self) -> Classifier:
        """The recipe's, or an untrained one of its architecture."""
        r = self.recipe
        if r.classifier != "fit" or (self.run.folder / CLASSIFIER / "classifier.json").is_file():
            return self.run.inputs.classifier()
        train = self.run.inputs.parts["train"]
        net = small_resnet(r.fit_classifier.arch, len(train.classes))
        return Classifier(net, classes=train.classes, size=r.size or train.size or (32, 32)).to(device(r.device))

    def _training_step(self, batch: int) -> float:
        classifier = self.classifier.train()
        where = next(classifier.parameters()).device
        images = torch.rand(batch, 3, *(classifier.size or (32, 32)), device=where)
        labels = torch.zeros(batch, dtype=torch.long, device=where)
        return _seconds(lambda: F.cross_entropy(classifier(images).logits, labels).backward())


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else tuple(side)


def _seconds(call: Callable[[], object], *, warm_up: bool = True) -> float:
    """Seconds that one call takes, after another that warms up."""
    if warm_up:
        call()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time not known before the diffusion model is trained"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.1f} {unit}"
    return f"about {max(1, round(seconds))} s"
