"""From ID images, outliers and words to a tuned CLIP detector: features once, negative labels, tunings, measurements, log.

Writes detector/ (like any other detector), 6-bench/ (rows.json, differences.json, scores.npz: NegLabel before and after, where there are
test sets) and log.json. SynOOD, arXiv 2507.10225.
"""

import copy
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outskirts import metrics
from outskirts.clip import Clip, Cosine, clip_of
from outskirts.clip_settings import VARIANTS, ClipTuneSettings
from outskirts.clip_tune import Pairs, Tuned, nearest, tune
from outskirts.data import load
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect, compare, rows
from outskirts.files import writable, write_json
from outskirts.images import Images, unlabelled
from outskirts.inputs import Inputs
from outskirts.loop import require_same
from outskirts.methods import PLAIN
from outskirts.models import Classifier
from outskirts.negatives import read_words
from outskirts.run import read_json
from outskirts.scored import Scored, score_sets, to_arrays
from outskirts.scores.neglabel import Score
from outskirts.settings import as_plain
from outskirts.stamp import short_hash, stamp
from outskirts.store import Store, joined
from outskirts.threshold import Threshold
from outskirts.types import Outputs

LISTED = 10
"""Labels that the log names: those that most outliers have."""


@dataclass(frozen=True)
class Variant:
    """CLIP with or without a projection, and NegLabel with or without tuned labels."""

    name: str
    project: nn.Module
    head: Cosine
    score: Score

    def __call__(self, raw: Outputs) -> Outputs:
        """What this variant's classifier says, from the features of CLIP as it is."""
        features = self.project(raw.features)
        return replace(raw, features=features, logits=self.head(features))


