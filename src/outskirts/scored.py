"""Scores of test sets, from stored Outputs: one `Scored` for every classifier, score and OOD set."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from outskirts import metrics
from outskirts.errors import OutskirtsError
from outskirts.types import Outputs, Score

GROUPS = ("near", "far")
log = logging.getLogger("outskirts")


@dataclass(frozen=True)
class Scored:
    """One score of one trained classifier on the ID test set and on one OOD set, with what is computed from the two."""

    method: str
    seed: int
    score: str
    transductive: bool
    set: str
    group: str
    """near or far."""
    id_scores: Float[Tensor, " N"] = field(repr=False)
    """Of the ID test set; they differ between OOD sets where the score is transductive."""
    ood_scores: Float[Tensor, " B"] = field(repr=False)
    id_accuracy: float
    resamples: int = 200
    """Bootstrap resamples of the test images; the same images are drawn for every method, seed and score."""
    excluded: str = ""
    """Why this set is left out of the means, and has no metrics: scores that are constant on either side, NaN or infinite. Usually empty."""

    @cached_property
    def point(self) -> dict[str, float]:
        return metrics.ood_metrics(self.id_scores, self.ood_scores)

    @cached_property
    def replicates(self) -> dict[str, np.ndarray]:
        """Every metric of every resample, [resamples] each."""
        return metrics.bootstrap(self.id_scores, self.ood_scores, resamples=self.resamples, name=self.set)


def fit_score(
    score: Score,
    train: Outputs,
    *,
    val: Outputs | None = None,
    outliers: Outputs | None = None,
    classifier=None,
) -> Score:
    """`score` fitted on labelled training outputs; it gets those of `val`, `outliers` and `classifier` that it has arguments for."""
    given = {"val": val, "outliers": outliers, "classifier": classifier}
    accepted = inspect.signature(score.fit).parameters
    return score.fit(train, train.labels, **{k: v for k, v in given.items() if k in accepted})


def score_sets(
    scores: Mapping[str, Score],
    id_outputs: Outputs,
    id_labels: Int[Tensor, " N"],
    sets: Mapping[str, tuple[str, Outputs]],
    *,
    method: str,
    seed: int,
    resamples: int = 200,
    failed: Mapping[str, str] | None = None,
    usual: Sequence[Scored] = (),
) -> list[Scored]:
    """Every fitted score on the ID test set and on every OOD set: `sets` maps a name to its group (near or far) and Outputs.

    A set on which a score is constant (on the ID or the OOD images), NaN or infinite is `excluded`, with a warning that names both; so are the scores of
    `failed`, name -> why they could not be fitted, on every set. For a table of its own, `usual` is the usual one: see `exclusions`.
    Raises OutskirtsError, with the score and the set by name, where a score fails.
    """
    for name, (group, _) in sets.items():
        if group not in GROUPS:
            raise OutskirtsError(f"set {name!r} in group {group!r}; accepted: near, far")
    if not len(id_outputs):
        raise OutskirtsError("the ID test set is empty; give at least one image")
    accuracy = (id_outputs.logits.argmax(-1) == id_labels).double().mean().item()
    scored = []
    for score_name, score in scores.items():
        where = f"score {score_name!r} ({method}, seed {seed})"
        id_scores = (
            None if score.transductive else _values(lambda s=score: s(id_outputs), f"{where} on the ID test set")
        )
        for name, (group, outputs) in sets.items():
            here = f"{where} on {name!r}"
            if score.transductive:
                pair = _values(lambda s=score, o=outputs: torch.cat(s.pair(id_outputs, o)), here)
                id_scores, ood = pair[: len(id_outputs)], pair[len(id_outputs) :]
            else:
                ood = _values(lambda s=score, o=outputs: s(o), here)
            why = _no_score(id_scores, ood)
            facts = (method, seed, score_name, bool(score.transductive), name, group)
            scored.append(Scored(*facts, id_scores, ood, accuracy, resamples, why))
    for score_name, why in (failed or {}).items():
        for name, (group, outputs) in sets.items():
            nothing = (torch.full((len(x),), torch.nan) for x in (id_outputs, outputs))
            scored.append(Scored(method, seed, score_name, False, name, group, *nothing, accuracy, resamples, why))
    for line in exclusions(scored, usual):
        log.warning("%s", line)
    return scored


def to_arrays(scored: Sequence[Scored]) -> dict[str, np.ndarray]:
    """Scores for `numpy.savez`: "method|seed|score|set" -> float32 [N]; ID scores under the set "id", or "id@SET" where
    they depend on the OOD set (transductive). Without what is excluded."""
    arrays = {}
    for s in (s for s in scored if not s.excluded):
        where = f"{s.method}|{s.seed}|{s.score}|"
        arrays[where + s.set] = s.ood_scores.float().numpy()
        arrays[where + ("id@" + s.set if s.transductive else "id")] = s.id_scores.float().numpy()
    return arrays


def exclusions(scored: Sequence[Scored], usual: Sequence[Scored] = ()) -> list[str]:
    """One line for each classifier, score and reason: on which sets the score says nothing, and is left out.

    Where `scored` are the full spectrum, `usual` are those without shifted images: what is left out there too is said there alone.
    """
    found: dict[tuple[str, int, str, str], list[str]] = {}
    known = {(s.method, s.seed, s.score, s.set) for s in usual if s.excluded}
    for s in scored:
        if s.excluded and (s.method, s.seed, s.score, s.set) not in known:
            found.setdefault((s.method, s.seed, s.score, s.excluded), []).append(s.set)
    table = "full spectrum: " if usual else ""
    return [
        f"{table}score {score!r} ({method}, seed {seed}) is left out on {', '.join(sets)}, and from the means over sets: {why}"
        for (method, seed, score, why), sets in found.items()
    ]


def _values(scores: Callable[[], Tensor], where: str) -> Float[Tensor, " B"]:
    try:
        return scores().detach().cpu()
    except OutskirtsError as e:
        raise OutskirtsError(f"{where}: {e}") from e


def _no_score(id_scores: Float[Tensor, " N"], ood_scores: Float[Tensor, " B"]) -> str:
    """Why these scores can rank nothing; "" where they can."""
    sides = {"ID ": id_scores, "OOD ": ood_scores}
    bad = next((why for whose, values in sides.items() if (why := not_finite(values, whose))), "")
    every = {"": torch.cat([id_scores, ood_scores]), **sides}
    return bad or next((why for whose, values in every.items() if (why := constant(values, whose))), "")


def not_finite(values: Float[Tensor, " N"], whose: str = "") -> str:
    """How many scores are NaN or infinite; "" for none."""
    bad = (~values.isfinite()).nonzero()
    if not len(bad):
        return ""
    return f"{len(bad)} of {len(values)} {whose}scores are NaN or infinite, the first at image {bad[0].item()}"


def constant(values: Float[Tensor, " N"], whose: str = "") -> str:
    """Which one value every score has; "" where they differ, or where there is one."""
    same = len(values) > 1 and bool((values == values[0]).all())
    return f"every {whose}score is {values[0].item():.6g}" if same else ""
