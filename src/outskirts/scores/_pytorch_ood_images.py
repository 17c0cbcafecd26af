"""pytorch-ood's detectors that read the images: made from a classifier, fitted, asked, and what they learned as one tensor."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.passes import at_rest, module
from outskirts.scores._pytorch_ood import LEARNED, filled, told
from outskirts.scores._pytorch_ood_parts import Cut, Loader, Rooted, Says, taps

LAYERS = {"Gram": "feature_layers", "MultiMahalanobis": "model", "NACUE": "layers", "RankFeat": "backbone"}
"""The argument that takes modules; in options it has their names."""


def on_images(cls: type, options: Mapping[str, Any], classifier):
    """The detector `cls` around `classifier`, for images that have been through its `preprocess`."""
    given = {
        "model": Says(classifier, "logits"),
        "encoder": Says(classifier, "features"),
        "norm_std": list(classifier.std),
        "num_classes": classifier.num_classes,
    }
    if option := LAYERS.get(cls.__name__):
        given.pop(option, None)
        if option in options:
            given |= _layers(cls, option, options[option], classifier)
            options = {k: v for k, v in options.items() if k != option}
    with told(cls.__name__):
        return cls(**filled(cls, given, options))


def fitted(cls: type, options: Mapping[str, Any], classifier, images, labels: Int[Tensor, " N"]):
    """`on_images`, fitted on labelled images in [0, 1]."""
    detector = on_images(cls, options, classifier)
    with at_rest(classifier), _call(detector, classifier):
        detector.fit(Loader(classifier, images, labels))
    return detector


def look(detector, classifier, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """What the detector says of images in [0, 1]."""
    with _call(detector, classifier):
        return detector.predict(classifier.preprocess(images)).detach()


def state(detector) -> UInt8[Tensor, " n"]:
    """What `fit` learned, as bytes that are read back without running code."""
    learned = {name: getattr(_holder(detector), name) for name in LEARNED[type(detector).__name__]}
    if "_stats" in learned:  # dataclasses of NACUE's
        learned["_stats"] = [vars(layer) for layer in learned["_stats"]]
    file = io.BytesIO()
    torch.save(learned, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def restore(detector, learned: UInt8[Tensor, " n"], device: torch.device):
    """The detector as it was when `state` was taken."""
    found = torch.load(io.BytesIO(learned.cpu().numpy().tobytes()), map_location=device, weights_only=True)
    if "_stats" in found:
        from pytorch_ood.detector.nac import _LayerStats

        found["_stats"] = [_LayerStats(**layer) for layer in found["_stats"]]
        detector._fitted = True
    for name, value in found.items():
        setattr(_holder(detector), name, value)
    return detector


def _holder(detector):
    return getattr(detector, "_base", detector)  # MahalanobisODIN's is the Mahalanobis inside it


def _layers(cls: type, option: str, names, classifier) -> dict[str, Any]:
    """Arguments made of named modules."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise OutskirtsError(
            f"{option}={names!r} of pytorch-ood's {cls.__name__}; give names of modules, e.g. ['layer3', 'layer4']"
        )
    modules = [module(classifier.net, name) for name in names]
    if cls.__name__ == "NACUE":
        return {"model": Rooted(classifier, "logits"), "layers": modules}
    if cls.__name__ == "RankFeat":
        if len(names) > 1:
            raise OutskirtsError(
                f"backbone={names!r}; pytorch-ood's RankFeat takes one module, the score rankfeat several"
            )
        cut = Cut(classifier, names[0])
        return {"backbone": cut.before, "head": cut.after}
    layers, head = taps(classifier, names)
    return {option: layers, "head": head}


@contextmanager
def _call(detector, classifier) -> Iterator[None]:
    """Around a call: errors in one line, and the same draws for the same images in the same batches (dropout, Gram's split)."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    with (
        told(type(detector).__name__),
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(0)
        try:
            yield
        finally:
            if hasattr(
                detector, "_remove_hooks"
            ):  # NACUE leaves them on the network where it fails, and keeps its last batch
                detector._remove_hooks()
                detector._captured.clear()
