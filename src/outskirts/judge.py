"""Who says what an outlier shows: a CLIP model, a classifier of the user's, one trained from another seed, or the plain one."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from outskirts.checks import spellings
from outskirts.errors import OutskirtsError
from outskirts.inputs import device
from outskirts.models import Classifier, load_classifier
from outskirts.prompts import outside, word_list
from outskirts.run import Run

PROMPT = "?template=a photo of a {}"
SEED = 1000
"""Added to the plain classifier's, of a judge that is trained like it."""


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier that may know more classes than the ID ones."""

    classifier: Classifier
    name: str
    """In words."""
    independent: bool
    """False for the plain classifier, which the outliers may have been made with."""
    of_class: Int64[Tensor, " K"]
    """Its class for each ID class."""


def load_judge(run: Run, folder: Path) -> Judge:
    """The judge of `analyse.judge`; one that is trained (`fit`) lies in `folder`, and is read from there afterwards.

    Raises OutskirtsError where a judge lacks one of the ID classes, by name.
    """
    r, parts = run.recipe, run.inputs.parts
    wanted, classes = r.analyse.judge, parts["train"].classes
    if wanted is None:
        return Judge(run.inputs.classifier().frozen(), "the plain classifier itself", False, torch.arange(len(classes)))
    if wanted == "fit":
        from outskirts.fit_classifier import fit_classifier

        settings = replace(r.fit_classifier, seed=r.fit_classifier.seed + SEED)
        options = {"size": r.size, "device": r.device, "progress": run.progress}
        classifier = fit_classifier(parts["train"], parts["val"], folder / "judge", settings, **options)
        return Judge(
            classifier.frozen(),
            "a classifier trained like the plain one, from another seed",
            True,
            torch.arange(len(classes)),
        )
    if wanted.startswith("clip:"):
        words = outside(word_list(r.analyse.words), classes) if r.analyse.words else []
        template = "" if "?" in wanted else PROMPT
        classifier = load_classifier(wanted + template, classes=[*classes, *words])
        of_class = torch.arange(len(classes))
    else:
        classifier = load_classifier(wanted)
        of_class = _by_name(classes, classifier.classes, wanted)
    return Judge(classifier.to(device(r.device)).frozen(), wanted, True, of_class)


def _by_name(classes, known, wanted: str) -> Int64[Tensor, " K"]:
    """Places of the ID classes among those that a judge knows, whatever the case and the separators."""
    names = [spellings(str(c)) for c in known]
    places = [next((i for i, other in enumerate(names) if spellings(c) & other), None) for c in classes]
    if None in places:
        raise OutskirtsError(
            f"analyse.judge={wanted} has no class {classes[places.index(None)]!r}; give a classifier of the ID classes, clip:FOLDER, or fit"
        )
    return torch.tensor(places)
