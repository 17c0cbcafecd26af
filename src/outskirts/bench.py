"""The bench stage: every score of the plain classifier, of each trained one and of the noise floor, on every test set.

Writes rows.json, differences.json, warnings.json, scores.npz (raw scores), outliers.json (what the plain classifier says of each outlier),
sources.npz (ID images that some were made from), examples.npz (some test images), detector/ (the artefact to keep)
and, where something was trained, detector-plain/ (the same before it). Each classifier's part is kept, so that a stop costs one.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outskirts import bench_facts, kept, ranking, verdict
from outskirts.errors import OutskirtsError
from outskirts.evaluate import Row, collect, compare, rows
from outskirts.find import find
from outskirts.images import Images
from outskirts.methods import PLAIN, Method, methods, shared
from outskirts.progress import track
from outskirts.recipe import Recipe, labelled
from outskirts.run import DONE, Run, read_json, write_json
from outskirts.scored import Scored, exclusions, fit_score, score_sets, to_arrays
from outskirts.scores.energy import Score as Energy
from outskirts.scores.knn import Score as Neighbour
from outskirts.stages import outliers, split_outliers, trained, trained_in
from outskirts.types import Observer, Outputs, Prepared, Score

COSTS = ("seconds", "peak_gib", "start_gib", "memory_apart")
"""Of a step, in its done.json."""
EXAMPLES = 14
"""Images of each test set that the report shows."""
log = logging.getLogger("outskirts")


def bench(run: Run, out: Path) -> None:
    """Measure everything; see the module."""
    r = run.recipe
    every = methods(r) if "train" in r.stages else []
    benchmark, warnings = bench_facts.look(run)
    jobs = [(None, 0), *((m, seed) for m in every for seed in r.seeds)]
    found: dict[str, list[Scored]] = {}
    keep = dict(enumerate(("detector-plain", "detector")[-len(jobs) :]))  # of the first two jobs, or of the only one
    for i, (m, seed) in enumerate(track(jobs, "bench", show=run.progress)):
        found.setdefault(m.label if m else PLAIN, []).extend(_part(run, out, m, seed, keep=keep.get(i)))
    scored = [s for group in found.values() for s in group]
    write_json(out / "rows.json", measured := rows(scored, missing=bench_facts.missing(benchmark)))
    if r.shifted:
        wide = [s for path in sorted(out.glob("wide-*")) for s in _load(path)]
        write_json(out / "full_spectrum.json", rows(wide, missing=bench_facts.missing(benchmark)))
        warnings += exclusions(wide, scored)
    bench_facts.write(out, benchmark, warnings, scored)
    write_json(out / "differences.json", list(_differences(r, every, found, measured)))
    np.savez_compressed(out / "scores.npz", **to_arrays(scored))
    if every:
        write_json(out / "outliers.json", facts := _facts(run, every[0]))
        if beside := bench_facts.sources(run, every[0], facts["outliers"]):
            np.savez_compressed(out / "sources.npz", **beside)
        write_json(out / "methods.json", [_cost(run, m) for m in every])
    np.savez_compressed(out / "examples.npz", **_examples(run))
    for part in (*out.glob("part-*"), *out.glob("wide-*")):
        part.unlink()


def _differences(
    recipe: Recipe, every: list[Method], found: dict[str, list[Scored]], measured: list[Row]
) -> Iterator[Row]:
    """Each method against the plain classifier, the compared ones against every baseline, and those that share outliers against the one
    that made them, by equal scores; then against the best that baselines reach with any score, see `ranking.across`. Where nothing was
    trained, the best score against every other."""
    if not every:
        first, *rest = ranking.ranked(ranking.whole(verdict.summarise(measured))) or [None]
        if rest:
            pairs = [(s["score"], first["score"]) for s in rest]
            yield from compare(found[PLAIN], found[PLAIN], pairs=pairs)
        return
    own = recipe.own or tuple(m.label for m in every[:1])
    for m in every:
        yield from compare(found[PLAIN], found[m.label])
    pairs = [(b.label, m.label) for m in every if m.label in own for b in every if b.label not in own]
    pairs += [(b.label, m.label) for b, m in shared(every) if (b.label, m.label) not in pairs]
    for before, after in pairs:
        yield from compare(found[before], found[after])
    for mine, other in ranking.across(ranking.whole(verdict.summarise(measured)), own):
        if mine["score"] != other["score"]:  # equal ones are above
            pair = [(other["score"], mine["score"])]
            yield from compare(found[other["method"]], found[mine["method"]], pairs=pair)


def _cost(run: Run, m: Method) -> Row:
    """What a method took: seconds, and memory of the process when it began and at its peak, of making its outliers and of one training,
    the one in the middle by time: a single one may have been stopped, or had the machine to share."""
    done = {"synth": read_json(run.folder / m.store / DONE) if m.store else None}
    trainings = [read_json(run.folder / trained_in(m, seed) / DONE) for seed in run.recipe.seeds]
    done["train"] = sorted(trainings, key=lambda d: d["seconds"])[(len(trainings) - 1) // 2]
    facts = {f"{stage}_{k}": d.get(k) for stage, d in done.items() if d for k in COSTS}
    own = run.recipe.own or (methods(run.recipe)[0].label,)
    return {"method": m.label, "own": m.label in own, "synth": m.synth, "loss": m.train.loss, "outliers": len(outliers(run, m)[0]), **facts}  # fmt: skip


def _part(run: Run, out: Path, m: Method | None, seed: int, *, keep: str | None) -> list[Scored]:
    """Every score of one classifier on every set, from `part-*` files where an earlier call wrote them; `keep` names its detector."""
    r, method = run.recipe, m.label if m else PLAIN
    key = (m.key or "@") if m else "@plain"  # no method's key has an @
    path = out / f"part-{key}-{seed}.npz"
    if path.exists():
        return _load(path)
    classifier = trained(run, m, seed) if m else run.inputs.classifier()
    parts = run.inputs.parts
    made = dict(make_scores(r, (*r.scores, *(() if m else r.plain_scores))))
    bank = run.inputs.bank
    failed = dict(_blind(made, classifier, bank, parts["val"]))
    made = {label: s for label, s in made.items() if label not in failed}
    look = partial(collect, classifier, observers=made.values())
    wanted = ("val", "test", *(["calibration"] if keep else []))  # the threshold is that of the detector that is kept
    outputs = {name: look(parts[name]) for name in wanted} | {"train": collect(classifier, bank)}
    sets = {label: (group, look(images)) for label, (group, images) in run.inputs.ood.items()}
    of = m or next(iter(methods(r)), None)
    apart = _outputs(classifier, split_outliers(run, of)[1]) if of and "train" in r.stages else None
    scores = {}
    for label, s in made.items():
        try:
            scores[label] = fit_score(s, outputs["train"], val=outputs["val"], outliers=apart, classifier=classifier)
        except OutskirtsError as e:  # one score that does not suit this classifier does not cost the others
            failed[label] = str(e)
    if not scores:
        raise OutskirtsError(f"no score can be fitted: {next(iter(failed.values()))}")
    scored = score_sets(scores, outputs["test"], parts["test"].labels, sets, method=method, seed=seed, failed=failed)
    if r.shifted:  # full spectrum: shifted ID images count as ID
        wide = [outputs["test"], *(look(images) for images in run.inputs.shifted.values())]
        labels = torch.cat([o.labels for o in wide])
        told = {"method": method, "seed": seed, "failed": failed, "usual": scored}
        full = score_sets(scores, Outputs.cat(wide), labels, sets, **told)
        _save(path.with_name(path.name.replace("part-", "wide-", 1)), full)
    if keep:
        kept.keep(classifier, scores, r, outputs["calibration"], out / keep)
    _save(path, scored)  # last: its presence says that this classifier's part is whole
    return scored


def _blind(made: dict[str, Score], classifier, bank: Images, images: Images) -> Iterator[tuple[str, str]]:
    """(label, why) of the scores that cannot look at images with this classifier: those that learn from images see the bank, and all
    of them two others before the pass over all."""
    for label, s in made.items():
        try:
            if isinstance(s, Prepared):
                s.prepare(classifier, bank, bank.labels)
            if isinstance(s, Observer):
                collect(classifier, images.subset([0, 1]), observers=[s])
        except OutskirtsError as e:
            yield label, str(e)


def make_scores(recipe: Recipe, wanted: Sequence[str] | None = None) -> Iterator[tuple[str, Score]]:
    """(label, score) of `wanted`, or of every score of the recipe, with the settings that it gives them."""
    for label, name in map(labelled, (*recipe.scores, *recipe.plain_scores) if wanted is None else wanted):
        options, made = recipe.score_with.get(label, {}), find("scores", name)
        if lacks := [n for n in ("fit", "differentiable", "transductive") if not hasattr(made, n)]:
            raise OutskirtsError(
                f"the Score of {name} has no {lacks[0]!r}; give it one, `outskirts.types.Score` says what it is"
            )
        try:
            yield label, made(**options)
        except TypeError as e:
            raise OutskirtsError(
                f"score_with of {label!r}: {e}; `outskirts list scores` shows what each takes"
            ) from None


def _facts(run: Run, m: Method) -> dict[str, Any]:
    """What the plain classifier says of every outlier, before any training, and of ID validation images, to set it against."""
    ids, found = outliers(run, m)
    classifier = run.inputs.classifier()
    train, labels = collect(classifier, run.inputs.bank), run.inputs.bank.labels
    given = run.recipe.score_with.get("knn", {}).get("k")
    k = min(Neighbour.k, len(train)) if given is None else given  # as in scores.npz, beside which they are drawn
    scores = {
        "energy": Energy(),
        "knn": Neighbour(k=k).fit(train, labels),
        "nearest_id": Neighbour(k=1).fit(train, labels),
    }

    def facts(outputs: Outputs) -> dict[str, list[float]]:
        columns = {name: score(outputs) for name, score in scores.items()}
        columns["max_softmax"] = outputs.logits.softmax(-1).max(-1).values
        return {name: [round(v, 6) for v in values.tolist()] for name, values in columns.items()}

    return {
        "outliers": {"id": ids, **facts(_outputs(classifier, found))},
        "id_val": facts(collect(classifier, run.inputs.parts["val"])),
        "bank": len(train),
        "knn_k": k,
        **({"knn_k_capped_from": Neighbour.k} if given is None and k < Neighbour.k else {}),
    }


@torch.inference_mode()
def _outputs(classifier, found: Images | torch.Tensor) -> Outputs:
    """Outputs of outliers, whether they are images or features."""
    if isinstance(found, Images):
        return collect(classifier, found)
    logits = classifier.eval().head(found.to(next(classifier.parameters()).device)).float().cpu()
    return Outputs(logits, found.float())


def _examples(run: Run) -> dict[str, np.ndarray]:
    """Images of each test set, evenly spread over it, as UInt8[n, 3, H, W]."""
    sets = {"id": run.inputs.parts["test"], **{label: images for label, (_, images) in run.inputs.ood.items()}}
    size = run.recipe.size or run.inputs.parts["test"].size or run.inputs.classifier().size
    rows_of = {label: torch.linspace(0, len(x) - 1, min(EXAMPLES, len(x))).long() for label, x in sets.items()}
    return {label: x.subset(rows_of[label]).resized(size).pixels.numpy() for label, x in sets.items()} if size else {}


def _save(path: Path, scored: list[Scored]) -> None:
    arrays = {
        f"{i}/{side}": getattr(s, f"{side}_scores").numpy() for i, s in enumerate(scored) for side in ("id", "ood")
    }
    names = ("method", "seed", "score", "transductive", "set", "group", "id_accuracy", "excluded")
    facts = [{n: getattr(s, n) for n in names} for s in scored]
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as f:
        np.savez(f, facts=np.array(json.dumps(facts)), **arrays)
    temporary.replace(path)


def _load(path: Path) -> list[Scored]:
    with np.load(path) as arrays:
        facts = json.loads(str(arrays["facts"]))
        sides = [
            {f"{side}_scores": torch.from_numpy(arrays[f"{i}/{side}"]) for side in ("id", "ood")}
            for i in range(len(facts))
        ]
    return [Scored(**f, **s) for f, s in zip(facts, sides, strict=True)]
