"""The methods of a run: where each takes its outliers from and how it trains. The plain classifier is what all are held against."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outskirts.errors import OutskirtsError
from outskirts.filter_settings import FilterSettings
from outskirts.filtered import Filtered, plan
from outskirts.find import did_you_mean
from outskirts.recipe import Recipe, TrainSettings
from outskirts.settings import as_values, field_types, fits
from outskirts.train_settings import MI_FIELDS

PLAIN, NOISE = "plain", "noise"
KEYS = {"synth": str, "with": Mapping, "outliers": str, "of": str, "train": Mapping, "filter": Mapping}
"""What an entry of `Recipe.methods` may say."""


@dataclass(frozen=True)
class Method:
    """One way to make or find outliers and to train against them."""

    label: str
    key: str
    """Part of its folders' names; empty for the recipe's own `synth` or `outliers`."""
    train: TrainSettings
    synth: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the synthesizer."""
    store: str = ""
    """Folder of a run that holds its outliers, made by this method or by the one it shares them with."""
    shares: bool = False
    """Whether another method makes them."""
    fields: tuple = ()
    """Where in the recipe its outliers are described, see `run.fields_of`."""
    filtered: Filtered | None = None
    """Which of the outliers it trains against; none: all."""


def shared(every: Sequence[Method]) -> list[tuple[Method, Method]]:
    """(who made the outliers, who takes them too): what another filter, loss or weight does to the same outliers."""
    makers = {m.store: m for m in every if m.store and not m.shares}
    return [(makers[m.store], m) for m in every if m.shares and m.store in makers]


def methods(recipe: Recipe) -> list[Method]:
    """The recipe's own method, the noise floor, and those of `Recipe.methods`, in this order; none where nothing is trained."""
    if not {"synth", "filter", "train"} & set(recipe.stages):
        return []
    own = recipe.synth if recipe.outliers is None else "stored" if recipe.outliers.startswith("store:") else "outliers"
    found = [
        Method(
            own,
            "",
            recipe.train,
            recipe.synth if recipe.outliers is None else None,
            recipe.synth_with,
            "" if recipe.outliers else "3-synth",
            fields=("outliers",) if recipe.outliers else ("diffusion", "synth", "synth_with"),
        )
    ]
    if recipe.floor and recipe.synth != NOISE and "train" in recipe.stages:
        found.append(Method(NOISE, NOISE, _unpaired(recipe.train), NOISE, {}, "3-synth-noise", fields=("outliers",)))
    filters = {own: recipe.filter if "filter" in recipe.stages else None}
    for label, entry in recipe.methods.items():
        found.append(_method(label, entry, recipe, found))
        filters[label] = _filter(label, entry, recipe, filters.get(entry.get("of")))
    labels, keys = [m.label for m in found], [m.key for m in found]
    if wrong := [m.label for m in found if m.label == PLAIN or m.key in (PLAIN, *(f"seed-{s}" for s in recipe.seeds))]:
        raise OutskirtsError(f"methods: the label {wrong[0]!r} stands for something else in a run; give another one")
    if twice := [n for names in (labels, keys) for n in names if names.count(n) > 1]:
        raise OutskirtsError(f"methods: {twice[0]!r} stands for two methods; give one of them another label")
    if unknown := [label for label in recipe.own if label not in labels]:
        raise OutskirtsError(
            f"own names {unknown[0]!r}, which is no method{did_you_mean(unknown[0], labels)}; there are {', '.join(labels)}; "
            f"name those that are compared with the others, e.g. own={labels[0]}"
        )
    return list(plan((m, filters.get(m.label)) for m in found))


def key_of(label: str) -> str:
    """The part of folders' names that stands for an entry of `Recipe.methods`."""
    return re.sub(r"\W+", "-", label).strip("-").lower()


def _unpaired(train: TrainSettings) -> TrainSettings:
    """The same training for outliers that no ID image is the source of."""
    return dataclasses.replace(train, **dict.fromkeys(("mi", *MI_FIELDS)))


def _method(label: str, entry: Mapping[str, Any], recipe: Recipe, before: list[Method]) -> Method:
    where = f"methods: {label!r}"
    if not isinstance(entry, Mapping):
        raise OutskirtsError(f"{where} is {entry!r}; it must be a JSON object with some of {', '.join(KEYS)}")
    for key, value in entry.items():
        if key not in KEYS:
            raise OutskirtsError(f"{where} has no {key!r}{did_you_mean(key, KEYS)}; accepted: {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise OutskirtsError(
                f"{where}: {key} is {value!r}; it must be a {'text' if KEYS[key] is str else 'JSON object'}"
            )
    if len({"synth", "outliers", "of"} & set(entry)) != 1 or ("with" in entry and "synth" not in entry):
        raise OutskirtsError(
            f"{where} must say one of synth (and `with`), outliers, of; it says {', '.join(entry) or 'nothing'}"
        )
    train, key = _changed(recipe.train, as_values(entry.get("train", {})), where, "train"), key_of(label)
    if "of" in entry:
        shared = next((m for m in before if m.label == entry["of"]), None)
        if shared is None:
            raise OutskirtsError(
                f"{where}: of={entry['of']!r} is no method before it; there are {', '.join(m.label for m in before)}"
            )
        return dataclasses.replace(shared, label=label, key=key, train=train, shares=True)
    paths = tuple(("methods", label, k) for k in ("synth", "with", "outliers") if k in entry)
    synth, options = entry.get("synth", "real"), as_values(entry.get("with", {}))
    if "outliers" in entry:
        options = {"images": entry["outliers"]}
    return Method(label, key, train, synth, options, f"3-synth-{key}", fields=("diffusion", *paths))


def _filter(label: str, entry: Mapping[str, Any], recipe: Recipe, of: FilterSettings | None) -> FilterSettings | None:
    """The filter of an entry: what it changes in the recipe's, or where it says nothing, that `of` the method it takes outliers from."""
    if "filter" not in entry:
        return of
    if "filter" not in recipe.stages:
        raise OutskirtsError(f"methods: {label!r} has a filter, but stages leaves it out; add train:scout and filter")
    return _changed(recipe.filter, as_values(entry["filter"]), f"methods: {label!r}", "filter")


def _changed(settings, changes: Mapping[str, Any], where: str, group: str):
    """`settings` with the fields of an entry's `group` that differ."""
    known = field_types(type(settings))
    for name, value in changes.items():
        if name not in known:
            raise OutskirtsError(
                f"{where}: {group} has no {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
        if not fits(value, known[name]):
            raise OutskirtsError(f"{where}: {group}.{name} is {value!r}, which is not of its type")
    try:
        return dataclasses.replace(settings, **changes)
    except OutskirtsError as e:
        raise OutskirtsError(f"{where}: {group}.{e}") from None  # the message starts with the field
