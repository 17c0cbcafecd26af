"""The steps of a filter in a run: train scouts, calibrate what they say, and leave a verdict on every outlier."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from outskirts import calibration, calibration_sets, filter, roundtrips
from outskirts.checks import HASHED, pixel_hashes
from outskirts.data import choose_classes
from outskirts.errors import OutskirtsError
from outskirts.filter_settings import FilterSettings
from outskirts.images import Images, unlabelled
from outskirts.methods import Method, methods
from outskirts.metrics import ood_metrics
from outskirts.outlier_sets import VERDICT, labels_of, made, store_of, take
from outskirts.run import Run, Step, read_json, write_json
from outskirts.scout import SCORES, fit_scouts, logits_of, scout_settings
from outskirts.settings import as_plain
from outskirts.synth._artefact import ARTEFACTS, SHOWS
from outskirts.tensors import read

FACTS, TWIN = "filter.json", "twin.json"
WORDS = {
    "constructed": "images constructed from held-out ID images",
    "given": "OOD validation images",
    "held_out_classes": "images of ID classes that a second scout does not know",
    "synthetic": "outliers that the scout did not train on",
    "rank": "nothing: P(ID) is the share of outliers that look less like ID",
}
log = logging.getLogger("outskirts")


def check(run: Run, todo: Sequence[Step]) -> None:
    """Raise OutskirtsError for what would only fail after a scout is trained: too few held-out images or outliers, a side that is missing."""
    folders = {step.folder for step in todo}
    for m in (x for x in methods(run.recipe) if x.filtered and x.filtered.verdict in folders):
        s, parts = m.filtered.settings, run.inputs.parts
        if s.rank:
            continue
        if s.calibration == "held_out_classes" and run.recipe.classifier != "fit":
            raise OutskirtsError(
                f"filter.calibration=held_out_classes trains a classifier that does not know some classes, and classifier={run.recipe.classifier} "
                "is given; take classifier=fit, or calibration=constructed"
            )
        sides = {"ID": parts["val"]}
        if s.calibration == "held_out_classes":
            known, unknown = _sides(parts, s)
            sides = {"ID": known["val"], "OOD": unknown}
        elif s.calibration == "given":
            sides["OOD"] = run.inputs.named(s.images)
            _seen_elsewhere(run, s.images, sides["OOD"])
        elif s.calibration == "synthetic" and (n := _n_outliers(run, m, {step.folder for step in todo})) is not None:
            calibration_sets.enough_apart(m.label, n, s.cross_fit)
        for side, images in sides.items():
            if len(images) < calibration.NEEDED:
                what = "ID images, or id_val=NAME" if side == "ID" else "OOD validation images, or of other classes"
                raise OutskirtsError(
                    f"filter: {len(images)} {side} images ({images.name}) are held out from training, and a calibration needs {calibration.NEEDED} "
                    f"a side; give more {what}, or filter.calibration=rank"
                )


def scout(m: Method, run: Run, out: Path) -> None:
    """4-filter/scout: the detectors that judge a method's outliers, and what they say."""
    r, s, (ids, found) = run.recipe, m.filtered.settings, made(run, m)
    for x in (x.filtered.settings for x in methods(r) if x.filtered and x.filtered.scout == m.filtered.scout):
        if x.calibration == "synthetic":  # some may have failed
            calibration_sets.enough_apart(m.label, len(ids), s.cross_fit)
    options = {"folds": s.cross_fit, "seed": r.seed, "device": r.device, "progress": run.progress}
    settings = scout_settings(r.train, s.epochs)
    fit_scouts(run.inputs.classifier(), _parts(run, m), ids, found, out, settings, **options)


def twin(m: Method, run: Run, out: Path) -> None:
    """4-filter/twin: a scout, from a classifier of its own, that knows neither some classes nor the outliers made for them."""
    from outskirts.fit_classifier import fit_classifier

    r, s, (ids, found) = run.recipe, m.filtered.settings, made(run, m)
    if not isinstance(found, Images):
        raise OutskirtsError(
            f"filter.calibration=held_out_classes trains another classifier, and the outliers of {m.label} are features of the first one; "
            "take calibration=constructed"
        )
    options = {"device": r.device, "progress": run.progress}
    known, unknown = _sides(_parts(run, m), s)
    gone = calibration_sets.classes_out(len(run.inputs.parts["train"].classes), s.classes_out)
    rows = [n for n, y in enumerate(labels_of(run, m, ids)) if y not in gone]
    fresh = fit_classifier(known["train"], known["val"], out / "classifier", r.fit_classifier, size=r.size, **options)
    mine = [ids[n] for n in rows]
    fit_scouts(fresh, known, mine, take(found, rows), out, scout_settings(r.train, s.epochs), seed=r.seed, **options)
    scores = logits_of(out / "fold-0", unknown, r.device)
    classes = [run.inputs.parts["train"].classes[y] for y in gone]
    write_json(out / TWIN, {"classes": classes, **{k: v.tolist() for k, v in scores.items()}})


