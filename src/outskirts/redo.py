"""`--redo`: what a stage and the later ones left is set aside, and gone once the stage is made anew. Where it refuses, all is back."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from outskirts.fanout import rank_and_world
from outskirts.files import writing

AWAY = ".redo"


class Redo:
    """What matches `kinds` in the folder of a run, set aside in a folder of its own; by the first of several processes alone."""

    def __init__(self, run: Path, kinds: Sequence[str]):
        self.away = run / AWAY
        self.moved: list[tuple[Path, Path]] = []
        if rank_and_world()[0]:
            return
        with writing(run):
            shutil.rmtree(self.away, ignore_errors=True)  # of a call that was killed
            for place in sorted({p for kind in kinds for p in run.glob(kind)}):
                aside = self.away / place.relative_to(run)
                aside.parent.mkdir(parents=True, exist_ok=True)
                self.moved.append((place, place.rename(aside)))

    def forget(self) -> None:
        """What is aside is removed."""
        if self.moved:
            shutil.rmtree(self.away)
        self.moved = []

    def bring_back(self) -> None:
        """As it was before, in place of what was made since."""
        for place, aside in self.moved:
            if place.is_dir():
                shutil.rmtree(place)
            aside.replace(place)
        self.forget()
