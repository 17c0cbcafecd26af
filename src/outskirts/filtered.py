"""Where the filter of each method lies in a run, and which methods share a part of it: a scout costs a training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from outskirts.filter_settings import FilterSettings

PLACES = {"scout": "4-filter/scout", "twin": "4-filter/twin", "verdict": "4-filter/verdict", "look": "6-look"}
"""Folders of the parts of the first filter; those of others have their method's key behind."""
OF_SCOUT = ("cross_fit", "epochs")
"""Fields of FilterSettings that decide what a scout is; methods that share outliers and these share a scout."""
PARTS = ("scout", "twin", "verdict")


@dataclass(frozen=True)
class Filtered:
    """The filter of one method: its settings, and the folders of its parts, below the run's."""

    settings: FilterSettings
    verdict: str
    """Which outliers are kept, and why."""
    scout: str
    look: str
    """What is seen in the outliers, for the report; nothing is trained by it."""
    twin: str = ""
    """The scout that does not know some of the classes; empty without calibration=held_out_classes."""
    makes: frozenset[str] = frozenset()
    """Of PARTS and look, those that no method before makes."""
    fields: Mapping[str, tuple] = ()
    """Part -> where in the recipe it is described, see `run.fields_of`."""


def plan(found: Iterable[tuple[Any, FilterSettings | None]]) -> Iterable[Any]:
    """The methods of (method, its settings or none) with `filtered` set; the first to need a part makes it, under its key."""
    named: dict[tuple, str] = {}
    for m, settings in found:
        if settings is None:
            yield m
            continue
        scout = (m.store, *(getattr(settings, f) for f in OF_SCOUT))
        wanted = {"scout": scout, "look": m.store, "verdict": (m.store, settings)}
        if settings.calibration == "held_out_classes":
            wanted["twin"] = (m.store, settings.epochs, settings.classes_out)
        makes = frozenset(part for part, what in wanted.items() if (part, what) not in named)
        folders = {
            part: named.setdefault((part, what), PLACES[part] + (f"-{m.key}" if m.key else ""))
            for part, what in wanted.items()
        }
        yield replace(
            m, filtered=Filtered(settings, makes=makes, fields=_fields(m.label if m.key else None), **folders)
        )


def _fields(label: str | None) -> dict[str, tuple]:
    """Of the filter of the entry `label` of methods; none: of the recipe's own."""

    def both(*fields: str) -> tuple:
        if not fields:
            return ("filter", *([("methods", label, "filter")] if label else []))
        entry = [("methods", label, "filter", f) for f in fields] if label else []
        return (*(("filter", f) for f in fields), *entry)

    return {
        "scout": ("train", *both(*OF_SCOUT)),
        "twin": ("train", "fit_classifier", *both("epochs", "classes_out")),
        "look": ("fit_classifier", *(("analyse", f) for f in ("judge", "words", "types"))),
        "verdict": both(),
    }
