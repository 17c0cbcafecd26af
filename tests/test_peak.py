"""Memory of a piece of work is its own, whatever was done before it."""

import ctypes
import sys

import pytest
import torch

from outskirts import peak
from outskirts.peak import Peak

marked = pytest.mark.skipif(
    torch.cuda.is_available() or not (peak.CLEAR.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")),
    reason="needs glibc, Linux's own mark, and no GPU",
)
CODE = """
import torch
from outskirts.allocator import keep_freed
from outskirts.peak import Peak

def added(mb):
    with Peak() as peak:
        torch.ones(mb * 2**18)
    assert peak.apart
    return round(1024 * (peak.gib - peak.start))

keep_freed()
added(1)
print(added(300), added(600), added(300), added(300))
"""


@marked
def test_a_step_shows_what_it_needs_whatever_came_before():
    """In a process of its own, whose malloc keeps what is freed as that of a run does."""
    import subprocess

    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True).stdout
    assert [int(x) for x in out.split()] == pytest.approx([300, 600, 300, 300], abs=20)


@pytest.mark.parametrize("lacking", ["malloc_trim", "the mark", "the word"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a process without GPU")
def test_what_cannot_be_told_apart_is_said(monkeypatch, tmp_path, lacking):
    if lacking == "malloc_trim":
        monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so")
    elif lacking == "the mark":
        monkeypatch.setattr(peak, "CLEAR", tmp_path / "none" / "clear_refs")
    else:
        monkeypatch.setattr(peak, "CLEAR", tmp_path / "clear_refs")
        monkeypatch.setattr(peak, "STATUS", tmp_path / "status")
        (tmp_path / "status").write_text("VmRSS:\t 10 kB\n")
    with Peak() as found:
        torch.ones(2**20)
    assert not found.apart
    assert found.facts == {"peak_gib": found.gib, "start_gib": found.start, "memory_apart": False}
    assert found.gib >= found.start > 0.05  # the old way, in which the first seems to need most
