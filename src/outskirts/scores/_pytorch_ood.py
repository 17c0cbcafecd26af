"""pytorch-ood's detectors by name: what each reads, how it is made from a classifier's last layer, its errors in one line."""

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean

KINDS = {"LogitsDetector": "logits", "FeaturesDetector": "features", "FeatureMapsDetector": "feature_maps"}
"""pytorch-ood's base class -> the ending of its fit_ and predict_ methods."""
HEAD = {"head", "w", "b"}
IMAGES = ("MCD", "RankFeat")
"""Detectors that read the images without being a GradientDetector: passes with dropout, whole maps."""
LEARNED = {
    "Gram": ("feature_min", "feature_max", "layer_norm"),
    "MahalanobisODIN": ("mu", "cov", "precision"),
    "MultiMahalanobis": ("mu", "cov", "precision"),
    "NACUE": ("_stats",),
}
"""Detectors that are fitted on images, and where they keep what they learned."""
EXAMPLES = {
    "p": 0.9,
    "d": 256,
    "weights": [1.0, 1.0],
    "text_embeddings": [[0.1, 0.2], [0.3, 0.4]],
    **{argument: ["layer3", "layer4"] for argument in ("feature_layers", "model", "layers")},
    "backbone": "layer4",
}
"""Values of the options that some cannot do without, to show their form."""


def detector_class(name: str) -> type:
    """Raises OutskirtsError for an unknown name, or where pytorch-ood is not installed."""
    try:
        from pytorch_ood import api, detector
    except ImportError as e:
        raise OutskirtsError("score pytorch_ood without pytorch-ood; pip install 'outskirts[pytorch-ood]'") from e
    known = {n: c for n, c in vars(detector).items() if isinstance(c, type) and issubclass(c, api.Detector)}
    if name not in known:
        raise OutskirtsError(
            f"no {name!r} in pytorch-ood{did_you_mean(name, known)}; known: {', '.join(sorted(known))}"
        )
    return known[name]


def kind_of(cls: type) -> str:
    """logits, features, feature_maps or images: what it reads. Raises OutskirtsError for one that reads something else."""
    bases = [base.__name__ for base in cls.__mro__]
    if cls.__name__ in (*IMAGES, *LEARNED) or ("GradientDetector" in bases and not cls.requires_fit):
        return "images"
    kind = next((KINDS[base] for base in bases if base in KINDS), None)
    if kind is None:
        raise OutskirtsError(
            f"pytorch-ood's {cls.__name__} is not taken: what it reads is not known here; `outskirts list scores` shows ours"
        )
    return kind


def asks_for_head(cls: type) -> bool:
    return bool(HEAD & set(inspect.signature(cls).parameters))


def make(
    cls: type, options: Mapping[str, Any], head: tuple[Float[Tensor, "K D"], Float[Tensor, " K"]] | None, *, maps: bool
):
    """A detector for outputs that are there already: no network, and the last layer where it asks for one."""
    given: dict[str, Any] = dict.fromkeys(("model", "encoder", "backbone"), nn.Identity())
    if head is not None:
        w, b = head
        linear = nn.Linear(w.shape[1], w.shape[0]).to(w).requires_grad_(False)
        linear.load_state_dict({"weight": w, "bias": b})
        given |= {"w": w, "b": b, "head": nn.Sequential(nn.Flatten(), linear) if maps else linear}
    with told(cls.__name__):
        return cls(**filled(cls, given, options))


def filled(cls: type, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `cls`: those of `given` that it has, and the options. Raises OutskirtsError where one is missing."""
    wanted = inspect.signature(cls).parameters
    found = {**{k: v for k, v in given.items() if k in wanted}, **_tensors(options, wanted)}
    missing = [n for n, p in wanted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD and n not in found]
    if missing:
        asked = [n for n in missing if n != "head"] or missing  # it comes with the named modules
        example = json.dumps({**options, **{n: EXAMPLES.get(n, "...") for n in asked}})
        raise OutskirtsError(
            f"pytorch-ood's {cls.__name__} needs the option {' and '.join(map(repr, asked))}; give options={example}, "
            f"on the command line score.LABEL.options='{example}'"
        )
    return found


def _tensors(options: Mapping[str, Any], wanted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The options, lists of numbers as tensors where the class says that it wants one."""
    try:
        return {
            k: torch.tensor(v) if isinstance(v, list) and k in wanted and wanted[k].annotation is Tensor else v
            for k, v in options.items()
        }
    except (TypeError, ValueError) as e:
        raise OutskirtsError(f"options={dict(options)}: {e}; a tensor is given as a list of numbers, or of rows") from e


@contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong inside pytorch-ood, as one line."""
    try:
        yield
    except OutskirtsError:
        raise
    except Exception as e:  # its assertions and errors are of every kind
        reason = (str(e) or "no reason given").splitlines()[0]
        raise OutskirtsError(
            f"pytorch-ood's {name}: {type(e).__name__}: {reason}; look at its options and at the data it is fitted on"
        ) from e
