"""pytorch-ood's detectors by name: which kind each is, how it is made from a classifier's last layer, its errors in one line."""

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
IMAGES = ("MCD",)
"""Detectors that read the images without being a GradientDetector: forward passes with dropout."""
AFTER_FIT = "it reads the images once more after it was fitted, and all scores are taken in one pass, before that"
REFUSED = {
    "Gram": "it reads the maps of several layers, given as modules, and only pooled features are kept",
    "MultiMahalanobis": "it reads the features of several layers, given as modules, and only those of one are kept; the score mahalanobis is it with one layer",
    "MahalanobisODIN": f"{AFTER_FIT}; the score mahalanobis is it without the perturbed images",
    "NACUE": f"{AFTER_FIT}, in layers given as modules",
    "RankFeat": "it finds nothing in pooled features, which are maps of one pixel; the score rankfeat is it, on whole maps",
}
"""Detectors that are not taken, and why."""
EXAMPLES = {"p": 0.9, "d": 256, "weights": [1.0, 1.0], "text_embeddings": [[0.1, 0.2], [0.3, 0.4]]}
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
    """logits, features, feature_maps or images: what it reads. Raises OutskirtsError for those that read still more."""
    bases = [base.__name__ for base in cls.__mro__]
    if cls.__name__ in IMAGES or ("GradientDetector" in bases and not cls.requires_fit):
        return "images"
    kind = next((KINDS[base] for base in bases if base in KINDS), None)
    if kind is None or cls.__name__ in REFUSED:
        why = REFUSED.get(cls.__name__, "it reads more than logits and pooled features")
        raise OutskirtsError(f"pytorch-ood's {cls.__name__} is not taken: {why}; `outskirts list scores` shows ours")
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
    wanted = inspect.signature(cls).parameters
    filled = {**{k: v for k, v in given.items() if k in wanted}, **_tensors(options, wanted)}
    missing = [n for n, p in wanted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD and n not in filled]
    if missing:
        example = json.dumps({**options, **{n: EXAMPLES.get(n, "...") for n in missing}})
        raise OutskirtsError(
            f"pytorch-ood's {cls.__name__} needs the option {' and '.join(map(repr, missing))}; give options={example}, "
            f"on the command line score.LABEL.options='{example}'"
        )
    with told(cls.__name__):
        return cls(**filled)


def _tensors(options: Mapping[str, Any], wanted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The options, lists of numbers as tensors where the class says that it wants one."""
    try:
        return {
            k: torch.tensor(v) if isinstance(v, list) and k in wanted and wanted[k].annotation is Tensor else v
            for k, v in options.items()
        }
    except (TypeError, ValueError) as e:
        raise OutskirtsError(f"options={dict(options)}: {e}; a tensor is given as a list of numbers, or of rows") from e


def look(cls: type, options: Mapping[str, Any], classifier, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """What a detector that reads images says. It gets normalised images, with their standard deviations where it asks for them."""
    std = {"norm_std": list(classifier.std)} if "norm_std" in inspect.signature(cls).parameters else {}
    with told(cls.__name__), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)  # dropout: the same images in the same batches score the same
        return cls(classifier.net, **{**std, **options}).predict(classifier.preprocess(images)).detach()


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
