"""Folders and files, written whole or not at all."""

import json
import os
from pathlib import Path

from outskirts.errors import OutskirtsError


def write_json(path: Path, value) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def writable(folder: str | os.PathLike) -> Path:
    """The folder, made if it is not there. Raises OutskirtsError where it cannot be written to."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutskirtsError(f"cannot write to {folder}: {e.strerror}; give a folder that can be written") from e
    if not os.access(folder, os.W_OK):
        raise OutskirtsError(f"cannot write to {folder}: it is read-only; give a folder that can be written")
    return folder
