"""Recipes: everything that defines a run, as frozen dataclasses of plain values and names. Nothing heavy is imported.

A recipe is returned by the function `recipe()` of a module in `recipes/`, or of any importable module. A variant is
`dataclasses.replace` of another one; the command line writes `field=value`, see `override.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from outskirts.errors import OutskirtsError
from outskirts.filter_settings import AnalyseSettings, FilterSettings
from outskirts.settings import check_above, check_at_least, check_at_most, check_types
from outskirts.train_settings import LOSS_FIELDS as LOSS_FIELDS  # override.py and users find all settings here
from outskirts.train_settings import Augment, TrainSettings

STAGES = ("classifier", "diffusion", "synth", "train:scout", "filter", "train", "bench", "report")
"""Every stage, in the order in which a run visits them."""
FILTER_STAGES = ("train:scout", "filter")
USUAL = tuple(s for s in STAGES if s not in FILTER_STAGES)
"""The stages of a run that keeps every outlier."""


@dataclass(frozen=True)
class ClassifierSettings:
    """How `fit-classifier` trains a classifier on ID images."""

    arch: Literal["resnet18", "resnet_small", "resnet_tiny"] = "resnet_small"
    """Network, CIFAR style (3x3 stem, no max-pool)."""
    epochs: int = 30
    """Passes over the training images."""
    lr: float = 0.1
    """Peak learning rate of SGD, cosine schedule."""
    batch_size: int = 128
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 penalty, per step."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, 0 to 1."""
    augment: Augment = "flip-crop"
    """flip-crop: mirror and crop with padding 4; shift: crop only, for digits and letters; none."""
    seed: int = 0
    """Of the initial weights, the order of images and the augmentation."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "epochs", "lr", "batch_size")
        check_at_least(self, 0, "weight_decay", "label_smoothing", "seed")
        check_at_most(self, 1, "label_smoothing")


@dataclass(frozen=True)
class DiffusionSettings:
    """How `fit-diffusion` trains a small class-conditional pixel diffusion model on ID images."""

    channels: tuple[int, ...] = (32, 64, 64)
    """Channels per resolution of the UNet, finest first; each halves the side."""
    layers_per_block: int = 1
    """Residual layers per resolution."""
    codec: Literal["auto", "none", "patch-pca"] = "auto"
    """auto: patch-pca for colour images of 16 pixels and more on a CPU, else none. patch-pca: diffuse whitened principal components of patches, 6-12 times cheaper on natural images."""
    codec_components: int = 20
    """Components kept per patch (patch-pca only)."""
    patch: int = 4
    """Side of a patch, pixels (patch-pca only)."""
    steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, warm-up and cosine."""
    ema: float = 0.999
    """Decay of the averaged weights, per step; these are the ones that are saved."""
    label_dropout: float = 0.1
    """Share of images trained without their label, for classifier-free guidance."""
    flip: bool = False
    """Mirror half of the images: for natural images, not for digits and letters."""
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    """What the network predicts."""
    schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Noise schedule (beta_schedule of diffusers)."""
    start: str = ""
    """A diffusion model made with the same channels, layers and number of classes to go on from; empty: fresh weights."""
    seed: int = 0
    """Of the initial weights, the order of images and the noise."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 needs a GPU that has it."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "layers_per_block", "codec_components", "patch", "steps", "batch_size", "lr")
        check_at_least(self, 0, "ema", "label_dropout", "seed")
        check_at_most(self, 1, "ema", "label_dropout")
        if not self.channels or min(self.channels) < 1:
            raise OutskirtsError(f"channels is {self.channels!r}; give at least one positive number, e.g. 32,64")


