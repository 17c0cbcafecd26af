"""Train a classifier on ID images and outliers: L = cross-entropy(ID) + lam * L_ood, GOOD eq. 8 (arXiv 2510.17131).

ID images and outliers go through one forward pass, after the same resize and augmentation: with separate passes, or
separate pipelines, BatchNorm statistics or file artefacts would tell them apart.
"""

import copy
import math
import os

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from outskirts.club import decoupling
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.files import writable, write_json
from outskirts.images import Images
from outskirts.loop import (
    Checkpoint,
    accelerator,
    accuracy,
    augment,
    epoch_randomness,
    rate,
    set_rate,
    sgd,
)
from outskirts.losses import outlier_loss, population_mean
from outskirts.models import Classifier, check_classes, load_classifier
from outskirts.pairs import both, mixed, pairs
from outskirts.progress import bar
from outskirts.recipe import TrainSettings

LAST_LR = 1e-6
LOSS = "loss.safetensors"
"""What the outlier loss learned beside the classifier, where it learns anything."""
PROBE = 512
"""Images of each population that place phi before training."""


def train(
    classifier: Classifier,
    train: Images,
    outliers: Images | Float[Tensor, "N D"],
    val: Images,
    held_out_outliers: Images | Float[Tensor, "M D"],
    out: str | os.PathLike,
    settings: TrainSettings,
    seed: int = 0,
    *,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = True,
    sources: Int64[Tensor, "N"] | None = None,
    roundtrip: Images | None = None,
) -> Classifier:
    """A copy of `classifier` trained against `outliers`, saved in the folder `out` with `log.json`.

    `outliers` are images, or features [N, D] that join after the penultimate layer. `log.json` holds `epochs` (epoch,
    loss, loss_id, loss_ood, val_accuracy, lr) and `energy_check`: mean energies of `val` and `held_out_outliers` before
    and after, and `inverted`, true where outliers do not end with the higher energy; of loss=energy_margin, `margins` too. With
    settings.mi, which needs `sources`, the row of `train` that each outlier was made from, epochs have the facts of `Decoupling` too;
    settings.vae_roundtrip needs `roundtrip`, images of `train` after a pass through the codec or decoder of the outliers, labelled as there.

    Depends on `seed` and nothing else that is random; stopped and called again with the same arguments it continues
    after the last whole epoch. `device` is `auto`, `cpu`, `cuda:1`, ..., `precision` `fp32` or `bf16`. Raises
    OutskirtsError for classes that do not match, no outliers, a loss that is no longer finite.
    """
    check_classes(classifier, train)
    _check_outliers(classifier, outliers, settings)
    _check_outliers(classifier, held_out_outliers, settings)
    size = classifier.size or train.size
    if size is None:
        raise OutskirtsError(f"{train.name}: images may differ in size and the classifier takes any; give it a size")
    out = writable(out)
    outliers, held_out_outliers = (
        x.resized(size) if isinstance(x, Images) else x for x in (outliers, held_out_outliers)
    )
    accel = accelerator(device, precision)
    before = classifier.to(accel.device)
    joint = _joint(before, train, outliers, settings, seed)
    pairing = decoupling(before, train, outliers, sources, settings, seed, accel.device)
    kept = joint if pairing is None else nn.ModuleList([joint, pairing.club])
    optimizer = sgd(joint.parameters(), settings.lr, settings.weight_decay)
    id_images = both(train, roundtrip) if settings.vae_roundtrip else train
    checkpoint = Checkpoint.of(
        out,
        settings,
        seed=seed,
        classifier=before.fingerprint(),
        train=id_images.fingerprint,
        outliers=_fingerprint(outliers),
    )
    done, log = checkpoint.load(kept, optimizer)
    model, optimizer = accel.prepare(joint, optimizer)

    batches = steps_of(settings, len(train))
    steps, note = settings.epochs * batches, ""
    show = progress and accel.is_main_process
    with bar(f"train, seed {seed}", total=steps, done=done * batches, show=show) as advance:
        for epoch in range(done, settings.epochs):
            sums = torch.zeros(2, device=accel.device)
            model.train()
            if pairing is not None:
                pairing.begin()
            with epoch_randomness(seed, epoch) as generator:
                steps_of_epoch = pairs(
                    id_images, outliers, size, batches, settings, accel, generator, sources if pairing else None
                )
                for step, (images, labels, features) in enumerate(steps_of_epoch, start=epoch * batches):
                    set_rate(optimizer, rate(step, steps, settings.lr, last=LAST_LR))
                    images = augment(images.to(accel.device), settings.augment, generator)
                    labels, features = labels.to(accel.device), features.to(accel.device)
                    soft = ()
                    if settings.loss == "mixoe":
                        images, *soft = mixed(images, labels, settings, generator)
                    with accel.autocast():
                        logits, seen, values, is_id = model(images, features, len(labels), *soft)
                    loss_id = F.cross_entropy(logits[: len(labels)], labels)
                    loss_ood = population_mean(values, is_id)
                    loss = loss_id + settings.lam * loss_ood  # GOOD eq. 8
                    if pairing is not None:
                        y = seen[len(labels) :]
                        loss = loss + settings.mi * pairing(seen[: len(y)], y, accel.gather)  # SONA eq. 8
                    optimizer.zero_grad()
                    accel.backward(loss)
                    accel.clip_grad_norm_(model.parameters(), settings.clip_norm)
                    optimizer.step()
                    sums += torch.stack([loss_id, loss_ood]).detach()
                    advance(1, note)
            loss_id, loss_ood = (accel.reduce(sums, "mean") / batches).tolist()
            mi = {} if pairing is None else pairing.facts()
            loss = loss_id + settings.lam * loss_ood + (settings.mi * mi["mi_bound"] if mi else 0.0)
            if not math.isfinite(loss):
                raise OutskirtsError(
                    f"the loss is not finite after epoch {epoch + 1}; lower lr ({settings.lr}) or clip_norm ({settings.clip_norm})"
                )
            right, lr = accuracy(joint.classifier, val), optimizer.param_groups[0]["lr"]
            facts = {"epoch": epoch + 1, "loss": loss, "loss_id": loss_id, "loss_ood": loss_ood}
            log.append({**facts, "val_accuracy": right, "lr": lr, **mi})
            note = f"val accuracy {right:.3f}"
            if accel.is_main_process:
                checkpoint.save(epoch + 1, kept, optimizer, log)
    trained = accel.unwrap_model(model, keep_fp32_wrapper=False).classifier.eval()
    if accel.is_main_process:
        check = energy_check(before, trained, val, held_out_outliers)
        margins = {k: getattr(joint.loss, k) for k in ("m_in", "m_out") if hasattr(joint.loss, k)}
        facts = {"epochs": log, "energy_check": check, **({"margins": margins} if margins else {})}
        write_json(out / "log.json", facts)
        if learned := {k: v.detach().cpu().contiguous() for k, v in joint.loss.state_dict().items()}:
            save_file(learned, out / LOSS)  # phi: what the scout of a filter is asked for
        trained.save(out)
        checkpoint.remove()
    accel.wait_for_everyone()  # BatchNorm statistics are the main process's
    return trained if accel.is_main_process else load_classifier(out).to(accel.device)


