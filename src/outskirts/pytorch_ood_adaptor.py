"""A score of ours as a pytorch-ood detector: for its metrics, its benchmarks, beside its own detectors.

Both libraries agree on signs: higher = more OOD, OOD labels are below 0. The other direction, a detector of pytorch-ood as a
score in our tables, is `outskirts.scores.pytorch_ood`.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.score_checks import warn_of_fit
from outskirts.scored import fit_score
from outskirts.scores._shared import Unfitted
from outskirts.types import Outputs, Prepared, Score

try:
    from pytorch_ood.api import Detector, DetectorInfo, RequiresFittingException, Task
except ImportError as e:
    raise OutskirtsError("no pytorch-ood here; pip install 'outskirts[pytorch-ood]'") from e


class ScoreDetector(Detector):
    """A classifier with a score of ours, fitted or not, by name or with settings of its own.

    Takes images [B, 3, H, W] in [0, 1] where pytorch-ood's own detectors take what their model was trained on: our classifiers
    normalise themselves, so leave `Normalize` out of the transform. pytorch-ood's tables name a row by its class: subclass
    (`class Knn(ScoreDetector): pass`) where several scores of ours are in one.
    """

    info = DetectorInfo(tasks={Task.CLASSIFICATION})

    def __init__(self, classifier: Classifier, score: str | Score = "energy"):
        self.model = classifier
        self.score = find("scores", score)() if isinstance(score, str) else score
        self.requires_fit = not isinstance(self.score, Unfitted)
        if self.score.transductive:
            raise OutskirtsError(
                f"{type(self.score).__module__} looks at whole test sets, pytorch-ood at one batch after another; take a score that does not"
            )

    def fit(self, data_loader: Iterable, *, val: Iterable | None = None, outliers: Iterable | None = None):
        """Fits the score on batches (images, labels); images with labels below 0 are left out.

        `val` (ID) and `outliers` (whatever their labels), loaders too, go to the scores that read them, e.g. unified.
        """
        if isinstance(self.score, Prepared):
            x, y = (torch.cat(parts) for parts in zip(*data_loader, strict=True))
            self.score.prepare(self.model, x[y >= 0], y[y >= 0])
        train = self._outputs(data_loader)
        held_out = None if val is None else self._outputs(val)
        beyond = None if outliers is None else self._outputs(outliers, every=True)
        warn_of_fit("score", self.score, train, self.model.classes)
        fit_score(self.score, train, val=held_out, outliers=beyond, classifier=self.model)
        return self

    def predict(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """[B], higher = more OOD, without gradient, on the CPU."""
        if self.requires_fit and not any(k.endswith("_") for k in vars(self.score)):
            raise RequiresFittingException
        return self.score(self._seen(x)).detach()

    def _seen(self, x: Tensor) -> Outputs:
        if not (x.min() >= -0.1 and x.max() <= 1.1):  # a resized image may overshoot a little
            raise OutskirtsError(
                f"images from {x.min():.2g} to {x.max():.2g}; this detector takes [0, 1] and normalises them itself: leave Normalize out of the transform"
            )
        return collect(self.model, x, batch_size=len(x), observers=[self.score])

    def _outputs(self, loader: Iterable, *, every: bool = False) -> Outputs:
        parts = []
        for x, y in loader:
            y = torch.as_tensor(y).cpu()
            rows = torch.ones_like(y, dtype=torch.bool) if every else y >= 0
            if rows.any():
                parts.append(replace(self._seen(x[rows.to(x.device)]), labels=y[rows].long()))
        if not parts:
            raise OutskirtsError("no images with a label of 0 or more in this loader; a score is fitted on ID images")
        return Outputs.cat(parts)
