"""What Bad-OOD checks in its settings, and what it finds out when it is fitted."""

from collections.abc import Container
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from outskirts.decoder_small import side_of
from outskirts.decoders import NONE, SMALL, check_names
from outskirts.encoders import embeddings
from outskirts.errors import OutskirtsError
from outskirts.fit_representation import held_out
from outskirts.images import Images
from outskirts.representation import check_folder
from outskirts.settings import check_above
from outskirts.synth._artefact import artefacts
from outskirts.synth._ratio import settle

GUIDING = ("knn_ratio", "strengths", "toward", "form", "distance", "draws")
"""Settings that nothing reads where there is no guidance."""
OF_SMALL = ("decoder_channels", "decoder_batch", "decoder_lr", "codec", "from_anchor")
"""Settings that the small decoder alone reads; decoder_steps is a budget, like model_steps, which a recipe keeps where its decoder is changed."""
DECODING = ("image_size", "guidance_scale", "precision")
"""Settings that nothing reads where nothing is decoded."""


def check(s) -> None:
    """Raises OutskirtsError for settings of a Synthesizer that are out of range or do not go together, and for models that are not there."""
    given = [n for n in ("components", "image_size", "width", "blocks") if getattr(s, n) is not None]
    check_above(s, 0, "decoder_batch", "decoder_lr", *given)
    if s.guidance_scale is not None and not 0 <= s.guidance_scale < float("inf"):
        raise OutskirtsError(f"guidance_scale is {s.guidance_scale!r}; give a number from 0")
    if 0 < s.artefacts < 10:
        raise OutskirtsError(f"artefacts is {s.artefacts}; give 10 or more images, or 0 for no look")
    for name in ("knn_ratio", "strengths"):
        if not all(0 <= v < float("inf") for v in getattr(s, name)):
            raise OutskirtsError(f"{name} is {getattr(s, name)!r}; give numbers from 0")
    if not (s.knn_ratio or s.strengths):
        raise OutskirtsError("knn_ratio and strengths are both empty; give one of them")
    if s.toward == "id" and not s.strengths and s.guidance != "none":
        raise OutskirtsError("toward=id goes inwards, where no ratio is searched for; give strengths, e.g. 2")
    if s.representation and (s.width or s.blocks or s.class_conditional):
        raise OutskirtsError(
            "representation names a trained model, and class_conditional, width and blocks are its own; leave them out"
        )
    if s.guidance == "noise" and (s.form, s.toward, s.draws) != ("unit", "ood", 1):
        raise OutskirtsError("guidance=noise has no score; leave form, toward and draws out")
    if s.guidance == "none" and (given := changed(s, GUIDING)):
        raise OutskirtsError(f"guidance=none only decodes the anchors, and {given[0]} steers a guidance; leave it out")
    if s.guidance == "none" and s.decoder == NONE:
        raise OutskirtsError("guidance=none only decodes the anchors, and decoder=none does not; leave one of them out")
    check_names(s.encoder, s.decoder)
    if s.decoder == NONE and (given := changed(s, DECODING)):
        raise OutskirtsError(f"{given[0]} is of decoding, and decoder=none does not decode; leave one of them out")
    if s.decoder != SMALL and (given := changed(s, OF_SMALL)):
        raise OutskirtsError(f"{given[0]} is of decoder=small alone, and decoder={s.decoder}; leave one of them out")
    if s.representation is not None:
        check_folder(Path(s.representation))


def check_images(s, images: Images) -> None:
    """Raises OutskirtsError for images that a Synthesizer cannot be fitted on: too few, or too large for a small decoder."""
    held_out(len(images))
    if len(images) <= s.k:
        raise OutskirtsError(f"k is {s.k}, of {len(images)} images; give 1 to {len(images) - 1}")
    if s.decoder == SMALL:
        side_of(images, s.image_size)


def changed(s, names: Container[str]) -> list[str]:
    """Those of the settings that are not as they are where nobody gives them."""
    return [f.name for f in fields(s) if f.name in names and getattr(s, f.name) != f.default]


def unset(s) -> dict[str, Any]:
    """The settings of guidance as they are where nobody gives them."""
    return {f.name: f.default for f in fields(s) if f.name in GUIDING}


def found(s, val: Images | None, where: dict) -> dict[str, Any]:
    """What the models of a fitted Synthesizer are worth, what distances are measured by, and the strengths.

    The ID images of the look at the decoder, before and after, are left in `s.artefacts_`.
    """
    normalizer, z_val = s.model.normalizer, None
    if val is not None:
        with torch.no_grad():
            z_val = normalizer(embeddings(s.encoder_, val, **where).to(s.device))
    facts = {"dimensions": s.z_.shape[1], "explained": float(getattr(normalizer, "explained", 1.0))}
    if not s.representation:
        facts |= {"model_steps_taken": s.model.facts["steps"], "held_out_loss": min(s.model.facts["held_out"])}
    facts |= settle(s, z_val, held_out(len(s.z_)).nonzero()[:, 0])
    if s.decoder_ is not None and s.artefacts:
        options = {"batch_size": s.batch_size, "device": s.device}
        seen, s.artefacts_ = artefacts(
            s.decoder_, s.images_ if val is None else val, s.classifier, s.artefacts, **options
        )
        facts |= seen
    return facts
