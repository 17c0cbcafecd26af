"""The detectors that a bench keeps: which score they hold, why, and how to have another. No test set chooses it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from outskirts import pages, wording
from outskirts.errors import OutskirtsError
from outskirts.recipe import Recipe, labelled
from outskirts.scored import constant, not_finite
from outskirts.types import Outputs, Score

TRAINED, PLAIN = "detector", "detector-plain"
"""Folders below 6-bench; without training, only the first, of the classifier as it is."""
log = logging.getLogger("outskirts")


def labels(recipe: Recipe) -> list[str]:
    """The scores of which a detector may hold one: where something is trained, those that both sides have."""
    every = recipe.scores if "train" in recipe.stages else (*recipe.scores, *recipe.plain_scores)
    return [labelled(s).label for s in every]


def choose(wanted: str | None, scores: Mapping[str, Score]) -> str | None:
    """`wanted`, else energy, else the first score that answers for one image at a time; none where none does.

    Raises OutskirtsError where `wanted` does not.
    """
    able = [k for k, s in scores.items() if not s.transductive and getattr(s, "mode", None) != "stream"]
    if wanted is None:
        return "energy" if "energy" in able else next(iter(able), None)
    if wanted not in able:
        raise OutskirtsError(
            f"detector_score is {wanted!r}, whose value for an image depends on the images around it; accepted: {', '.join(able) or 'none of scores'}"
        )
    return wanted


def keep(classifier, scores: Mapping[str, Score], recipe: Recipe, calibration: Outputs, folder: Path) -> None:
    """Write the detector of one classifier, with the score that `choose` says; where that cannot be, only log why."""
    try:
        detector = _detector(classifier, scores, recipe, calibration)
    except OutskirtsError as e:  # the measurements stand without it
        log.warning("no %s was written: %s", folder.name, e)
    else:
        detector.save(folder)


def _detector(classifier, scores: Mapping[str, Score], recipe: Recipe, calibration: Outputs):
    """Raises OutskirtsError where no score is able, the one to take gives no threshold, or the images are too few for its promise."""
    from outskirts.detector import Detector  # reading which one was kept needs none of it

    able = {k: s for k, s in scores.items() if k in labels(recipe)}
    wanted = recipe.detector_score
    if wanted is not None and wanted not in able:
        raise OutskirtsError(f"score {wanted!r}, which detector_score names, could not be fitted")
    label = choose(wanted, able)
    if label is None:
        raise OutskirtsError("every score of the recipe depends on the whole test set")
    values = able[label](calibration)
    if why := not_finite(values) or constant(values):
        raise OutskirtsError(
            f"score {label!r} sets no threshold on the calibration images: {why}; name another one in detector_score"
        )
    return Detector.from_parts(classifier, able[label], values)


def facts(folder: Path, recipe: Mapping | None, said: Mapping | None = None) -> dict | None:
    """Which detectors a run kept, the label of their score, whether the recipe named it, what else there was, and which detector
    to take by the verdict `said` of the headline; None where it kept none."""
    found = {name: pages.read(folder, f"6-bench/{name}/detector.json", [], "") for name in (TRAINED, PLAIN)}
    if not found[TRAINED]:
        return None
    recipe = recipe or {}
    alone = "train" not in recipe.get("stages", ["train"])
    offered = [*recipe.get("scores", ()), *(recipe.get("plain_scores", ()) if alone else ())]
    names, given = dict(map(labelled, offered)), recipe.get("detector_score")
    score = found[TRAINED]["score"]
    label = given or next((k for k, name in names.items() if name == score), score)
    unable = set(_unable(pages.read(folder, "6-bench/rows.json", [], "") or (), recipe.get("score_with") or {}))
    clauses = (said or {}).get("clauses", [])
    verdict = next((c["verdict"] for c in clauses if c["baseline"] == wording.PLAIN), None)
    take = {"improves": f"6-bench/{TRAINED}", "worsens": f"6-bench/{PLAIN}"}.get(verdict)
    return {
        "score": label,
        "given": given is not None,
        "others": [k for k in names if k != label and k not in unable],
        "two": bool(found[PLAIN]),
        "verdict": verdict,
        "take": take if found[PLAIN] else None,
    }


def _unable(rows: Sequence[Mapping], given: Mapping[str, Mapping]) -> Iterator[str]:
    """Scores that are left out on a test set that is there, or that look at more than one image."""
    for r in rows:
        why = r.get("excluded") or ""
        if r.get("transductive") or (why and not why.startswith("missing:")):
            yield r["score"]
    yield from (label for label, settings in given.items() if settings.get("mode") == "stream")


def line(folder: Path) -> str:
    """For whoever gave the command: which score the detector holds and how to have another; empty where there is no choice."""
    held = facts(folder, (pages.read(folder, "run.json", [], "") or {}).get("recipe"))
    if not held or not held["others"]:
        return ""
    why = "as detector_score says" if held["given"] else "the default: no test set chooses it"
    return (
        f"{folder}/6-bench/{TRAINED} holds the score {held['score']!r}, {why}; "
        f"for another one give detector_score={'|'.join(held['others'])} and --redo bench\n"
    )
