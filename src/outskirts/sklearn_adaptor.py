"""A detector as a scikit-learn outlier estimator: for its metrics, its model selection, its pipelines.

Signs are scikit-learn's, the opposite of everywhere else in this package: higher = more normal, +1 is an inlier, -1 an outlier.
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import load_classifier
from outskirts.score_checks import warn_of_fit
from outskirts.scored import fit_score
from outskirts.threshold import Threshold
from outskirts.types import Outputs, Prepared


class OutlierDetector(OutlierMixin, BaseEstimator):
    """Detector with the methods of scikit-learn's outlier estimators. Images are arrays, see `fit`.

    `classifier` is a Classifier or what `load_classifier` takes; it is not trained here. `scorer` is the name of a score, or a
    Score with settings of its own. `keep` is the share of ID images that `predict` calls inliers. `split` has the shares of the images
    given to `fit` that the score learns from, that it validates on, and that set the threshold.
    """

    def __init__(
        self, classifier, scorer="energy", *, keep=0.95, split=(0.6, 0.2, 0.2), batch_size=256, random_state=0
    ):
        self.classifier = classifier
        self.scorer = scorer
        self.keep = keep
        self.split = split
        self.batch_size = batch_size
        self.random_state = random_state

    @classmethod
    def from_detector(cls, detector: Detector, **parameters) -> "OutlierDetector":
        """A fitted estimator around a fitted detector, e.g. a loaded one."""
        estimator = cls(detector.classifier, detector.scorer, keep=detector.threshold.keep, **parameters)
        return estimator._holding(detector)

    def fit(self, X, y=None, *, labels=None, outliers=None) -> "OutlierDetector":
        """Fits the score on ID images and sets the threshold on some that it has not seen.

        X is [N, 3, H, W] or [N, H, W, 3], uint8 or float in [0, 1]. `y` is ignored, as by every outlier estimator. `labels`
        [N] are the classes, 0 to K - 1, for scores that use them; without, those that the classifier predicts. `outliers`
        are images like X that are known to be OOD, for scores that use them.
        """
        classifier, score = self.classifier, copy.deepcopy(self.scorer)
        if isinstance(classifier, str | os.PathLike):
            classifier = load_classifier(classifier).frozen()
        if isinstance(score, str):
            score = find("scores", score)()
        parts = self._rows(len(self._pixels(X)))
        if isinstance(score, Prepared):
            images, known = torch.cat(list(self._batches(X))), self._outputs(classifier, None, X)
            score.prepare(classifier, images[parts[0]], _labels(labels, known)[parts[0]])
        known = self._outputs(classifier, score, X)
        known = replace(known, labels=_labels(labels, known))
        train, val, held_out = (known[rows] for rows in parts)
        beyond = None if outliers is None else self._outputs(classifier, score, outliers)
        warn_of_fit("scorer", score, train, classifier.classes)
        score = fit_score(score, train, val=val, outliers=beyond, classifier=classifier)
        return self._holding(Detector(classifier, score, Threshold.from_id(score(held_out), self.keep)))

    def score_samples(self, X) -> np.ndarray:
        """[N] float64, the detector's score with the other sign: higher = more normal."""
        check_is_fitted(self)
        parts = [self.detector_.score(part, batch_size=self.batch_size) for part in self._batches(X)]
        return -torch.cat(parts).double().numpy()

    def decision_function(self, X) -> np.ndarray:
        """[N] float64, score_samples - offset_: below zero is an outlier."""
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """[N]: +1 for inliers, -1 for outliers, exactly where `Detector.decide` says so."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images, four dimensions
        return tags

    def _holding(self, detector: Detector) -> "OutlierDetector":
        self.detector_ = detector
        self.offset_ = -detector.threshold.value
        return self

    def _outputs(self, classifier, score, X) -> Outputs:
        return Outputs.cat([collect(classifier, part, observers=[score]) for part in self._batches(X)])

    def _rows(self, n: int) -> list[Tensor]:
        shares = np.asarray(self.split, dtype=float)
        if shares.shape != (3,) or (shares <= 0).any() or shares.sum() > 1 + 1e-9:
            raise OutskirtsError(
                f"split={self.split}; three shares above 0 that sum to at most 1: to fit, to validate, for the threshold"
            )
        if n * shares.min() < 0.5:
            raise OutskirtsError(f"{n} samples are too few for split={self.split}; give more images")
        ends = np.round(n * shares.cumsum()).astype(int)
        order = torch.from_numpy(check_random_state(self.random_state).permutation(n))
        return list(order.tensor_split(ends.tolist())[:3])

    def _batches(self, X) -> Iterator[Tensor]:
        pixels = self._pixels(X)
        for start in range(0, len(pixels), self.batch_size):
            part = torch.tensor(pixels[start : start + self.batch_size])
            yield part.float() / (255 if part.dtype == torch.uint8 else 1)

    def _pixels(self, X) -> np.ndarray:
        """X as [N, 3, H, W], checked."""
        pixels = np.asarray(X)
        told = f"images of shape {pixels.shape} and type {pixels.dtype}"
        if pixels.ndim != 4 or 3 not in (pixels.shape[1], pixels.shape[3]) or not pixels.size:
            raise OutskirtsError(
                f"{told}; accepted: [N, 3, H, W] or [N, H, W, 3], at least one; repeat grey three times"
            )
        if pixels.dtype != np.uint8:
            if pixels.dtype.kind != "f":
                raise OutskirtsError(f"{told}; accepted: uint8, or float in [0, 1]")
            if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN too
                raise OutskirtsError(
                    f"pixels from {pixels.min():g} to {pixels.max():g}; float images are in [0, 1]: the classifier normalises them itself"
                )
        return pixels if pixels.shape[1] == 3 else pixels.transpose(0, 3, 1, 2)


def _labels(labels, outputs: Outputs) -> Tensor:
    if labels is None:
        return outputs.logits.argmax(-1)
    labels, classes = torch.as_tensor(np.asarray(labels)), outputs.logits.shape[1]
    if labels.shape != (len(outputs),) or labels.is_floating_point() or labels.min() < 0 or labels.max() >= classes:
        raise OutskirtsError(
            f"labels of shape {tuple(labels.shape)}; accepted: one class number for each of {len(outputs)} images, 0 to {classes - 1}"
        )
    return labels.long()
