"""Peak memory of a piece of work: of the GPU where there is one, else of this process.

A process holds its libraries, and often what earlier work left: `start` says how much that was when the work began. What earlier work
had freed is handed back to the system first, and the mark that it left is reset: else a piece of work that came second would seem to need nothing.
"""

import gc
import threading
from pathlib import Path

from outskirts import allocator

EVERY = 0.1
"""Seconds between two looks at the memory of the process, where Linux keeps no mark for us."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET = b"5"
"""Sets the mark VmHWM to the memory in use now, proc(5)."""


class Peak:
    """Context in which `gib` becomes the largest memory in use, GiB: all of the process, or what torch holds on the GPU.

    `start` is the memory in use when it is entered. `gib - start` is what the work needed where `apart` is true; elsewhere it is no more
    than that: what the work could take over from earlier work is in `start`.
    """

    gib = start = 0.0
    apart = False

    @property
    def facts(self) -> dict[str, float | bool]:
        return {"peak_gib": self.gib, "start_gib": self.start, "memory_apart": self.apart}

    def __enter__(self) -> "Peak":
        import torch

        self._cuda = torch.cuda.is_available()
        if self._cuda:
            self.apart = True
            torch.cuda.reset_peak_memory_stats()
            self.start = round(torch.cuda.memory_allocated() / 2**30, 3)
            return self
        import psutil

        self._process, self._stop = psutil.Process(), threading.Event()
        gc.collect(1)  # what is young; a look at everything that a large process holds takes a third of a second
        self.apart = allocator.give_back() and _reset()
        self._look()
        self.start = self.gib
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if not self.apart:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        import torch

        if self._cuda:
            self.gib = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        elif self.apart:
            self.gib = max(self.gib, round(_mark() / 2**30, 3))
        else:
            self._stop.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(EVERY)

    def _look(self) -> None:
        self.gib = max(self.gib, round(self._process.memory_info().rss / 2**30, 3))


def _reset() -> bool:
    """Reset the process's high-water mark; whether that could be done."""
    try:
        CLEAR.write_bytes(RESET)
        return _mark() > 0
    except OSError:
        return False


def _mark() -> int:
    """The largest resident memory since the mark was reset, bytes; 0 where Linux does not say."""
    line = next((x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:")), "")
    return int(line.split()[1]) * 1024 if line else 0
