"""Does the decoder show? ID images that were only encoded and decoded, beside the real ones.

A detector that is trained against decoded images can learn "decoded" instead of "unusual"; where these numbers are far from
0.5 it has the chance to.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from outskirts.evaluate import collect
from outskirts.images import Images, spread
from outskirts.metrics import ood_metrics
from outskirts.scores.energy import Score as Energy
from outskirts.synth._shared import seed_of, to_uint8

FOLDS = 5
SHOWS = 0.75
"""AUROC of the linear probe, and of a scout, from which a warning is given."""
ARTEFACTS = "artefacts.safetensors"
"""Beside the store: what a scout of the outliers is shown."""
log = logging.getLogger("outskirts")


def artefacts(
    decoder, images: Images, classifier, n: int, *, batch_size: int, device
) -> tuple[dict[str, Any], dict[str, UInt8[Tensor, "n 3 H W"]]]:
    """What tells `n` of `images` from themselves after encode and decode, unperturbed; and the two, `real` and `decoded`.

    artefact_auroc        of the classifier's energy, decoded images as OOD; 0.5: as good as real
    artefact_probe_auroc  of a linear probe on the classifier's features, cross-validated by pairs: what a detector could learn
    decoded_same          share that the classifier gives the same class
    decoded_cosine        mean cosine of the embedding to that of the decoded image, each less the mean embedding
    """
    real = spread(images, n)
    size = images.size or classifier.size
    real = real if size is None else real.resized(size)
    pixels = torch.stack([real[i][0] for i in range(len(real))])
    z, made = [], []
    for i in range(0, len(real), batch_size):
        part = pixels[i : i + batch_size].to(device)
        z.append(decoder.encode(part).float())
        made.append(to_uint8(decoder.decode(z[-1], [generator_of(j) for j in range(i, i + len(part))])).cpu())
    decoded = torch.cat(made).float() / 255
    z = torch.cat(z)
    again = torch.cat([decoder.encode(part.to(device)).float() for part in decoded.split(batch_size)])
    before, after = (collect(classifier, x) for x in (pixels, decoded))
    energy = Energy()
    found = {
        "artefact_auroc": ood_metrics(energy(before), energy(after))["auroc"],
        "artefact_probe_auroc": _probe(before.features, after.features),
        "decoded_same": float((before.logits.argmax(1) == after.logits.argmax(1)).double().mean()),
        "decoded_cosine": float(torch.cosine_similarity(z - z.mean(0), again - z.mean(0)).mean()),
    }
    if found["artefact_probe_auroc"] > SHOWS:
        log.warning(
            "a linear probe tells decoded ID images from real ones with AUROC %.2f: a detector may learn the decoder's traces instead of what is "
            "unusual; train the decoder longer, or take decoder=none",
            found["artefact_probe_auroc"],
        )
    return found, {"real": to_uint8(pixels), "decoded": torch.cat(made)}


def generator_of(seed: int) -> torch.Generator:
    """The one that decodes: apart from the stream that made the representation."""
    return torch.Generator().manual_seed(seed_of(seed, 1))


def _probe(real: Float[Tensor, "n D"], decoded: Float[Tensor, "n D"]) -> float:
    """Cross-validated; both images of a pair are in one fold, so that no probe has seen the other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = len(real)
    X, y = torch.cat([real, decoded]).double().numpy(), [0] * n + [1] * n
    groups: Sequence[int] = [*range(n), *range(n)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(probe, X, y, groups=groups, cv=GroupKFold(FOLDS), method="decision_function")
    return ood_metrics(scores[:n], scores[n:])["auroc"]
