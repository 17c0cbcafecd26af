"""Train a small network by steps: averaged weights, checkpoint and resume, early stop on held-out data.

Every step draws from a generator of its own, so a training that was stopped and resumed ends with the weights of an unbroken one.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.loop import require_same
from outskirts.progress import bar

CHECKPOINT = "checkpoint.safetensors"
SECONDS = 20.0
"""Between checkpoints, at least: one holds the weights five times."""


@dataclass(frozen=True)
class Steps:
    """How long, how fast."""

    steps: int
    lr: float
    ema: float = 0.999
    """Decay of the averaged weights, with the ramp (1 + n) / (10 + n)."""
    weight_decay: float = 0.01
    cosine: bool = False
    """Warm-up and cosine to 0; otherwise a constant rate."""
    every: int = 100
    """Steps between looks at the held-out loss; checkpoints are made at looks."""
    patience: int | None = None
    """Looks without a lower held-out loss after which training stops."""
    seed: int = 0


def fit_steps(
    model: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    how: Steps,
    *,
    check: Callable[[nn.Module], float] | None = None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    title: str = "training",
    progress: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """(the averaged model, facts): where there is a `check`, the held-out loss of an averaged model, the one that was lowest.

    `loss` is that of one batch, drawn with the generator of its step. In `folder` lies the checkpoint, until the training is
    over; of another `identity`, it is refused. The facts are `steps`, `stopped_early`, `loss` (the mean of the last looks) and `held_out` (each look).
    """
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    best = {k: v.clone() for k, v in ema.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    identity = json.loads(json.dumps({**asdict(how), **(identity or {})}))
    path = None if folder is None else folder / CHECKPOINT
    log = {"step": 0, "losses": [], "held_out": []}
    if path is not None and path.exists():
        log = _load(path, model, ema, best, optimizer, identity)
    recent, looks, saved = [], log["held_out"], time.monotonic()
    with bar(title, total=how.steps, done=log["step"], show=progress) as advance:
        while log["step"] < how.steps and not _enough(looks, how.patience):
            step = log["step"]
            generator = torch.Generator().manual_seed(how.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = how.lr * (_cosine(step, how.steps) if how.cosine else 1.0)
            value = loss(model, generator)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(how.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
            recent.append(value.detach())
            log["step"] = step + 1
            if (step + 1) % how.every == 0 or step + 1 == how.steps:
                log["losses"].append(float(torch.stack(recent).mean()))
                recent = []
                if not math.isfinite(log["losses"][-1]):
                    raise OutskirtsError(
                        f"{title}: the loss is not finite after step {step + 1}; lower the learning rate"
                    )
                if check is not None:
                    looks.append(check(ema))
                    if looks[-1] == min(looks):
                        best = {k: v.clone() for k, v in ema.state_dict().items()}
                if path is not None and step + 1 < how.steps and time.monotonic() - saved >= SECONDS:
                    _save(path, model, ema, best, optimizer, identity, log)
                    saved = time.monotonic()
            advance(1, _note(log))
    if check is not None:
        ema.load_state_dict(best)
    facts = {"steps": log["step"], "stopped_early": log["step"] < how.steps}
    return ema, facts | {"loss": log["losses"][-1], "held_out": [round(v, 5) for v in looks]}


def done(folder: Path | None) -> None:
    """The training's result is on disk: its checkpoint is no longer needed."""
    if folder is not None:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def _enough(looks: list[float], patience: int | None) -> bool:
    return patience is not None and len(looks) > patience and len(looks) - 1 - looks.index(min(looks)) >= patience


def _cosine(step: int, steps: int) -> float:
    warmup = min(200, max(steps // 10, 1))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _note(log: dict) -> str:
    held = f", held out {log['held_out'][-1]:.4f}" if log["held_out"] else ""
    return f"loss {log['losses'][-1]:.4f}{held}" if log["losses"] else ""


def _save(path: Path, model, ema, best: dict, optimizer, identity: dict, log: dict) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, f"{path}.tmp", {"facts": json.dumps({"identity": identity, "log": log})})
    Path(f"{path}.tmp").replace(path)


def _load(path: Path, model, ema, best: dict, optimizer, identity: dict) -> dict:
    with safe_open(path, "pt") as f:
        facts = json.loads(f.metadata()["facts"])
        require_same(facts["identity"], identity, path)
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    for prefix, module in (("model.", model), ("ema.", ema)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    best |= {k: tensors[f"best.{k}"].to(v.device) for k, v in best.items()}
    state = optimizer.state_dict()
    state["state"] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, name = key.split(".", 2)
            state["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(state)
    return facts["log"]
