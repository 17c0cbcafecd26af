"""Outputs once per data set, then every score from arrays, then rows: what each method reaches, and what differs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.special import ndtri, stdtrit
from torch import Tensor

from outskirts import metrics, verdict
from outskirts.errors import OutskirtsError
from outskirts.passes import at_rest, batches, note
from outskirts.progress import bar
from outskirts.scored import GROUPS, Scored, score_sets
from outskirts.types import Observer, Outputs, Score

Row = dict[str, Any]
"""A flat line of a table, JSON-able; metrics are shares from 0 to 1."""
MEANS = (*(f"mean-{g}" for g in GROUPS), "mean-all")
REPORTED = ("auroc", "aupr_in", "aupr_out", "fpr95_id", "fpr95_ood")


def collect(
    classifier,
    images,
    *,
    batch_size: int = 256,
    observers: Iterable[Any] = (),
    progress: str | None = None,
) -> Outputs:
    """One forward pass of `classifier` over `images` (Images, or a tensor [N, 3, H, W] in [0, 1]), as float32 on the CPU.

    In eval mode whatever mode the classifier is in, and on its own device. Of `observers`, those scores that read the images
    themselves (see `types.Observer`) look at each batch on its way. `progress` is the title of a bar; none: no bar.
    """
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    seers = {s.observes: s for s in observers if isinstance(s, Observer)}  # two scores of one key look once
    parts = []
    with at_rest(classifier), bar(progress or "", total=len(images), show=progress is not None) as advance:
        for batch, labels in batches(images, batch_size, classifier.size):
            out = note(classifier, batch.to(device), seers)
            parts.append(replace(out.to("cpu", torch.float32), labels=labels))
            advance(len(batch))
    if not parts:
        raise OutskirtsError("no images to classify; give at least one")
    return Outputs.cat(parts)  # outside inference mode, so that a bank made of it can be guided by


def evaluate(
    scores: Mapping[str, Score],
    id_outputs: Outputs,
    id_labels: Int[Tensor, " N"],
    sets: Mapping[str, tuple[str, Outputs]],
    *,
    method: str,
    seed: int,
    resamples: int = 200,
) -> list[Row]:
    """The rows of one trained classifier: every fitted score on every OOD set, then its near, far and all means."""
    return rows(score_sets(scores, id_outputs, id_labels, sets, method=method, seed=seed, resamples=resamples))


def rows(scored: Sequence[Scored], *, missing: Mapping[str, tuple[str, str]] | None = None) -> list[Row]:
    """One row per Scored, then one per (method, seed, score) and mean: near, far, all, unweighted over sets.

    Each metric has its 95 % bootstrap interval over test images beside it: auroc, auroc_lo, auroc_hi. The interval of a
    mean draws the ID images once for all of its sets.

    A set that is `excluded`, and those of `missing` (label -> near or far, and why it is not there), have a row without
    metrics which says why in `excluded`; they are not in the means, whose rows count them in `n_excluded`.
    """
    _resample(scored)
    lines, gone = [], missing or {}
    for (method, seed, score), group in _by(scored, lambda s: (s.method, s.seed, s.score)).items():
        first = group[0]
        out = {s.set: (s.group, s.excluded) for s in group if s.excluded} | gone
        head: Row = {"method": method, "seed": seed, "score": score, "transductive": first.transductive}
        for label, members in _cells([s for s in group if not s.excluded]):
            line = head | {
                "set": label,
                "group": members[0].group if label == members[0].set else label,
                "n_id": len(members[0].id_scores),
                "n_ood": sum(len(s.ood_scores) for s in members),
            }
            for m in REPORTED:
                line[m] = _point(members, m)
                line[f"{m}_lo"], line[f"{m}_hi"] = metrics.interval(_replicates(members, m))
            lines.append(line | _left_out(label, out, len(members)) | {"id_accuracy": first.id_accuracy})
        lines += [line | {"id_accuracy": first.id_accuracy} for line in _without_metrics(head, group, out)]
    return lines


def _resample(scored: Sequence[Scored]) -> None:
    """Every bootstrap at once, on as many threads as torch has: numpy lets others run in its loops."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        deque(pool.map(lambda s: s.replicates, (s for s in scored if not s.excluded)), maxlen=0)


def _left_out(label: str, out: Mapping[str, tuple[str, str]], members: int) -> Row:
    """Of a mean: how many sets are in it, and how many are not."""
    if label not in MEANS:
        return {}
    groups = GROUPS if label == "mean-all" else (label.removeprefix("mean-"),)
    return {"n_sets": members, "n_excluded": sum(group in groups for group, _ in out.values())}


def _without_metrics(head: Row, group: Sequence[Scored], out: Mapping[str, tuple[str, str]]) -> Iterator[Row]:
    """Rows of the sets that are left out, and of the means that have no set left."""
    sizes = {s.set: len(s.ood_scores) for s in group}
    nothing = {k: None for m in REPORTED for k in (m, f"{m}_lo", f"{m}_hi")}
    n_id = len(group[0].id_scores)
    for label, (where, why) in out.items():
        place = {"set": label, "group": where, "n_id": n_id, "n_ood": sizes.get(label, 0)}
        yield head | place | nothing | {"excluded": why}
    kept = {s.group for s in group if not s.excluded}
    for label in MEANS:
        groups = GROUPS if label == "mean-all" else (label.removeprefix("mean-"),)
        if not kept & set(groups) and any(where in groups for where, _ in out.values()):
            place = {"set": label, "group": label, "n_id": n_id, "n_ood": 0}
            yield head | place | nothing | _left_out(label, out, 0)


