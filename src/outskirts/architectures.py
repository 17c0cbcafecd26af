"""Networks by name, with the preprocessing they were trained with: our own, timm, torchvision, transformers, CLIP.

`build` makes one from the name a user gives, with pretrained weights; `rebuild` makes the bare network of a saved
classifier, touching no network and no cache.
"""

import contextlib
import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from outskirts import clip
from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.nets import STAGES, small_resnet

OPTIONS = {"pretrained": "false", "weights": "FILE", "mean": "R,G,B", "std": "R,G,B", "layer": "MODULE"}
OFFLINE = "offline, a folder saved before, `?pretrained=false` (random weights) and `?weights=FILE` work"


def build(name: str, classes: Sequence[str] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """(network, the other arguments of Classifier) for KIND:ID or one of our own networks, then OPTIONS: ?weights=FILE&mean=..."""
    source, _, query = name.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    kind, _, ident = source.partition(":")
    if kind == "clip":
        return clip.build(name, classes)
    if kind not in BUILDERS and source not in STAGES:
        raise OutskirtsError(
            f"no classifier {name!r}: no such folder, and a name is {', '.join(f'{k}:ID' for k in (*BUILDERS, 'clip'))} or one of "
            f"{', '.join(STAGES)} followed by ?weights=FILE{did_you_mean(source, STAGES)}"
        )
    if unknown := options.keys() - set(OPTIONS):
        raise OutskirtsError(
            f"unknown option {min(unknown)!r} in {name!r}; known: {', '.join(f'{k}={v}' for k, v in OPTIONS.items())}"
        )
    if options.get("layer") == "":
        raise OutskirtsError(f"layer is empty in {name!r}; name the module that reads the features, or leave it out")
    pretrained = "weights" not in options and options.get("pretrained", "true") != "false"
    if source in STAGES:
        if classes is None or not {"weights", "mean", "std"} <= options.keys():
            raise OutskirtsError(
                f"{source!r} ships without weights; give {source}?weights=FILE&mean=R,G,B&std=R,G,B and the classes, "
                "or a folder from `outskirts fit-classifier`"
            )
        net, facts = small_resnet(source, len(classes)), {"size": None}
    else:
        net, facts = BUILDERS[kind](ident, pretrained, None if classes is None or pretrained else len(classes))
    facts |= {k: _triple(k, options[k]) for k in ("mean", "std") if k in options}
    facts |= {k: options[k] for k in ("layer",) if k in options}
    if "weights" in options:
        load_weights(net, options["weights"])
    if classes is not None and "classes" in facts and len(classes) != len(facts["classes"]):
        raise OutskirtsError(
            f"{len(classes)} classes given, but {name} has {len(facts['classes'])}; train one for yours with `outskirts fit-classifier`"
        )
    return net, {**facts, "classes": facts.get("classes", ()) if classes is None else classes, "source": source}


def rebuild(source: str, num_classes: int, architecture: dict[str, Any]) -> nn.Module:
    """The network of a saved classifier with random weights, from what `save` wrote."""
    kind, _, ident = source.partition(":")
    if source in STAGES:
        return small_resnet(source, num_classes)
    if kind == "timm":
        import timm

        return timm.create_model(architecture["name"], pretrained=False, num_classes=num_classes)
    if kind == "torchvision":
        import torchvision

        return torchvision.models.get_model(ident, weights=None, num_classes=num_classes)
    if kind == "hf":
        from transformers import AutoConfig, AutoModelForImageClassification

        return AutoModelForImageClassification.from_config(AutoConfig.for_model(**architecture))
    if kind == "clip":
        return clip.rebuild(architecture, num_classes)
    if kind == "python":
        return _call(ident)
    raise OutskirtsError(f"the classifier was saved with an unknown source {source!r}; it needs a newer outskirts")


def architecture(net: nn.Module) -> dict[str, Any]:
    """What `rebuild` needs besides the source, JSON-able."""
    if isinstance(net, clip.Clip):
        return net.architecture()
    if hasattr(net, "pretrained_cfg"):  # timm; an hf-hub id is not buildable offline, its architecture is
        return {"name": net.pretrained_cfg["architecture"]}
    if hasattr(net, "config") and hasattr(net.config, "to_diff_dict"):  # transformers
        return {**net.config.to_diff_dict(), "model_type": net.config.model_type}
    return {}


def load_weights(net: nn.Module, path: str) -> None:
    """Load a state dict into `net`: safetensors, or a torch file that holds nothing but tensors."""
    if not Path(path).is_file():
        raise OutskirtsError(f"no weights file {path}; give a .safetensors file or a torch state dict")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol; the error below says what to do
            state = (
                load_file(path)
                if path.endswith(".safetensors")
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except Exception as e:  # the unpickler raises whatever the bytes lead it to
        raise OutskirtsError(
            f"{path} is not safetensors and not a plain torch state dict; other pickles can run code and are not opened; "
            "save yours with safetensors.torch.save_file(net.state_dict(), ...)"
        ) from e
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state) if isinstance(state, dict) else {}
    state = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    try:
        net.load_state_dict(state)
    except RuntimeError as e:
        detail = " ".join(str(e).split())
        raise OutskirtsError(f"{path} does not fit a {type(net).__name__}: {detail[:200]}") from e


def check_timm(ident: str) -> None:
    """Raises OutskirtsError for a model that timm does not know; nothing is built, and an id of the Hub is not looked up."""
    import timm

    if ":" not in ident and not timm.is_model(ident.partition(".")[0]):
        raise OutskirtsError(
            f"timm has no model {ident!r}{did_you_mean(ident, timm.list_models())}; see timm.list_models()"
        )


def _timm(ident: str, pretrained: bool, num_classes: int | None):
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config

    check_timm(ident)
    extra = {} if num_classes is None else {"num_classes": num_classes}
    with _reaching(f"timm:{ident}", "the Hugging Face Hub and timm's cache"):
        net = timm.create_model(ident, pretrained=pretrained, **extra)
    config = resolve_model_data_config(net)
    subset = infer_imagenet_subset(net)
    classes = ImageNetInfo(subset).label_descriptions() if subset else map(str, range(net.num_classes))
    facts = {"size": config["input_size"][1:], "mean": config["mean"], "std": config["std"], "classes": list(classes)}
    head = net.get_classifier()
    layer = next((n for n, m in net.named_modules() if m is head), None) if isinstance(head, nn.Linear) else None
    return net, {**facts, "layer": layer, "interpolation": _mode(config["interpolation"])}


def _torchvision(ident: str, pretrained: bool, num_classes: int | None):
    from torchvision import models

    known = models.list_models(module=models)
    if ident not in known:
        raise OutskirtsError(
            f"torchvision has no classifier {ident!r}{did_you_mean(ident, known)}; see torchvision.models.list_models()"
        )
    weights = models.get_model_weights(ident).DEFAULT
    extra = {} if num_classes is None else {"num_classes": num_classes}
    with _reaching(f"torchvision:{ident}", weights.url):
        net = models.get_model(ident, weights=weights if pretrained else None, **extra)
    transform, classes = weights.transforms(), weights.meta["categories"]
    facts = {
        "size": tuple(transform.crop_size * 2),
        "mean": transform.mean,
        "std": transform.std,
        "interpolation": _mode(transform.interpolation.value),
    }
    return net, {**facts, "classes": classes if num_classes is None else list(map(str, range(num_classes)))}


def _hf(ident: str, pretrained: bool, num_classes: int | None):
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    with _reaching(f"hf:{ident}", "the Hugging Face Hub, its cache and the folder of that name"):
        processor = AutoImageProcessor.from_pretrained(ident)
        if pretrained:
            net = AutoModelForImageClassification.from_pretrained(ident)
        else:
            config = AutoConfig.from_pretrained(ident, **({} if num_classes is None else {"num_labels": num_classes}))
            net = AutoModelForImageClassification.from_config(config)
    facts = preprocessing(processor)
    return net, {**facts, "classes": [net.config.id2label[k] for k in range(net.config.num_labels)]}


def preprocessing(processor) -> dict[str, Any]:
    """The size, mean, std and interpolation of an image processor of transformers, as Classifier takes them."""
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    size = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return {
        "size": size,
        "mean": mean,
        "std": std,
        "interpolation": "bicubic" if int(processor.resample) == 3 else "bilinear",
    }


BUILDERS = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}


@contextlib.contextmanager
def _reaching(what: str, where: str):
    """Turn a failed download into one line: what was looked for, where, and what works offline."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as e:  # every download error of the three libraries is one of these
        reason = " ".join(str(e).split()).partition(". ")[0] or type(e).__name__
        raise OutskirtsError(f"could not load {what} from {where} ({reason[:120]}); {OFFLINE}") from e


def _triple(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise OutskirtsError(f"{option}={text} is not three numbers R,G,B for images in [0, 1]") from None
    return red, green, blue


def _mode(interpolation: str) -> str:
    return "bicubic" if interpolation == "bicubic" else "bilinear"


def _call(path: str) -> nn.Module:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as e:
        raise OutskirtsError(
            f"the classifier's network is built by python:{path}, which cannot be imported ({e}); put its module on PYTHONPATH"
        ) from e
