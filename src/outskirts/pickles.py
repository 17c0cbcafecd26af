"""Torch files from elsewhere: pickles, read without running anything in them."""

import argparse
import contextlib
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from outskirts.errors import OutskirtsError


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of the model in a training checkpoint, wherever it keeps them.

    Tensors, plain values and argparse's Namespace, the training's options, are let in. Raises OutskirtsError, naming the
    class, where the file holds anything else.
    """
    if not Path(path).is_file():
        raise OutskirtsError(f"no checkpoint {path}; give the file as it was downloaded")
    try:
        with _allowing(argparse.Namespace):
            # mapped, not read: a training checkpoint also holds its optimizer, twice the size of the model
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # what bytes lead an unpickler to, e.g. a text to KeyError
        named = re.search(r"GLOBAL (\S+)", str(e))
        what = f"a {named[1]}, which could run code," if named else "no torch checkpoint"
        raise OutskirtsError(
            f"{path} holds {what} and is not opened; give a checkpoint of tensors and plain values"
        ) from e
    for wrapper in ("state_dict", "model"):
        found = found.get(wrapper, found) if isinstance(found, Mapping) else {}
    found = found if isinstance(found, Mapping) else {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}


@contextlib.contextmanager
def _allowing(*classes: type):
    """torch.serialization.safe_globals, which torch 2.4 lacks."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(classes))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
