"""Any detector of pytorch-ood 0.4, by its class name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.scores._pytorch_ood import LEARNED, asks_for_head, detector_class, kind_of, make, told
from outskirts.scores._pytorch_ood_images import fitted, look, on_images, restore, state
from outskirts.scores._shared import head_of, learned, need, observed
from outskirts.types import Look, Outputs

DETECTORS: "WeakKeyDictionary[Score, Any]" = WeakKeyDictionary()
"""They cannot be saved: a score keeps what its detector was fitted on, or learned, and makes it again after loading. With the
classifier beside it, for those that look through one."""


@dataclass(eq=False)  # hashed by identity, for DETECTORS
class Score:
    """What pytorch-ood's class `detector` says, higher = more OOD; scale, defaults and limits are pytorch-ood's.

    Detectors of logits and features read those of the one pass; those of feature maps get the pooled features as maps of one pixel,
    except RankFeat. Those that read the images are Observers and make passes of their own: ODIN, MahalanobisODIN, GradNorm,
    GradUncertainty, MCD, which draws its dropout anew in each batch, from one seed, and Gram, MultiMahalanobis, NACUE and
    RankFeat, whose layers are given by name. Which need options is told when the score is fitted, and in docs/interop.md.
    """

    detector: str = "EnergyBased"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class by name: plain values, tensors as lists, layers as names of modules; the model and its last layer are filled in."""
    fit_on: str = "train"
    """train, or val: as KLMatching and TemperatureScaling want it."""

    differentiable: ClassVar[bool] = False
    transductive: ClassVar[bool] = False

    def __post_init__(self):
        if self.fit_on not in ("train", "val"):
            raise OutskirtsError(f"fit_on={self.fit_on!r}; accepted: train, val")
        if self.kind == "images":  # an Observer by instance: the others have nothing to look at
            self.observes = f"pytorch_ood {self.detector} {dict(self.options)}"
            self.observe = self._observe
            self._failed = ""
        if detector_class(self.detector).__name__ in LEARNED:
            self.prepare = self._prepare
            if self.fit_on == "val":
                raise OutskirtsError(
                    f"pytorch-ood's {self.detector} is fitted on the training images; leave fit_on at train"
                )

    @property
    def kind(self) -> str:
        """What the detector reads: logits, features, feature_maps or images. Raises OutskirtsError for one that is not taken."""
        return kind_of(detector_class(self.detector))

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
        classifier=None,
    ) -> "Score":
        cls, kind, who = detector_class(self.detector), self.kind, f"pytorch-ood's {self.detector}"
        if kind == "images":  # what fails fails here, if it has looked at any
            for seen in (train, val):
                if seen is not None and self.observes in seen.observed:
                    self._said(seen)
            return self
        if asks_for_head(cls):
            self.weight_, self.bias_ = head_of(classifier, who)
        if cls.requires_fit:
            if self.fit_on == "val":
                train = need(val, "val (held-out ID images)", who)
                labels = torch.zeros(len(val), dtype=torch.long) if val.labels is None else val.labels
            self.data_, self.labels_ = self._read(train).detach(), labels
        DETECTORS.pop(self, None)
        self(train[:2])  # what cannot score fails here, and not when the test sets are scored
        return self

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        if self.kind == "images":
            return self._said(outputs)
        detector = self._detector()
        with torch.no_grad(), told(self.detector):
            return getattr(detector, f"predict_{self.kind}")(self._read(outputs))

    def _prepare(self, classifier, images, labels: Int[Tensor, " N"]) -> None:
        detector = fitted(detector_class(self.detector), self.options, classifier, images, labels)
        DETECTORS[self], self.state_ = (classifier, detector), state(detector)

    def _observe(self, seen: Look) -> Float[Tensor, " B"]:
        """NaN where the detector fails; `fit` and a call say why. Images are looked at before a score is fitted, in one pass for all."""
        try:
            return look(self._looking(seen.classifier, seen.images.device), seen.classifier, seen.images)
        except OutskirtsError as e:
            self._failed = str(e)
            return seen.images.new_full((len(seen.images),), torch.nan)

    def _looking(self, classifier, device: torch.device):
        """The detector around `classifier`, made the first time it is asked for."""
        made, detector = DETECTORS.get(self, (None, None))
        if made is not classifier:
            cls = detector_class(self.detector)
            detector = on_images(cls, self.options, classifier)
            if cls.__name__ in LEARNED:
                if not hasattr(self, "state_"):
                    raise OutskirtsError(
                        f"pytorch-ood's {self.detector} learns from images; call prepare(classifier, images, labels) before collect"
                    )
                restore(detector, self.state_, device)
            DETECTORS[self] = classifier, detector
        return detector

    def _said(self, outputs: Outputs) -> Float[Tensor, " B"]:
        found = observed(self, outputs)
        if found.isnan().all() or (self._failed and found.isnan().any()):
            raise OutskirtsError(self._failed or f"pytorch-ood's {self.detector} gives NaN on every image")
        return found

    def _read(self, outputs: Outputs) -> Tensor:
        if self.kind == "logits":
            return outputs.logits
        return outputs.features[..., None, None] if self.kind == "feature_maps" else outputs.features

    def _detector(self):
        """Made and fitted the first time it is asked for."""
        if self not in DETECTORS:
            cls = detector_class(self.detector)
            head = (learned(self, "weight_"), learned(self, "bias_")) if asks_for_head(cls) else None
            detector = make(cls, self.options, head, maps=self.kind == "feature_maps")
            if cls.requires_fit:
                data, labels = learned(self, "data_"), learned(self, "labels_")
                with told(self.detector):
                    getattr(detector, f"fit_{self.kind}")(data, labels)
            DETECTORS[self] = detector
        return DETECTORS[self]
