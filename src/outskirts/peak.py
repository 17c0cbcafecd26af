"""Peak memory of a piece of work: of the GPU where there is one, else of this process.

A process holds its libraries, and often what earlier work left: `start` says how much that was when the work began.
"""

import threading

EVERY = 0.1
"""Seconds between two looks at the memory of the process."""


class Peak:
    """Context in which `gib` becomes the largest memory in use, GiB: all of the process, or what torch holds on the GPU.

    `start` is the memory in use when it is entered. `gib - start` is no more than the work needed: what it could take over is in `start`.
    """

    gib = start = 0.0

    def __enter__(self) -> "Peak":
        import torch

        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = round(torch.cuda.memory_allocated() / 2**30, 3)
            return self
        import psutil

        self._process, self._stop = psutil.Process(), threading.Event()
        self._look()
        self.start = self.gib
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        import torch

        if self._cuda:
            self.gib = round(torch.cuda.max_memory_allocated() / 2**30, 3)
            return
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(EVERY)

    def _look(self) -> None:
        self.gib = max(self.gib, round(self._process.memory_info().rss / 2**30, 3))