def compare(
    before: Sequence[Scored], after: Sequence[Scored], *, pairs: Sequence[tuple[str, str]] | None = None
) -> list[Row]:
    """What `after` changes against `before`, on the same test images: one row per score, set or mean, and metric.

    `diff` is the mean over seeds of after - before. Its 95 % interval joins, in quadrature, the t interval over seeds
    (n - 1 degrees of freedom) and the bootstrap error over the test images, which all seeds share and which is paired. With
    one seed it is the interval over images alone, and `seeds` = 1 says so. `verdict` is "improves" or "worsens" only where
    the interval excludes zero over two seeds or more (between scores of the plain classifier, where nothing was trained: over
    the images), else "no clear difference".

    `before` has the same seeds as `after`, or one for all of them (a classifier before outlier training). `pairs` lists
    (score before, score after); the default pairs every score with itself.
    """
    ours, theirs = (_by(x, lambda s: s.score) for x in (after, before))
    if pairs is None:
        pairs = [(name, name) for name in ours if name in theirs]
    if not pairs:
        raise OutskirtsError(
            f"nothing to compare: scores before {', '.join(theirs) or 'none'}; after {', '.join(ours) or 'none'}; give pairs="
        )
    lines = []
    for old, new in pairs:
        if old not in theirs or new not in ours:
            raise OutskirtsError(
                f"no scores for the pair ({old!r}, {new!r}); before: {', '.join(theirs)}; after: {', '.join(ours)}"
            )
        lines += _compare(theirs[old], ours[new])
    return lines


def _compare(before: Sequence[Scored], after: Sequence[Scored]) -> Iterator[Row]:
    old, new = (_by(x, lambda s: s.seed) for x in (before, after))
    if len(old) > 1 and set(old) != set(new):
        raise OutskirtsError(
            f"seeds {sorted(old)} before and {sorted(new)} after; give the same seeds, or one before for all"
        )
    # What one side cannot rank is compared on neither, so that both means are over the same sets.
    out = {s.set for s in (*before, *after) if s.excluded}
    old, new = ({seed: [s for s in x if s.set not in out] for seed, x in side.items()} for side in (old, new))
    if not all((*old.values(), *new.values())):
        return
    only = next(iter(old.values())) if len(old) == 1 else None
    couples = [(dict(_cells(only or old[seed])), dict(_cells(members))) for seed, members in new.items()]
    for label in couples[0][1]:
        members = [(b.get(label, []), a.get(label, [])) for b, a in couples]
        for b, a in members:
            _same_images(b, a, label)
        first_b, first_a = members[0][0][0], members[0][1][0]
        for m in REPORTED:
            seeds = np.array([_point(a, m) - _point(b, m) for b, a in members])
            images = np.mean([_replicates(a, m) - _replicates(b, m) for b, a in members], axis=0).std(ddof=1)
            diff, n = float(seeds.mean()), len(seeds)
            over_seeds = stdtrit(n - 1, 0.975) * seeds.std(ddof=1) / n**0.5 if n > 1 else 0.0
            half = float(np.hypot(over_seeds, ndtri(0.975) * images))
            lo, hi = max(-1.0, diff - half), min(1.0, diff + half)  # metrics are shares: no difference is larger
            line = {
                "method": first_a.method,
                "baseline": first_b.method,
                "score": first_a.score,
                "baseline_score": first_b.score,
                "transductive": first_a.transductive or first_b.transductive,
                "set": label,
                "metric": m,
                "diff": diff,
                "lo": lo,
                "hi": hi,
                "seeds": n,
                **({"n_excluded": len(out)} if label in MEANS else {}),
            }
            yield line | {"verdict": verdict.call(m, lo, hi, n, trained=not verdict.as_it_is(line))}


def _same_images(before: Sequence[Scored], after: Sequence[Scored], label: str) -> None:
    sizes = [{s.set: (len(s.id_scores), len(s.ood_scores)) for s in x} for x in (before, after)]
    if sizes[0] != sizes[1]:
        raise OutskirtsError(
            f"{label!r} was scored on other images before ({sizes[0]}) than after ({sizes[1]}), as sets: (ID, OOD) images; score the same ones"
        )


def _cells(members: Sequence[Scored]) -> Iterator[tuple[str, list[Scored]]]:
    yield from ((s.set, [s]) for s in members)
    yield from _means(members)


def _means(members: Sequence[Scored]) -> Iterator[tuple[str, list[Scored]]]:
    """The groups that have sets, and all of them, as OpenOOD averages them."""
    for group in GROUPS:
        some = [s for s in members if s.group == group]
        if some:
            yield f"mean-{group}", some
    if members:
        yield "mean-all", list(members)


def _point(members: Sequence[Scored], metric: str) -> float:
    return float(np.mean([s.point[metric] for s in members]))


def _replicates(members: Sequence[Scored], metric: str) -> np.ndarray:
    return np.mean([s.replicates[metric] for s in members], axis=0)


def _by(scored: Sequence[Scored], key: Callable[[Scored], Any]) -> dict[Any, list[Scored]]:
    found: dict[Any, list[Scored]] = {}
    for s in scored:
        found.setdefault(key(s), []).append(s)
    return found
