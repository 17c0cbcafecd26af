"""The detectors that a bench keeps: which score they hold, why, and how to have another. No test set chooses it."""

from collections.abc import Mapping
from pathlib import Path

from outskirts import pages, wording
from outskirts.errors import OutskirtsError
from outskirts.recipe import Recipe, labelled
from outskirts.types import Score

TRAINED, PLAIN = "detector", "detector-plain"
"""Folders below 6-bench; without training, only the first, of the classifier as it is."""


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
    clauses = (said or {}).get("clauses", [])
    verdict = next((c["verdict"] for c in clauses if c["baseline"] == wording.PLAIN), None)
    take = {"improves": f"6-bench/{TRAINED}", "worsens": f"6-bench/{PLAIN}"}.get(verdict)
    return {
        "score": label,
        "given": given is not None,
        "others": [k for k in names if k != label],
        "two": bool(found[PLAIN]),
        "verdict": verdict,
        "take": take if found[PLAIN] else None,
    }


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