def verdict(m: Method, run: Run, out: Path) -> None:
    """4-filter/verdict: P(ID), band, keep and reason of every outlier; and in the store itself, where the method made it."""
    s = m.filtered.settings
    said = [read_json(run.folder / m.filtered.scout / f"fold-{f}" / SCORES) for f in range(s.cross_fit)]
    columns: dict[str, list] = {k: [v for fold in said for v in fold[k]] for k in ("id", "energy", "phi")}
    columns["fold"] = [f for f, fold in enumerate(said) for _ in fold["id"]]
    columns["label"] = labels_of(run, m, columns["id"])
    judged = [_judge(run, m, f, fold) for f, fold in enumerate(said)]
    p_id, p_val = (np.concatenate([j[i] for j in judged]) for i in range(2))
    reports = [j[2] for j in judged if j[2]]
    choice = filter.choose(columns["id"], p_id, columns["label"], s)
    warnings = filter.warnings_of(choice, s, p_val, reports)
    if any(fold_log(run, m, f)["energy_check"]["inverted"] for f in range(s.cross_fit)):
        warnings.append(
            "the scout ended with less energy for outliers than for ID images: it may call ID-like what is far; try train.phi=monotone"
        )
    if (traces := _traces(run, m, s)) is not None and traces > SHOWS:
        warnings.append(
            f"the scout tells decoded ID images from real ones with AUROC {traces:.2f}: its word may be on the decoder; train.vae_roundtrip=true "
            "shows it decoded ID images"
        )
    for line in warnings:
        log.warning("filter of %s: %s", m.label, line)
    columns |= {"p_id": [v if np.isfinite(v) else None for v in p_id.tolist()], **choice._asdict()}
    if not m.shares and (store := store_of(run, m)) is not None:
        by_hand = store.dropped(filtered=False)
        extra = {k: [*columns[k], *[None] * len(by_hand)] for k in ("p_id", "band")}
        keep, reason = [*choice.keep, *[False] * len(by_hand)], [*choice.reason, *by_hand.values()]
        store.select([*columns["id"], *by_hand], keep, reason, **extra)
    facts = {"method": m.label, "settings": as_plain(s), "ends": s.ends, "against": against(run, m), "reports": reports}
    facts |= {} if traces is None else {"artefact_auroc": traces}
    facts |= {"counts": filter.counts(choice), "warnings": warnings, "p_id_val": p_val.tolist()}
    write_json(out / FACTS, facts)
    write_json(out / VERDICT, columns)


def fold_log(run: Run, m: Method, f: int) -> dict[str, Any]:
    """The training log of a scout."""
    return read_json(run.folder / m.filtered.scout / f"fold-{f}" / "log.json")


def against(run: Run, m: Method) -> str:
    """What the filter was calibrated on, in words."""
    s = m.filtered.settings
    words = WORDS[s.calibration] + (f" ({s.images})" if s.images else "")
    if m.filtered.twin:
        words += f" ({', '.join(read_json(run.folder / m.filtered.twin / TWIN)['classes'])})"
    return words


def _judge(run: Run, m: Method, f: int, fold: dict) -> tuple[Any, Any, dict | None]:
    """(P(ID) of the outliers of a fold, of held-out ID images, the report of the map)."""
    s = m.filtered.settings
    u, u_val = _logits(fold[s.score]), _logits(fold[f"{s.score}_id"])
    if s.rank:
        return filter.rank(u, u), filter.rank(u_val, u), None
    u_id, u_ood = (u_val, _ood(run, m, f, fold)) if not m.filtered.twin else _of_twin(run.folder / m.filtered.twin, s)
    fitted = calibration.fit(u_id, u_ood, s.calibrator or "beta", balance=s.balance)
    if np.ptp(fitted(np.concatenate([u_id, u_ood]))) < 1e-6 and s.band != "none":
        raise OutskirtsError(
            f"filter of {m.label}: the scout's {s.score} is no higher on held-out ID images than on {against(run, m)}, so no P(ID) rises with it; "
            "train the scout with train.phi=monotone, or take another filter.calibration"
        )
    finite = np.isfinite(u)
    p = np.where(finite, fitted(np.where(finite, u, 0.0)), np.nan)
    return p, fitted(u_val), calibration.report(fitted, u_id, u_ood, balance=s.balance)


