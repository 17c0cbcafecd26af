"""The stamp without which no number is printed: versions, commit, hardware, seeds, input hashes, date."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "outskirts",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "timm",
    "datasets",
    "pyarrow",
    "numpy",
    "scikit-learn",
)

UNFINISHED = (".tmp", ".part", ".corrupt")
"""Suffixes of files that are no result."""


def stamp(*, seeds: Sequence[int] = (), inputs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a number must carry to be believed: plain JSON. `inputs` are content hashes by name; `date` is UTC."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": _command(),
        "python": platform.python_version(),
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "commit": commit(),
        "hardware": hardware(),
        "seeds": list(seeds),
        "inputs": dict(inputs or {}),
    }


def _command() -> str:
    """As it can be typed again; `python -m outskirts` is the command `outskirts`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["outskirts" if name == "__main__.py" else name, *sys.argv[1:]])


def commit(folder: Path | None = None) -> dict[str, Any] | None:
    """{hash, dirty} of the checkout that the package is imported from; None where it is not in one, or git is missing.

    A package installed into an environment inside some other project's checkout is not taken for that project.
    """
    package = Path(__file__).resolve().parent
    folder = folder or package.parents[1]
    if shutil.which("git") is None or (folder == package.parents[1] and not (folder / "pyproject.toml").is_file()):
        return None

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return None if head is None else {"hash": head, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def hardware() -> dict[str, Any]:
    """CPU model, cores that may be used, torch's threads, and the name of each GPU."""
    import torch

    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def folder_hashes(folder: Path, *, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder`, in order; names in `leave_out` and UNFINISHED are passed over."""
    files = sorted(
        f for f in folder.rglob("*") if f.is_file() and f.name not in leave_out and f.suffix not in UNFINISHED
    )
    return {f.relative_to(folder).as_posix(): file_hash(f) for f in files}


def short_hash(facts: Any) -> str:
    """16 hex digits of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(file) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