def steps_of(settings: TrainSettings, n_train: int) -> int:
    """Steps of one epoch over `n_train` ID images."""
    whole = max(1, n_train // settings.batch_size)
    return whole if settings.steps is None else min(whole, settings.steps)


def energy_check(
    before: Classifier,
    after: Classifier,
    val: Images,
    held_out_outliers: Images | Float[Tensor, "M D"],
) -> dict[str, float | bool]:
    """Mean energies E = -logsumexp(logits) of held-out ID images and outliers, before and after training.

    `inverted` is true unless outliers end with the higher mean: energy is then no score for this classifier.
    """
    means = {
        f"energy_{who}_{when}": energies(model, images).mean().item()
        for when, model in (("before", before), ("after", after))
        for who, images in (("id", val), ("ood", held_out_outliers))
    }
    inverted = not means["energy_ood_after"] > means["energy_id_after"]
    return {**means, "n_id": len(val), "n_ood": len(held_out_outliers), "inverted": inverted}


def energies(classifier: Classifier, images: Images | Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """E = -logsumexp(logits) of each image, or each feature vector, in eval mode, on the CPU."""
    if isinstance(images, Images):
        return -collect(classifier, images).logits.logsumexp(1)
    with torch.inference_mode():
        return -classifier.head(images.to(next(classifier.parameters()).device)).float().logsumexp(1).cpu()


class _Joint(nn.Module):
    """Classifier and outlier loss in one module: one optimiser, one checkpoint, one forward pass."""

    def __init__(self, classifier: Classifier, loss: nn.Module):
        super().__init__()
        self.classifier, self.loss = classifier, loss

    def forward(self, images: Tensor, features: Tensor, n_id: int, *soft: Tensor) -> tuple[Tensor, ...]:
        seen = self.classifier(images)
        logits = seen.logits
        if len(features):
            logits = torch.cat([logits, self.classifier.head(features).float()])
        is_id = torch.arange(len(logits), device=logits.device) < n_id
        return logits, seen.features, self.loss(logits, is_id, *soft), is_id


def _joint(
    classifier: Classifier, train: Images, outliers: Images | Tensor, settings: TrainSettings, seed: int
) -> _Joint:
    id_, ood = (energies(classifier, _first(x)) for x in (train, outliers))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = outlier_loss(settings, id_, ood)
    device = next(classifier.parameters()).device
    return _Joint(copy.deepcopy(classifier).requires_grad_(True), loss).to(device)


def _first(population: Images | Tensor) -> Images | Tensor:
    """Up to PROBE, spread over all: sets may be sorted by class."""
    rows = torch.linspace(0, len(population) - 1, min(len(population), PROBE)).long()
    return population[rows] if isinstance(population, Tensor) else population.subset(rows)


def _check_outliers(classifier: Classifier, outliers: Images | Tensor, settings: TrainSettings) -> None:
    if len(outliers) == 0:
        raise OutskirtsError(
            "no outliers to train or to check against; make some with `outskirts synth`, or keep more of them"
        )
    if isinstance(outliers, Images):
        return
    if settings.loss == "mixoe":
        raise OutskirtsError(
            "loss=mixoe mixes images and the outliers are features; take another loss, or outliers that are images"
        )
    if getattr(classifier.head, "out_features", None) != classifier.num_classes:
        raise OutskirtsError(
            f"feature outliers need a network that ends in a linear layer, not in {type(classifier.head).__name__}; give images"
        )
    if outliers.shape[1] != classifier.feature_dim:
        raise OutskirtsError(
            f"outliers have {outliers.shape[1]} features and the classifier {classifier.feature_dim}; make them with this classifier"
        )


def _fingerprint(outliers: Images | Tensor) -> str:
    if isinstance(outliers, Images):
        return outliers.fingerprint
    import hashlib

    return hashlib.sha256(outliers.contiguous().numpy().tobytes()).hexdigest()
