"""The artefact that a user keeps: a classifier, a fitted score and a threshold, in one folder without pickle."""

import dataclasses
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Float64, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import Classifier, load_classifier
from outskirts.score_checks import warn_of_fit
from outskirts.scored import fit_score
from outskirts.threshold import Threshold
from outskirts.types import Prepared, Score

CONFIG, STATE, CLASSIFIER = "detector.json", "score.safetensors", "classifier"
CALIBRATION = "calibration"
"""Key of the held-out ID scores beside the fitted state; no state has it, for state ends in an underscore."""


@dataclass(frozen=True)
class Verdicts:
    """What a detector says of B images."""

    score: Float[Tensor, " B"]
    """Higher = more OOD, on the score's own scale."""
    is_ood: Bool[Tensor, " B"]
    p_value: Float64[Tensor, " B"]
    """Share of ID images that score at least this high; small means OOD."""
    label: Int[Tensor, " B"]
    """Class that the classifier predicts, 0 to K - 1, whether or not the image is OOD."""


@dataclass(frozen=True)
class Detector:
    """Classifier, fitted score and conformal threshold: says of an image whether the classifier knows it.

    Takes any score that answers for one image at a time. A transductive one does not, nor one whose scale moves with a
    stream; both are refused.
    """

    classifier: Classifier
    scorer: Score
    threshold: Threshold

    def __post_init__(self):
        mode = getattr(self.scorer, "mode", None)
        if self.scorer.transductive or mode == "stream":
            raise OutskirtsError(
                f"{_name(self.scorer)} in mode {mode!r} depends on the images around it; a detector needs a score that stays, e.g. energy, or unified in mode synthetic"
            )

    @staticmethod
    def from_parts(
        classifier: Classifier, score: Score, threshold: Threshold | Float[Tensor, " N"], *, keep: float = 0.95
    ) -> "Detector":
        """From a fitted score and a Threshold, or the scores of held-out ID images to make one of that keeps `keep` of them."""
        if not isinstance(threshold, Threshold):
            threshold = Threshold.from_id(threshold, keep)
        return Detector(classifier, score, threshold)

    @staticmethod
    def fit(
        classifier: Classifier,
        score: Score,
        train,
        held_out,
        *,
        val=None,
        outliers=None,
        keep: float = 0.95,
        batch_size: int = 256,
    ) -> "Detector":
        """Fits `score` on the training images and sets the threshold on `held_out` ID images.

        `val` (ID images) and `outliers` go to the scores that read them. The threshold keeps its promise only where
        `held_out` is neither `train` nor `val`. `train` is labelled Images, the others are Images or tensors [N, 3, H, W] in
        [0, 1].
        """
        if isinstance(score, Prepared):
            score.prepare(classifier, train, train.labels)
        look = partial(collect, classifier, batch_size=batch_size)
        seen = {"val": val, "outliers": outliers, "held_out": held_out}
        outputs = {name: None if images is None else look(images, observers=[score]) for name, images in seen.items()}
        outputs["train"] = look(train)
        warn_of_fit("score", score, outputs["train"], classifier.classes)
        read = {name: outputs[name] for name in ("val", "outliers")}
        score = fit_score(score, outputs["train"], **read, classifier=classifier)
        return Detector(classifier, score, Threshold.from_id(score(outputs["held_out"]), keep))

    def verdicts(self, images, *, batch_size: int = 256) -> Verdicts:
        """Everything about `images` (Images, or a tensor [B, 3, H, W] in [0, 1]) from one forward pass."""
        outputs = collect(self.classifier, images, batch_size=batch_size, observers=[self.scorer])
        scores = self.scorer(outputs).detach()
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            raise OutskirtsError(
                f"{_name(self.scorer)}: {len(bad)} of {len(scores)} scores are NaN or infinite, the first at image {bad[0].item()}; are the images in [0, 1]?"
            )
        return Verdicts(
            scores, self.threshold.is_ood(scores), self.threshold.p_value(scores), outputs.logits.argmax(-1)
        )

    def score(self, images, *, batch_size: int = 256) -> Float[Tensor, " B"]:
        """One number per image, higher = more OOD."""
        return self.verdicts(images, batch_size=batch_size).score

    def decide(self, images, *, batch_size: int = 256) -> tuple[Bool[Tensor, " B"], Float64[Tensor, " B"]]:
        """(is_ood, p_value) of each image. Of ID images about 1 - keep are called OOD, and no more on average."""
        found = self.verdicts(images, batch_size=batch_size)
        return found.is_ood, found.p_value

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `folder`: classifier/, score.safetensors, detector.json. The last one is written last."""
        folder = Path(folder)
        tensors, numbers = _state(self.scorer)
        config = {
            "format": 1,
            "score": _name(self.scorer),
            "settings": _settings(self.scorer),
            "state": numbers,
            "keep": self.threshold.keep,
            "threshold": self.threshold.value,
            "classes": list(self.classifier.classes),
            "classifier": self.classifier.fingerprint(),
        }
        try:
            text = json.dumps(config, indent=1)
        except TypeError as e:
            raise OutskirtsError(f"{config['score']} cannot be saved: {e}; settings must be plain values") from e
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).unlink(missing_ok=True)
            self.classifier.save(folder / CLASSIFIER)
            save_file({**tensors, CALIBRATION: self.threshold.scores}, folder / STATE)
            (folder / CONFIG).write_text(text + "\n")
        except OSError as e:
            raise OutskirtsError(
                f"cannot write the detector to {folder}: {e.strerror or e}; give a folder that can be written"
            ) from e

    @staticmethod
    def load(folder: str | os.PathLike) -> "Detector":
        """The detector that `save` wrote. Raises OutskirtsError where a file is missing or the classifier is another one."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise OutskirtsError(f"no {CONFIG} in {folder}; give a folder that Detector.save or `outskirts run` wrote")
        try:
            config = json.loads((folder / CONFIG).read_text())
            tensors = load_file(folder / STATE)
            threshold = Threshold(tensors.pop(CALIBRATION), config["keep"])
            scorer = find("scores", config["score"])(**config["settings"])
        except (OSError, json.JSONDecodeError, SafetensorError, KeyError, TypeError) as e:
            raise OutskirtsError(
                f"the detector in {folder} cannot be read: {type(e).__name__}: {e}; save it again"
            ) from e
        for name, value in {**config["state"], **tensors}.items():
            setattr(scorer, name, value)
        classifier = load_classifier(folder / CLASSIFIER).frozen()
        if classifier.fingerprint() != config["classifier"]:
            raise OutskirtsError(
                f"the classifier in {folder} is not the one that the score was fitted on; fit the detector again"
            )
        return Detector(classifier, scorer, threshold)


def _name(scorer: Score) -> str:
    """The name by which `find` gets the class back."""
    module = type(scorer).__module__
    return module.removeprefix("outskirts.scores.")


def _settings(scorer: Score) -> dict[str, Any]:
    return {f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer) if f.init}


def _state(scorer: Score) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `fit` learned, tensors and numbers: the attributes that end in an underscore."""
    learned = {k: v for k, v in vars(scorer).items() if k.endswith("_") and v is not None}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in learned.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in learned.items() if isinstance(v, bool | int | float | str)}
    other = learned.keys() - tensors.keys() - numbers.keys()
    if other:
        raise OutskirtsError(
            f"{_name(scorer)} learned {', '.join(sorted(other))}, neither tensors nor numbers; a detector saves only these"
        )
    return tensors, numbers
