"""`outskirts fit-classifier` and `outskirts fit-diffusion`: image set by name, settings from texts, one training."""

from collections.abc import Sequence

from outskirts.data import load, require_labels, split
from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.fit_classifier import fit_classifier as fit_a_classifier
from outskirts.fit_diffusion import fit_diffusion as fit_a_diffusion
from outskirts.images import Images
from outskirts.inputs import device as device_of
from outskirts.recipe import ClassifierSettings, DiffusionSettings
from outskirts.settings import field_types, set_field

VAL = 0.15
"""Share of the images that watch the training of a classifier."""


def fit_classifier(images: str, out: str, fields: Sequence[str], *, classes, size, device: str, progress: bool) -> None:
    """Train on all but VAL of the images, of each class in proportion."""
    settings = changed(ClassifierSettings(), fields, "fit-classifier")
    found = _sized(require_labels(load(images, classes=classes)), size)
    train, val = split(found, (1 - VAL, VAL), seed=settings.seed)
    fit_a_classifier(train, val, out, settings, size=size or None, device=device_of(device), progress=progress)


def fit_diffusion(images: str, out: str, fields: Sequence[str], *, classes, size, device: str, progress: bool) -> None:
    """Train on all of the images, of one class or more."""
    settings = changed(DiffusionSettings(), fields, "fit-diffusion")
    found = _sized(load(images, classes=classes), size)
    found = found.resized(size) if size else found
    fit_a_diffusion(found, out, settings, device=device_of(device), progress=progress)


def changed(settings, fields: Sequence[str], verb: str):
    """`settings` with FIELD=VALUE texts applied."""
    for text in fields:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise OutskirtsError(f"cannot read {text!r}; write FIELD=VALUE, e.g. batch_size=64")
        if name not in (known := field_types(type(settings))):
            raise OutskirtsError(f"no field {name!r}{did_you_mean(name, known)}; `outskirts show {verb}` lists them")
        settings = set_field(settings, name, value)
    return settings


def _sized(images: Images, size) -> Images:
    if not size and images.size is None:
        raise OutskirtsError(
            f"{images.name}: images may differ in size; bring them to one with --size H W, e.g. --size 64 64"
        )
    return images
