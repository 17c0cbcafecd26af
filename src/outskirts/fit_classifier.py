"""Train a small classifier on ID images: SGD with Nesterov momentum, warm-up and cosine, flips and shifts."""

import contextlib
import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from outskirts.data import Images, require_labels
from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json
from outskirts.loop import (
    Checkpoint,
    accelerator,
    accuracy,
    augment,
    epoch_randomness,
    rate,
    require_same,
    set_rate,
    sgd,
    share,
)
from outskirts.models import CONFIG, Classifier, load_classifier
from outskirts.nets import small_resnet
from outskirts.progress import bar
from outskirts.recipe import ClassifierSettings


def fit_classifier(
    train: Images,
    val: Images,
    out: str | os.PathLike,
    settings: ClassifierSettings,
    *,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = True,
) -> Classifier:
    """A classifier trained on `train`, saved in the folder `out` with `log.json` (per epoch: loss, accuracies, lr).

    Images of different sizes need `size` (height, width). `device` is `auto`, `cpu`, `cuda:1`, ..., `precision` `fp32`
    or `bf16`. Stopped and called again with the same arguments, it continues after the last whole epoch and, on a CPU,
    ends with the same weights as an unbroken run; called again when it is finished, it loads what is there.
    Raises OutskirtsError for a single or an empty class, a size that is needed, a loss that is no longer finite, a folder
    that holds a classifier made with other settings or images.
    """
    check_trainable(train)
    size = size or train.size
    if size is None:
        raise OutskirtsError(
            f"{train.name}: images may differ in size; give the size (height, width) to classify them at"
        )
    out = writable(out)
    checkpoint = Checkpoint.of(out, settings, train=train.fingerprint, val=val.fingerprint, size=size)
    accel = accelerator(device, precision)
    if not checkpoint.path.exists() and (finished := _finished(out, checkpoint.identity)):
        return finished.to(accel.device)
    classifier = _new(train, size, settings).to(accel.device)
    optimizer = sgd(classifier.parameters(), settings.lr, settings.weight_decay)
    done, log = checkpoint.load(classifier, optimizer)
    model, optimizer = accel.prepare(classifier, optimizer)

    batches = max(1, len(train) // settings.batch_size)  # a last, smaller one would have poorer BatchNorm statistics
    steps, note = settings.epochs * batches, ""
    with bar("classifier", total=steps, done=done * batches, show=progress and accel.is_main_process) as advance:
        for epoch in range(done, settings.epochs):
            sums = torch.zeros(2, device=accel.device)
            model.train()
            with epoch_randomness(settings.seed, epoch) as generator:
                order = torch.randperm(len(train), generator=generator)[: batches * settings.batch_size]
                rows, batch_size = share(order, settings.batch_size, accel)
                for step, batch in enumerate(train.batches(batch_size, size=size, indices=rows), start=epoch * batches):
                    set_rate(optimizer, rate(step, steps, settings.lr, warmup=min(batches, steps // 20)))
                    images, labels = (x.to(accel.device) for x in batch)
                    with accel.autocast():
                        logits = model(augment(images, settings.augment, generator)).logits
                    loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                    optimizer.zero_grad()
                    accel.backward(loss)
                    optimizer.step()
                    sums += torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean()])
                    advance(1, note)
            loss, train_accuracy = (accel.reduce(sums, "mean") / batches).tolist()
            if not math.isfinite(loss):
                raise OutskirtsError(f"the loss is not finite after epoch {epoch + 1}; lower lr (now {settings.lr})")
            right, lr = accuracy(classifier, val), optimizer.param_groups[0]["lr"]
            log.append(
                {"epoch": epoch + 1, "loss": loss, "train_accuracy": train_accuracy, "val_accuracy": right, "lr": lr}
            )
            note = f"val accuracy {right:.3f}"
            if accel.is_main_process:
                checkpoint.save(epoch + 1, classifier, optimizer, log)
                write_json(out / "log.json", {"epochs": log})
    classifier = accel.unwrap_model(model, keep_fp32_wrapper=False).eval()
    if accel.is_main_process:
        classifier.save(out)
        write_json(out / "log.json", {"epochs": log, "made_from": checkpoint.identity})
        checkpoint.remove()
    accel.wait_for_everyone()  # BatchNorm statistics are the main process's
    return classifier if accel.is_main_process else load_classifier(out).to(accel.device)


def check_trainable(images: Images) -> None:
    """Raises OutskirtsError unless every image has a label and there are two classes or more, none of them empty."""
    require_labels(images)
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    if empty := [c for c, n in zip(images.classes, counts, strict=True) if n == 0]:
        raise OutskirtsError(
            f"{images.name} has no image of class {empty[0]!r}; add some, or leave the class out: {images.name}[...]"
        )


def _finished(out: Path, identity: dict) -> Classifier | None:
    """The classifier that an earlier call left in `out`; None where there is none, it is damaged, or its origin unknown.

    Raises OutskirtsError where it was made from something else.
    """
    try:
        made_from = json.loads((out / "log.json").read_text())["made_from"]
    except (OSError, ValueError, KeyError):
        return None
    if not (out / CONFIG).exists():
        return None
    require_same(made_from, identity, out)
    with contextlib.suppress(OutskirtsError):  # damaged: the same settings and images make it again
        return load_classifier(out)


def _new(train: Images, size: tuple[int, int], settings: ClassifierSettings) -> Classifier:
    """A network with random weights that normalises by the channel means and deviations of (at most 10,000) training images."""
    sums, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for images, _ in train.batches(500, size=size, indices=range(0, len(train), max(1, len(train) // 10_000))):
        images = images.double()
        sums, squares = sums + images.sum((0, 2, 3)), squares + images.square().sum((0, 2, 3))
        count += images[:, 0].numel()
    mean = sums / count
    std = (squares / count - mean**2).clamp(min=1e-6).sqrt()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        net = small_resnet(settings.arch, len(train.classes))
    return Classifier(net, classes=train.classes, size=size, mean=mean.tolist(), std=std.tolist(), source=settings.arch)
