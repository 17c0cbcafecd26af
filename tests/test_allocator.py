"""Freed memory is kept, unless the user or the system says otherwise."""

import ctypes
import sys

import pytest

from outskirts import allocator

glibc = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")), reason="not glibc"
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Nothing in the environment that a user chose, and no change to the memory of the tests."""
    for name in [n for n in allocator.os.environ if n.startswith(allocator.OTHERS)]:
        monkeypatch.delenv(name)


class Libc:
    def __init__(self, answer=1):
        self.asked = []
        self.answer = answer

    def mallopt(self, name, value):
        self.asked.append((name, value))
        return self.answer


def test_malloc_is_told(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    assert allocator.keep_freed()
    assert libc.asked == list(allocator.KEEP)


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_choice_of_the_user_stands(monkeypatch, variable):
    libc = Libc()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setenv(variable, "1")
    assert not allocator.keep_freed()
    assert not libc.asked


@pytest.mark.parametrize(("platform", "libc"), [("darwin", Libc()), ("linux", object()), ("linux", Libc(answer=0))])
def test_elsewhere_nothing_is_promised(monkeypatch, platform, libc):
    monkeypatch.setattr(allocator.sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    assert not allocator.keep_freed()


def test_freed_memory_goes_back_where_malloc_is_glibc_s(monkeypatch):
    asked = []
    libc = type("Libc", (), {"malloc_trim": staticmethod(asked.append)})
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    assert allocator.give_back()
    assert asked == [0]
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so")
    assert not allocator.give_back()
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.give_back()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.give_back()


@glibc
def test_real_libc_takes_it():
    """In a process of its own: blocks of 40 MB, one after the other, are mostly pages that were cleared before."""
    import subprocess

    code = (
        "import resource, torch; from outskirts.allocator import keep_freed\n"
        "def faults():\n"
        "    torch.ones(10**7); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(60): torch.ones(10**7)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults()); keep_freed(); print(faults())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    plain, kept = map(int, out.split())
    assert kept < plain / 3
