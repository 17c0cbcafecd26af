"""The scout: a detector trained against all outliers, whose scores say how much like ID each of them still looks (Bad-OOD, stage 1)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.files import write_json
from outskirts.images import Images
from outskirts.losses import EnergyLogistic
from outskirts.models import Classifier, load_classifier
from outskirts.outlier_sets import parted, take
from outskirts.recipe import TrainSettings
from outskirts.train import LOSS, train
from outskirts.train_settings import LOSS_FIELDS, MI_FIELDS

SCORES = "scores.json"
"""What one scout says: ids, energy and phi of the outliers that it scores, energy_id and phi_id of held-out ID images, apart."""
Scored = Mapping[str, Float64[np.ndarray, " N"]]
"""score (energy, phi) -> its logit of P(ID) for each image, higher = more ID."""


def scout_settings(settings: TrainSettings, epochs: int | None) -> TrainSettings:
    """How a scout is trained: as `settings` say, always with the energy-logistic loss, which learns phi; without pairs of outliers
    and sources."""
    leave_out = dict.fromkeys(("mi", *MI_FIELDS))
    if settings.loss != "energy_logistic":  # lam belongs to its loss
        leave_out |= {"loss": "energy_logistic", "lam": TrainSettings.lam, **dict.fromkeys(LOSS_FIELDS)}
    return dataclasses.replace(settings, **leave_out, **({} if epochs is None else {"epochs": epochs}))


def fold_of(ids: Sequence[int], folds: int) -> list[int]:
    """Which scout scores each outlier: parts of equal size, by the hash of the id, since ids visit the classes in turn."""
    order = sorted(ids, key=lambda i: hashlib.sha256(f"fold/{i}".encode()).digest())
    place = {i: n % folds for n, i in enumerate(order)}
    return [place[i] for i in ids]


def fit_scouts(
    classifier: Classifier,
    parts: Mapping[str, Images],
    ids: Sequence[int],
    found: Images | Tensor,
    out: Path,
    settings: TrainSettings,
    *,
    folds: int = 1,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train `folds` scouts from `classifier` and write SCORES of each into `out`/fold-F; what is there is read, not made again.

    One scout scores what it was trained on; of several, each trains on the other parts and scores its own. `parts` are the ID
    images train and val, and those of train.vae_roundtrip where it is set; val trains nothing. Like every training, a scout leaves
    a tenth of its outliers out: `apart`.
    """
    if len(ids) < 2 * folds:
        raise OutskirtsError(
            f"{len(ids)} outliers for {folds} scouts; make more of them, or give a smaller filter.cross_fit"
        )
    fold, said = torch.tensor(fold_of(ids, folds)), []
    for f in range(folds):
        folder = out / f"fold-{f}"
        if not (folder / SCORES).is_file():
            trains, scores = (fold != f, fold == f) if folds > 1 else (fold == 0, fold == 0)
            known = [i for i, t in zip(ids, trains.tolist(), strict=True) if t]
            mine, rest, _, apart = parted(known, take(found, trains))
            known = {"roundtrip": parts.get("roundtrip"), **options}
            train(classifier, parts["train"], mine, parts["val"], rest, folder, settings, seed, **known)
            of_id = logits_of(folder, parts["val"], options.get("device"))
            of_outliers = logits_of(folder, take(found, scores), options.get("device"))
            of_apart = logits_of(folder, rest, options.get("device"))
            facts = {"id": [i for i, s in zip(ids, scores.tolist(), strict=True) if s], "apart": apart}
            for name in ("energy", "phi"):
                facts |= {name: _plain(of_outliers[name]), f"{name}_id": _plain(of_id[name])}
                facts |= {f"{name}_apart": _plain(of_apart[name])}
            write_json(folder / SCORES, facts)
        said.append(json.loads((folder / SCORES).read_text()))
    return said


def logits_of(folder: Path, images: Images | Tensor, device: str | None = None) -> dict[str, Float64[np.ndarray, " N"]]:
    """`energy` (-E) and `phi` (the log-odds of ID) of images, or of features [N, D], by the scout in `folder`; NaN stays NaN."""
    from outskirts.inputs import device as available

    classifier = load_classifier(folder).to(available(device or "auto"))
    if isinstance(images, Images):
        logits = collect(classifier, images).logits
    else:
        with torch.inference_mode():
            logits = classifier.head(images.to(next(classifier.parameters()).device)).float().cpu()
    with torch.inference_mode():
        phi = load_phi(folder).log_odds(logits)
    # Bad-OOD eq. 6 as P(ID): s = sigmoid(-E), so that -E = logsumexp is its logit; its formula sigmoid(E) is P(OOD)
    return {"energy": logits.double().logsumexp(1).numpy(), "phi": phi.double().numpy()}


def load_phi(folder: Path) -> EnergyLogistic:
    """phi, as training against outliers left it in `folder`."""
    with torch.random.fork_rng(devices=[]):
        loss = EnergyLogistic()
    try:
        loss.load_state_dict(load_file(folder / LOSS))
    except (OSError, SafetensorError, RuntimeError) as e:
        raise OutskirtsError(f"no phi in {folder / LOSS} ({str(e).splitlines()[0]}); train the scout again") from e
    return loss.eval()


def _plain(values: Float64[np.ndarray, " N"]) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [v if np.isfinite(v) else None for v in values.tolist()]
