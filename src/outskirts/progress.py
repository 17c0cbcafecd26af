"""One progress bar for everything long: count, rate and remaining time, on stderr."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, *, total: int | None = None, done: int = 0, show: bool = True
) -> Iterator[T]:
    """Yields `items` and shows how many of `total` are through, `done` of them before this call."""
    if not show:
        yield from items
        return
    with bar(description, total=(len(items) + done) if total is None else total, done=done) as advance:
        for item in items:
            yield item
            advance(1)


class bar:  # noqa: N801 -- used like a function, `with bar(...) as advance:`
    """Context manager whose value is `advance(n, note="")`; hidden where stderr is not a terminal and `show` is not given."""

    def __init__(self, description: str, *, total: int | None, done: int = 0, show: bool = True):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self.task = self.progress.add_task(description, total=total, completed=done, rate="", note="")
        self.done_before = done

    def __enter__(self):
        self.progress.start()
        return self._advance

    def __exit__(self, *_):
        self.progress.stop()

    def _advance(self, n: int = 1, note: str = "") -> None:
        self.progress.advance(self.task, n)
        task = self.progress.tasks[0]
        rate = (task.completed - self.done_before) / task.elapsed if task.elapsed else 0.0
        self.progress.update(
            self.task, rate=f"{rate:.1f}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s each", note=note
        )