def clip_tune(
    inputs: Inputs,
    outliers: Images | Sequence[str],
    words: Sequence[str],
    out: str | os.PathLike,
    settings: ClipTuneSettings,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Tune the CLIP classifier of `inputs` and write the folder `out`; returns what log.json holds. Called again, reads that.

    `inputs` gives the classifier, ID images in their parts and the OOD test sets; `outliers` are images, or names as `load_outliers`
    takes them; `words` are word lists as `read_words` takes them.
    Raises OutskirtsError for another classifier than CLIP, too few words or ID images, and a folder made from something else.
    """
    classifier, parts, out = inputs.classifier().frozen(), inputs.parts, writable(out)
    outliers = outliers if isinstance(outliers, Images) else load_outliers(outliers, classifier.size)
    identity = {
        **as_plain(settings),
        "classifier": classifier.fingerprint(),
        "words": short_hash(read_words(words)),
        **{part: images.fingerprint for part, images in (*parts.items(), ("outliers", outliers))},
        "sets": {label: images.fingerprint for label, (_, images) in inputs.ood.items()},
    }
    if (earlier := read_json(out / "log.json")) is not None:
        require_same(earlier["made_from"], identity, out)
        return earlier
    net = clip_of(classifier, "clip-tune")
    score = Score(",".join(words), None, settings.groups, settings.tau, settings.share, settings.quantile)
    negatives = score.mined(classifier)
    plain = Variant(PLAIN, nn.Identity(), _head(net), score.with_labels(negatives, net.head.logit_scale.exp().item()))
    Threshold.from_id(torch.zeros(len(parts["calibration"])), settings.keep)  # too few are told before any work

    def look(images: Images, what: str) -> Outputs:
        return collect(classifier, images, progress=f"CLIP, {what}" if progress else None)

    seen = {name: look(images, name) for name, images in parts.items()}
    sets = {label: (group, look(images, label)) for label, (group, images) in inputs.ood.items()}
    mine, seen["apart"] = _split(look(outliers, "outliers"), settings.held_out)
    kept, labels = nearest(mine.features, plain.score.negatives_, settings.cap)
    pairs = Pairs(seen["train"].features, seen["train"].labels, mine.features[kept], labels)

    found: dict[str, list[Scored]] = {}
    lines = []
    for seed in settings.seeds:
        made = variants(plain, pairs, negatives.features, net, settings, seed)
        for v, epochs in ([] if found else [(plain, None)]) + made:
            threshold = Threshold.from_id(v.score(v(seen["calibration"])), settings.keep)
            facts = {"variant": v.name, "seed": seed, "threshold": threshold.value, **_facts(v, plain, seen, pairs)}
            lines.append(facts | ({"epochs": epochs} if epochs else {}))
            now = {label: (group, v(o)) for label, (group, o) in sets.items()}
            test = v(seen["test"])
            found.setdefault(v.name, []).extend(
                score_sets({"neglabel": v.score}, test, test.labels, now, method=v.name, seed=seed)
            )
            if (v.name, seed) == (VARIANTS[settings.mode][-1], settings.seeds[0]):
                Detector(with_projection(classifier, v.project), v.score, threshold).save(out / "detector")
    if sets:
        _write(writable(out / "6-bench"), found)
    log = {
        "clip": {k: getattr(net, k) for k in Clip.FACTS} | {"features": classifier.feature_dim},
        "images": {k: len(o) for k, o in seen.items() if k != "apart"}
        | {"outliers": len(mine), "held_out_outliers": len(seen["apart"]), "left_out_by_cap": len(mine) - len(kept)},
        "labels": _labels(plain.score, pairs),
        "variants": lines,
        "made_from": identity,
        "stamp": stamp(seeds=settings.seeds),
    }
    write_json(out / "log.json", log)  # last: its presence says that the folder is whole
    return log


def variants(
    plain: Variant, pairs: Pairs, negatives: Float[Tensor, "M D"], net: Clip, settings: ClipTuneSettings, seed: int
) -> list[tuple[Variant, list[dict] | None]]:
    """The tunings of one seed as `settings.mode` asks for them, on the device of `net`: (variant, its losses if it was trained)."""
    text = net.head.text
    on = Pairs(*(getattr(pairs, f.name).to(text.device) for f in fields(pairs)))
    sides = [s for s in VARIANTS[settings.mode] if s != "both"]
    scale = plain.score.scale_
    tuned = {s: tune(on, text, negatives.to(text.device), scale, settings, seed, side=s) for s in sides}
    if "both" in VARIANTS[settings.mode]:
        tuned["both"] = Tuned(tuned["projection"].project, tuned["labels"].labels, [])
    return [
        (
            Variant(
                name,
                t.project.cpu(),
                plain.head,
                plain.score if t.labels is None else plain.score.tuned(pairs.used, t.labels.cpu()),
            ),
            t.epochs or None,
        )
        for name, t in tuned.items()
    ]


def with_projection(classifier: Classifier, project: nn.Module) -> Classifier:
    """The CLIP classifier with `project` between its image features and its texts; the image side is shared, not copied."""
    net = clip_of(classifier, "with_projection")
    facts = {k: getattr(classifier, k) for k in ("classes", "size", "mean", "std", "layer", "source", "interpolation")}
    device = net.head.text.device
    told = {k: getattr(net, k) for k in Clip.FACTS}
    return Classifier(
        Clip(net.vision, copy.deepcopy(project).to(device), _head(net).to(device), **told), **facts
    ).frozen()


def load_outliers(names: Sequence[str], size: tuple[int, int]) -> Images:
    """Outliers at `size`: stores (that of a run by the run's folder), folders of images, or image sets by name."""
    found = []
    for name in names:
        folder = Path(name.removeprefix("store:")).expanduser()
        places = (folder / below for below in ("", "store", "3-synth/store"))
        store = next((p for p in places if (p / "store.json").is_file()), None)
        if store is not None or name.startswith("store:"):
            found.append(Store(store or folder).images(size)[1])
        else:
            images = load(f"folder:{name}" if folder.is_dir() else name)
            found.append(replace(images, classes=[], labels=unlabelled(len(images))).resized(size))
    return joined(found)


def _head(net: Clip) -> Cosine:
    return Cosine(net.head.text.cpu(), net.head.logit_scale.item())


def _split(outliers: Outputs, share: float) -> tuple[Outputs, Outputs]:
    """(for tuning, held out): a share of the outliers, at least one, drawn without regard to their order."""
    if len(outliers) < 2:
        raise OutskirtsError(f"{len(outliers)} outlier to tune on and to hold out; make more of them")
    order = torch.randperm(len(outliers), generator=torch.Generator().manual_seed(0))
    n = max(1, round(share * len(outliers)))
    return outliers[order[n:].sort().values], outliers[order[:n].sort().values]


def _labels(score: Score, pairs: Pairs) -> dict[str, Any]:
    """Negative labels: how many, how many of them outliers have, and those that most have."""
    words, counts = score.labels_.split("\n"), Counter(pairs.rows.tolist())
    most = [[words[row], n] for row, n in counts.most_common(LISTED)]
    return {"negative": len(words), "used": len(counts), "most_used": most}


def _facts(v: Variant, plain: Variant, seen: dict[str, Outputs], pairs: Pairs) -> dict[str, Any]:
    """On images that no tuning saw: accuracy, how ID images and outliers are told apart, and what moved."""
    val, raw = v(seen["val"]), seen["val"].features
    scores = v.score(val), v.score(v(seen["apart"]))
    low, high = metrics.interval(metrics.bootstrap(*scores)["auroc"])
    moved = (v.score.negatives_ - plain.score.negatives_)[pairs.used].norm(dim=-1)
    return {
        "val_accuracy": (val.logits.argmax(1) == val.labels).double().mean().item(),
        "held_out_auroc": metrics.ood_metrics(*scores)["auroc"],
        "held_out_auroc_lo": low,
        "held_out_auroc_hi": high,
        "image_cosine": F.cosine_similarity(val.features, raw).mean().item(),
        "image_moved": ((val.features - raw).norm(dim=-1) / raw.norm(dim=-1)).mean().item(),
        "label_cosine": (1 - moved.square() / 2).mean().item(),
    }


def _write(folder: Path, found: dict[str, list[Scored]]) -> None:
    """Rows of every variant, and each against CLIP as it is; both sides together against each alone, too."""
    pairs = [(PLAIN, name) for name in found if name != PLAIN]
    pairs += [(name, "both") for name in ("labels", "projection") if "both" in found]
    scored = [s for group in found.values() for s in group]
    write_json(folder / "rows.json", rows(scored))
    write_json(folder / "differences.json", [d for a, b in pairs for d in compare(found[a], found[b])])
    np.savez_compressed(folder / "scores.npz", **to_arrays(scored))
