"""What Bad-OOD checks in its settings, and what it finds out when it is fitted."""

from dataclasses import fields
from typing import Any

import torch

from outskirts.decoders import NONE, SMALL
from outskirts.encoders import embeddings
from outskirts.errors import OutskirtsError
from outskirts.fit_representation import held_out
from outskirts.images import Images
from outskirts.synth._artefact import artefacts
from outskirts.synth._ratio import settle

GUIDING = ("knn_ratio", "strengths", "toward", "form", "distance", "draws")
"""Settings that nothing reads where there is no guidance."""


def check(s) -> None:
    """Raises OutskirtsError for settings of a Synthesizer that do not go together."""
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
    if s.guidance == "none" and (given := [n for n, v in unset(s).items() if getattr(s, n) != v]):
        raise OutskirtsError(f"guidance=none only decodes the anchors, and {given[0]} steers a guidance; leave it out")
    if s.guidance == "none" and s.decoder == NONE:
        raise OutskirtsError("guidance=none only decodes the anchors, and decoder=none does not; leave one of them out")
    if s.from_anchor and s.decoder != SMALL:
        raise OutskirtsError(f"from_anchor starts the small decoder, and decoder={s.decoder}; leave one of them out")


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
