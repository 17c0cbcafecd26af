"""Freed memory stays with the process, so that the next batch need not ask the system for it again.

glibc gives large blocks back to Linux as soon as they are freed, and Linux clears every page of the next one. A network's activations
are such blocks: asking for them again took up to half of the time of small classifiers on a CPU (`benchmarks/allocator.py`). Results are the same.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEP = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
"""In bytes: smaller blocks are never mapped alone, less than so many free ones stay, so many are asked for at once."""
OTHERS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Whoever sets one of these variables has chosen for themselves."""


def keep_freed() -> bool:
    """Tell glibc's malloc to keep what is freed; whether it was told. Nothing happens on other systems, or where the user chose."""
    if not sys.platform.startswith("linux") or any(name.startswith(OTHERS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in KEEP)


def give_back() -> bool:
    """Hand what is free now to the system, once; whether it could be asked for. Another malloc than glibc's, preloaded, would not hear of it."""
    if not sys.platform.startswith("linux") or "LD_PRELOAD" in os.environ:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
    return trim is not None
