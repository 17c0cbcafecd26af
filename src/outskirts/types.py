"""The words the whole package shares.

Shape legend, used in every signature:

    B   batch                     D   feature size
    N   stored ID rows            *S  one sample: 3 H W pixels, c h w latents, D representations
    K   classes

Images are float in [0, 1], or uint8 where they are stored. A score is higher for what is more out-of-distribution (OOD).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

OOD = -1
"""The label of everything that is not in distribution; ID labels are 0 .. K-1."""


@dataclass(frozen=True)
class Outputs:
    """What one forward pass of a classifier leaves behind: all that scores read."""

    logits: Float[Tensor, "B K"]
    features: Float[Tensor, "B D"]
    """Penultimate features, pooled, not normalised."""
    labels: Int[Tensor, "B"] | None = None
    """Of labelled images; -1 for OOD."""
    observed: Mapping[str, Float[Tensor, "B"]] = field(default_factory=dict)
    """What scores that read the images themselves noted of them, by `Observer.observes`."""

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows) -> "Outputs":
        return self._map(lambda x: x[rows])

    def to(self, *args, **kwargs) -> "Outputs":
        moved = replace(self, labels=None)._map(lambda x: x.to(*args, **kwargs))
        labels = None if self.labels is None else self.labels.to(moved.logits.device)  # they stay whole numbers
        return replace(moved, labels=labels)

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Outputs":
        labels = None if self.labels is None else f(self.labels)
        return Outputs(f(self.logits), f(self.features), labels, {k: f(v) for k, v in self.observed.items()})

    @staticmethod
    def cat(parts: Sequence["Outputs"]) -> "Outputs":
        """One after the other; labels and observations where every part has them."""
        names = set.intersection(*(set(p.observed) for p in parts))
        labelled = all(p.labels is not None for p in parts)
        return Outputs(
            torch.cat([p.logits for p in parts]),
            torch.cat([p.features for p in parts]),
            torch.cat([p.labels for p in parts]) if labelled else None,
            {name: torch.cat([p.observed[name] for p in parts]) for name in sorted(names)},
        )


@runtime_checkable
class Score(Protocol):
    """Outputs of B images -> [B] floats, higher = more OOD. Also a guidance target where `differentiable`.

    A score is a dataclass whose fields are its settings. What `fit` learns ends in an underscore and is a tensor or a
    number, so that a detector can save any score it has never seen.
    """

    differentiable: ClassVar[bool]
    transductive: ClassVar[bool]
    """True when the score of an image depends on the test set around it: not available in deployment."""

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, "N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
    ) -> "Score":
        """`val` are held-out ID images with labels, `outliers` held-out synthetic ones.

        A score with a `classifier` argument gets the classifier that made the outputs.
        """
        ...

    def __call__(self, outputs: Outputs) -> Float[Tensor, "B"]: ...


@dataclass(frozen=True)
class Look:
    """One batch on its one way through a classifier, as an observer sees it: in eval mode, on the classifier's device."""

    classifier: Any
    images: Float[Tensor, "B 3 H W"]
    """In [0, 1]."""
    outputs: Outputs
    """Differentiable in `images` for an observer that takes a gradient, which must keep the graph for the next one."""
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    """What the modules gave that observers watch, by name."""

    def detached(self) -> "Look":
        maps = {name: y.detach() for name, y in self.maps.items()}
        return replace(self, images=self.images.detach(), outputs=self.outputs._map(Tensor.detach), maps=maps)


@runtime_checkable
class Observer(Protocol):
    """A score that reads more than Outputs: images, gradients, feature maps. It looks at each batch in the one pass over the data.

    At what is scored, and at validation images, which `fit` can read; not at the training images, whose pass a second look would double.
    One that learns from those is `Prepared`.

    Where it has them, `gradient = True` says that it differentiates `look.outputs` by `look.images`, and `watches(classifier, images)`
    gives the names of the modules of `classifier.net` that it wants in `look.maps`.
    """

    @property
    def observes(self) -> str:
        """The key of its numbers in `Outputs.observed`: its name and the settings they depend on."""
        ...

    def observe(self, look: Look) -> Float[Tensor, "B"]:
        """One number per image, which does not depend on the batch."""
        ...


@runtime_checkable
class Prepared(Observer, Protocol):
    """An observer that learns from the training images themselves, before it looks at any others."""

    def prepare(self, classifier, images, labels: Int[Tensor, "N"]) -> None:
        """`images` are Images or a tensor [N, 3, H, W] in [0, 1], `labels` their classes, 0 .. K-1."""
        ...


@dataclass(frozen=True)
class Level:
    """One place on the noise schedule that a sampler visits."""

    t: int
    """Training step of the diffusion model, 0 .. T_train - 1."""
    abar: float
    """Cumulative product of alphas at t."""
    abar_prev: float
    """The same at the next, less noisy, place."""
    index: int
    """0 for the first place visited."""
    steps: int
    """Number of places on the whole grid."""

    @property
    def alpha(self) -> float:
        return self.abar / self.abar_prev

    @property
    def position(self) -> float:
        """0 at pure noise, towards 1 at the image."""
        return self.index / self.steps


@dataclass(frozen=True)
class Prediction:
    """What a predictor says at one level: x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) eps + sigma z + shift."""

    x0: Float[Tensor, "B *S"]
    eps: Float[Tensor, "B *S"]
    shift: Float[Tensor, "B *S"] | None = None

    def with_shift(self, shift: Float[Tensor, "B *S"]) -> "Prediction":
        return replace(self, shift=shift if self.shift is None else self.shift + shift)


Predictor = Callable[[Tensor, Level], Prediction]
"""x_t [B, *S], Level -> Prediction. A guide takes a predictor and returns a predictor."""


@dataclass(frozen=True)
class Request:
    """One outlier to be made. Everything that makes it is here, so that it depends neither on its batch nor on the worker."""

    id: int
    seed: int
    label: int | None = None
    source: int | None = None
    """Row of the ID training images it starts from, where the method has one."""
    prompt: str | None = None
    dials: Mapping[str, Any] = field(default_factory=dict)
    """The settings that differ between requests, e.g. rho and mu. Plain numbers and strings."""


@dataclass(frozen=True)
class Outlier:
    """One synthesized sample: an image or a feature vector, and what became of it."""

    request: Request
    image: UInt8[Tensor, "3 H W"] | None = None
    feature: Float[Tensor, "D"] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Numbers measured on the way. `failed` (a string) marks an outlier that could not be made; it then has no image."""


@runtime_checkable
class Synthesizer(Protocol):
    """Makes outliers. A dataclass whose fields are its settings; `state`, plain numbers, is what `fit` found out."""

    requires: ClassVar[frozenset[str]]
    """Subset of {source, label, prompt, embedding, classifier}."""

    def fit(self, images, classifier, *, val=None) -> "Synthesizer":
        """Look at the ID training images, the held-out ones `val` and the frozen classifier.

        A `state` argument, where there is one, is what an earlier fit left in `self.state`: nothing is searched again. A
        `progress` argument says whether to show bars.
        """
        ...

    def requests(self, n: int | None, *, seed: int) -> list[Request]: ...

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier] | Iterable[Outlier]: ...