@dataclass(frozen=True)
class Recipe:
    """A whole run: data, models, synthesis, training, evaluation."""

    name: str
    """Shown in the report."""
    about: str = ""
    """One or two sentences: what it does, what it costs."""
    id: str = "digits"
    """ID training images by name, e.g. digits, folder:DIR, parquet:GLOB, hf:ID, torchvision:NAME."""
    classes: str | None = None
    """Classes of `id` that are in distribution, e.g. 0-6 or cat,dog; none: all."""
    id_test: str | None = None
    """ID test images by name; none: 20 % of `id` are set apart."""
    id_val: str | None = None
    """ID validation images by name; none: 15 % of `id` are set apart. A third of them set the detector's threshold."""
    imbalance: float | None = None
    """Share of its training images that the last class keeps, the first keeps all, in between in even steps; validation and test
    images stay as they are (Bad-OOD Table 10: 0.077). None: all."""
    size: tuple[int, int] | None = None
    """Height and width that images are brought to; needed where they differ in size."""
    near: tuple[str, ...] = ()
    """Near-OOD test sets, each NAME or LABEL=NAME, e.g. digits[7-9] or letters=folder:DIR."""
    far: tuple[str, ...] = ()
    """Far-OOD test sets, written like `near`."""
    shifted: tuple[str, ...] = ()
    """Covariate-shifted ID test sets, labelled, written like `near`; a table of its own (full-spectrum) counts them as ID."""
    benchmark: str | None = None
    """The benchmark that id, id_test, id_val, near, far, shifted and size came from: NAME, NAME?root=DIR; see `outskirts list benchmarks`."""
    classifier: str = "fit"
    """`fit` trains one on the ID images; otherwise timm:ID, torchvision:ID, hf:ID or a folder."""
    fit_classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    diffusion: str = "digits"
    """`fit` trains one on the ID images; otherwise `digits`, a diffusers folder or a Hub id."""
    fit_diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    synth: str = "good"
    """Synthesizer by name, or the dotted path of a module of yours."""
    synth_with: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the synthesizer that differ from its defaults; on the command line, synth.FIELD=VALUE."""
    n_outliers: int | None = None
    """Outliers to make; none: as many as the synthesizer's grid holds."""
    recode: str | None = None
    """Lossy format:quality that generated outliers pass through, e.g. jpeg:75 or avif:58, where the ID images did; none: stay lossless.
    Real images, and what is made of the pixels of ID images, are in it already (synth=real: see its recode)."""
    outliers: str | None = None
    """Images by name to train against instead of making some, e.g. folder:DIR, or store:DIR, a store of outliers; none: synthesize."""
    filter: FilterSettings = field(default_factory=FilterSettings)
    """Which outliers are kept, where `stages` has train:scout and filter."""
    analyse: AnalyseSettings = field(default_factory=AnalyseSettings)
    """How they are looked at, where they are filtered."""
    train: TrainSettings = field(default_factory=TrainSettings)
    floor: bool = True
    """Also train against the same number of plain Gaussian-noise images: the noise floor that a method must beat."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other methods to measure beside this one under the same budget, LABEL -> one of synth (and `with`, its fields), outliers
    (images by name), of (the label of a method before, whose outliers it takes), and train (fields of train that differ), filter
    (fields of `filter` that differ, {} for none: its outliers are filtered; without it, all, or those that `of` keeps)."""
    own: tuple[str, ...] = ()
    """Labels of the methods that are compared; the others are baselines. None: the recipe's own `synth`."""
    plain_scores: tuple[str, ...] = ()
    """Scores that the plain classifier gets besides `scores`: post-hoc baselines, written like those."""
    fit_images: int | None = None
    """Training images that scores are fitted on, evenly spread; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of outlier training; a claim of the report needs at least two."""
    scores: tuple[str, ...] = ("msp", "energy", "knn", "unified")
    """OOD scores by name or dotted path, each NAME or LABEL=NAME, so that one score may appear with several settings."""
    score_with: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of scores that differ from their defaults; on the command line, score.LABEL.FIELD=VALUE, e.g. score.knn.k=20."""
    detector_score: str | None = None
    """Label of the score of the detector that is kept: of `scores`, or where nothing is trained, of `plain_scores` too. None: energy where
    it is one of them, else the first that answers for one image at a time. No test set chooses it."""
    stages: tuple[str, ...] = USUAL
    """Stages of this run, in order; train:scout and filter come before train."""
    seed: int = 0
    """Of the splits and of every outlier."""
    threads: int | None = None
    """CPU threads of torch; none: its own choice."""
    device: str = "auto"
    """auto: the GPU where there is one; otherwise cpu, cuda, cuda:1, mps."""

    def __post_init__(self):
        check_types(self)
        check_at_least(self, 0, "seed")
        if self.size is not None and min(self.size) < 1:
            raise OutskirtsError(f"size is {self.size!r}; height and width must be above 0, e.g. 32,32")
        if self.seeds and min(self.seeds) < 0:
            raise OutskirtsError(f"seeds is {self.seeds!r}; each must be at least 0")
        if self.imbalance is not None:
            check_above(self, 0, "imbalance")
            check_at_most(self, 1, "imbalance")
        for optional in ("n_outliers", "threads", "fit_images"):
            if getattr(self, optional) is not None:
                check_above(self, 0, optional)
        for name in ("seeds", "scores", "stages"):
            value = getattr(self, name)
            if not value or len(set(value)) != len(value):
                raise OutskirtsError(f"{name} is {value!r}; give at least one value and none of them twice")
        if unknown := [s for s in self.stages if s not in STAGES]:
            raise OutskirtsError(f"stages holds {unknown[0]!r}; accepted: {', '.join(STAGES)}")
        if len(halves := [s for s in FILTER_STAGES if s in self.stages]) == 1:
            raise OutskirtsError(
                f"stages holds {halves[0]!r} alone; the filter needs both of {', '.join(FILTER_STAGES)}"
            )
        sets = [labelled(s).label for s in (*self.near, *self.far, *self.shifted)]
        scores = [labelled(s).label for s in (*self.scores, *self.plain_scores)]
        for what, labels in (("test set", sets), ("score", scores)):
            if wrong := [x for x in labels if labels.count(x) > 1 or x == "id" or "|" in x]:
                raise OutskirtsError(f"{what} {wrong[0]!r} needs another label; write LABEL=NAME")
        kept = scores if "train" not in self.stages else scores[: len(self.scores)]
        if self.detector_score not in (None, *kept):
            raise OutskirtsError(f"detector_score is {self.detector_score!r}; accepted: {', '.join(kept)}")
        if unknown := [x for x in self.score_with if x not in scores]:
            raise OutskirtsError(f"score_with names {unknown[0]!r}, which is not in scores: {', '.join(scores)}")


class Labelled(NamedTuple):
    """One test set, or one score, of a recipe."""

    label: str
    name: str


def labelled(text: str) -> Labelled:
    """`LABEL=NAME` taken apart; without a label, the name is the label."""
    m = re.fullmatch(r"(?:([\w .+-]+)=)?(.+)", text)
    if m is None:
        raise OutskirtsError(f"cannot read {text!r}; write NAME or LABEL=NAME, e.g. hard=digits[7-9]")
    return Labelled(m[1] or m[2], m[2])
