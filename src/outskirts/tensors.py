"""Weights of a module: read without pickles, checked key by key, hashed by content."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outskirts.errors import OutskirtsError


def filled(build: Callable[[], nn.Module], state: Mapping[str, Tensor], where: str | os.PathLike) -> nn.Module:
    """The module that `build` makes, with the weights `state`, in eval mode and without gradients.

    It is built without memory and takes the tensors as they are. Raises OutskirtsError, see `compare`.
    """
    with torch.device("meta"):
        module = build()
    compare(module.state_dict(), state, where)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str | os.PathLike) -> None:
    """Raises OutskirtsError, naming the first of each kind, where keys are missing, unexpected or of another shape."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    shapes = [k for k in expected if k in found and expected[k].shape != found[k].shape]
    faults = [
        *([f"{len(missing)} missing, first {missing[0]}"] if missing else []),
        *([f"{len(unexpected)} unexpected, first {unexpected[0]}"] if unexpected else []),
        *([_shape(shapes, expected, found)] if shapes else []),
    ]
    if faults:
        raise OutskirtsError(
            f"{where} holds other weights ({'; '.join(faults)}); give those of the same model and size"
        )


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; OutskirtsError where there is none or it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise OutskirtsError(f"{path} cannot be read ({str(e).splitlines()[0]}); make the folder again") from e


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Safetensors, every fraction in float32; written beside the name and moved there."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(
        {k: (v.float() if v.is_floating_point() else v).contiguous().clone() for k, v in state.items()}, temporary
    )
    os.replace(temporary, path)


def content_hash(*modules: nn.Module) -> str:
    """16 hex digits of the weights: equal where names, types, shapes and values are."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _shape(keys, expected, found) -> str:
    return f"{len(keys)} of another shape, first {keys[0]} {tuple(found[keys[0]].shape)} for {tuple(expected[keys[0]].shape)}"
