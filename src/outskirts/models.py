"""Classifiers: images in [0, 1] -> logits and penultimate features, with their own preprocessing.

Built in Python from any module (`Classifier(net, classes=...)`) or by name (`load_classifier`). A saved one is a folder
with `model.safetensors` and `classifier.json`; no pickle is written or read.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outskirts import architectures
from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json
from outskirts.find import did_you_mean
from outskirts.types import Outputs

WEIGHTS, CONFIG = "model.safetensors", "classifier.json"


class Classifier(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> Outputs: logits [B, K] and features [B, D], float32, differentiable in the images.

    `net` maps normalised images to logits (or to an object with `.logits`). Images whose size is not `size` are resized
    (antialiased: without it most pixels of a large image get no gradient) and centre-cropped where the aspect differs;
    `size=None` takes any size. `mean` and `std` are per channel, for images in [0, 1].

    The features are what the module `layer` reads (4-D inputs are averaged over space). Unless named, it is the last
    linear layer, or 1x1 convolution, on the path to the logits.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: Sequence[str],
        size: tuple[int, int] | None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        layer: str | None = None,
        source: str = "",
        interpolation: str = "bilinear",
    ):
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # convolutions are 1.6x faster on CPU
        self.classes = tuple(str(c) for c in classes)
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.source = source
        self.interpolation = interpolation
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self._features: Tensor | None = None
        self.layer, self.feature_dim = _find_layer(net, self.size or (32, 32), layer, len(self.classes))
        net.get_submodule(self.layer).register_forward_pre_hook(self._capture)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def head(self) -> nn.Module:
        """The module that reads the features [B, D]; its output is the logits where it is the last one of the network."""
        return self.net.get_submodule(self.layer)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Outputs:
        return self.classify(self.preprocess(images))

    def classify(self, inputs: Float[Tensor, "B 3 h w"]) -> Outputs:
        """Outputs of images that have been through `preprocess`."""
        logits = _logits(self.net(inputs))
        features, self._features = self._features, None
        return Outputs(logits.float(), _pooled(features, self.layer).float())

    def preprocess(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """Images in [0, 1] as the network wants them: resized if their size differs, normalised."""
        if images.shape[1] != 3:
            raise OutskirtsError(
                f"images have {images.shape[1]} channels; a classifier takes RGB [B, 3, H, W] in [0, 1]"
            )
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = _resize(images, self.size, self.interpolation)
        return ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def frozen(self) -> "Classifier":
        """Self, in eval mode, with parameters that ask for no gradient: as guidance and scores want it."""
        return self.eval().requires_grad_(False)

    def fingerprint(self) -> str:
        """Hash of weights, preprocessing and feature layer, 16 hex digits: equal exactly when the outputs must be."""
        facts = [type(self.net).__name__, self.size, self.mean, self.std, self.layer, self.interpolation]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, value in sorted(self.net.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder that `load_classifier` reads. Raises OutskirtsError where the network has no name to rebuild it by."""
        if not self.source:
            raise OutskirtsError(
                f"a {type(self.net).__name__} made in Python has no name to rebuild it by; give Classifier(..., "
                "source='python:package.module:function'), a function of no arguments that returns the network"
            )
        folder = writable(folder)
        keys = ("source", "classes", "size", "mean", "std", "layer", "interpolation")
        config = {
            "format": 1,
            **{k: getattr(self, k) for k in keys},
            "architecture": architectures.architecture(self.net),
        }
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.net.state_dict().items()}
        save_file(tensors, folder / f"{WEIGHTS}.tmp")
        os.replace(folder / f"{WEIGHTS}.tmp", folder / WEIGHTS)
        write_json(folder / CONFIG, config)  # last: its presence says that the folder is whole

    def __getstate__(self) -> dict:
        # where another Classifier has the same network, its graph's tensor may lie here, which cannot be copied
        return {**self.__dict__, "_features": None}

    def _capture(self, _module: nn.Module, inputs: tuple) -> None:
        self._features = inputs[0]


def load_classifier(
    name: str | os.PathLike, *, classes: Sequence[str] | None = None, layer: str | None = None
) -> Classifier:
    """The classifier called `name`, in eval mode: a folder written by `Classifier.save`, or

    `timm:ID`, `torchvision:NAME`, `hf:ID`: with its pretrained weights and preprocessing;
    `clip:FOLDER-or-ID`: a CLIP model of transformers on the names of `classes`, `?template=a photo of a {}` for another prompt;
    `timm:resnet18?pretrained=false`: random weights (offline); `timm:resnet18?weights=FILE`: weights of your own,
    safetensors or a plain state dict, with `&mean=R,G,B&std=R,G,B` where they were trained with others;
    `resnet18?weights=FILE&mean=R,G,B&std=R,G,B`: likewise for our own networks, `classes` then needed;
    `timm:resnet18?layer=global_pool`, or `&layer=...` after other options: the module that reads the features, as `layer` does.

    Raises OutskirtsError for an unknown name, unreachable weights, a pickle with more than tensors, or a number of
    `classes` that is not the network's.
    """
    folder = Path(name)
    if folder.is_dir():
        return _load_folder(folder, classes, layer)
    net, facts = architectures.build(str(name), classes)
    return Classifier(net, **{**facts, "layer": layer or facts.get("layer")}).eval()