def _ood(run: Run, m: Method, f: int, fold: dict) -> Float[np.ndarray, " N"]:
    """Logits of the OOD side of the calibration set."""
    s = m.filtered.settings
    if s.calibration == "synthetic":
        return _logits(fold[f"{s.score}_apart"])
    folder, val = run.folder / m.filtered.scout / f"fold-{f}", run.inputs.parts["val"]
    if s.calibration == "given":
        images = run.inputs.named(s.images)
    else:
        images = calibration_sets.constructed(val, run.inputs.classifier().size, seed=s.seed)
    return logits_of(folder, images, run.recipe.device)[s.score]


def _of_twin(folder: Path, s: FilterSettings) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " M"]]:
    known, unknown = read_json(folder / "fold-0" / SCORES), read_json(folder / TWIN)
    return _logits(known[f"{s.score}_id"]), _logits(unknown[s.score])


def _traces(run: Run, m: Method, s: FilterSettings) -> float | None:
    """AUROC of the scout's score, held-out ID images that were only decoded against the same ones before; None where nothing is decoded."""
    path = run.folder / m.store / ARTEFACTS
    if not (m.store and path.is_file()):
        return None
    seen, found = read(path), []
    for f in range(s.cross_fit):
        folder = run.folder / m.filtered.scout / f"fold-{f}"
        sides = (Images(k, [], unlabelled(len(seen[k])), seen[k]) for k in ("real", "decoded"))
        u = [logits_of(folder, images, run.recipe.device)[s.score] for images in sides]
        found.append(ood_metrics(*(-x for x in u))["auroc"])
    return float(np.mean(found))


def _parts(run: Run, m: Method) -> dict[str, Images]:
    """The ID images of the run; with train.vae_roundtrip, those that went through what made the outliers of `m` too."""
    if not run.recipe.train.vae_roundtrip:
        return run.inputs.parts
    return {**run.inputs.parts, "roundtrip": roundtrips.images(run, m, methods(run.recipe))}


def _sides(parts: dict[str, Images], s: FilterSettings) -> tuple[dict[str, Images], Images]:
    """(train, val and roundtrip of the classes that the twin knows, held-out images of the others, which nothing of it has seen)."""
    K = len(parts["train"].classes)
    gone = calibration_sets.classes_out(K, s.classes_out)
    stay = ",".join(str(y) for y in range(K) if y not in gone)
    known = {name: choose_classes(parts[name], stay) for name in ("train", "val", "roundtrip") if name in parts}
    return known, choose_classes(parts["train"], ",".join(map(str, gone)))


def _logits(values: Sequence[float | None]) -> Float[np.ndarray, " N"]:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _n_outliers(run: Run, m: Method, todo: Collection[str]) -> int | None:
    """How many outliers a method has, or will have if none fails; none where only its synthesizer knows."""
    first = methods(run.recipe)[0]
    if m.store and m.store != first.store and m.store in todo:  # as many as the first one's
        return _n_outliers(run, first, todo)
    if m.store and m.store in todo:
        return run.recipe.n_outliers
    if (store := store_of(run, m)) is None:
        return len(run.inputs.outliers)
    return len(store.ids() - store.failed().keys() - store.dropped(filtered=False).keys()) or None


def _seen_elsewhere(run: Run, name: str, images: Images) -> None:
    """Warn of OOD validation images that are tested too, or are ID images. Raises OutskirtsError where half of them are ID images."""
    mine = _hashes(images)
    for label, (_, tested) in run.inputs.ood.items() if mine else ():
        if n := sum(count for h, count in _hashes(tested).items() if h in mine):
            said = "filter: %d images of filter.images=%s are in the test set %s too: its figures are a ceiling"
            log.warning(said, n, name, label)
    known = set().union(*map(_hashes, run.inputs.parts.values())) if mine else set()
    if n := sum(count for h, count in mine.items() if h in known):
        said = f"filter: {n} of {len(images)} images of filter.images={name} are ID images, pixel by pixel"
        if 2 * n >= len(images):
            raise OutskirtsError(
                f"{said}, and the filter would take them for OOD; give images of none of the ID classes"
            )
        log.warning("%s, and calibrated on as OOD: leave them out", said)


def _hashes(images: Images) -> Counter:
    """Those of its pictures; none of a set that is too large to be decoded for that."""
    return pixel_hashes(images) if images.pixels is not None or len(images) <= HASHED else Counter()