def check_classes(classifier: Classifier, images) -> None:
    """Raises OutskirtsError unless the labelled `images` have the classifier's number of classes."""
    found = len(images.classes) or int(images.labels.max()) + 1
    if found != classifier.num_classes:
        raise OutskirtsError(
            f"{images.name} has {found} classes and the classifier {classifier.num_classes}; "
            "choose the classes it was trained on with classes=..., or train one with `outskirts fit-classifier`"
        )


def _load_folder(folder: Path, classes: Sequence[str] | None, layer: str | None) -> Classifier:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise OutskirtsError(
            f"{folder} is not a saved classifier: it must hold {CONFIG} and {WEIGHTS}, as `outskirts fit-classifier` writes them"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        facts = {k: config[k] for k in ("source", "classes", "size", "mean", "std", "interpolation")}
        facts["size"] = facts["size"] and tuple(facts["size"])
        net = architectures.rebuild(config["source"], len(config["classes"]), config["architecture"])
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, json.JSONDecodeError, SafetensorError, RuntimeError) as e:
        raise OutskirtsError(
            f"{folder} cannot be read as a saved classifier: {str(e).splitlines()[0]}; make it again"
        ) from e
    if classes is not None and len(classes) != len(facts["classes"]):
        raise OutskirtsError(f"{len(classes)} class names given, but {folder} has {len(facts['classes'])} classes")
    return Classifier(net, **{**facts, "classes": classes or facts["classes"]}, layer=layer or config["layer"]).eval()


def _resize(images: Float[Tensor, "B 3 H W"], size: tuple[int, int], mode: str) -> Float[Tensor, "B 3 h w"]:
    """Shorter side first, then the centre: the convention of `data.Images.batches`."""
    height, width = images.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    whole = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    images = F.interpolate(images, whole, mode=mode, antialias=True, align_corners=False)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def _logits(output) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _pooled(features: Tensor | None, layer: str) -> Float[Tensor, "B D"]:
    if features is not None and features.ndim == 4:
        features = features.mean((2, 3))
    if features is None or features.ndim != 2:
        what = "is not reached" if features is None else f"reads {tuple(features.shape)}"
        raise OutskirtsError(
            f"layer {layer!r} {what} when images are classified; name one that reads features [B, D] or [B, D, h, w]"
        )
    return features


def _find_layer(net: nn.Module, size: tuple[int, int], layer: str | None, num_classes: int) -> tuple[str, int]:
    """(name of the layer that reads the features, D), found by classifying one black image."""
    names = dict(net.named_modules())
    if layer is not None and layer not in names:
        raise OutskirtsError(
            f"no layer {layer!r}{did_you_mean(layer, names)}; the last ones are {', '.join(list(names)[-5:])}"
        )
    calls: list[tuple[str, Tensor, Tensor]] = []
    watched = [layer] if layer is not None else [n for n, m in names.items() if _is_linear(m)]
    hooks = [names[n].register_forward_hook(lambda _m, x, y, n=n: calls.append((n, x[0], y))) for n in watched]
    parameter = next(net.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype, requires_grad=True)
    training = net.training
    try:
        with torch.enable_grad():
            logits = _logits(net.eval()(image))
    except (RuntimeError, ValueError, AttributeError, TypeError) as e:
        raise OutskirtsError(
            f"{type(net).__name__} cannot classify a 3x{size[0]}x{size[1]} image: {str(e).splitlines()[0]}; give its size"
        ) from e
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise OutskirtsError(
            f"{num_classes} classes given, but the network gives logits of shape {tuple(logits.shape)}"
        )
    if layer is None:  # on the path to the logits: the gradient reaches it; an auxiliary head's does not
        reached = torch.autograd.grad(logits.sum(), [y for *_, y in calls], allow_unused=True) if calls else []
        calls = [call for call, gradient in zip(calls, reached, strict=True) if gradient is not None]
    if not calls:
        raise OutskirtsError(
            f"no penultimate layer found in {type(net).__name__}; name the one that reads the features with layer=, in a name ?layer="
        )
    name, features, _ = calls[-1]
    return name, _pooled(features, name).shape[1]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
