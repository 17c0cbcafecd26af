"""`field=value` on the command line: a recipe with some fields changed, checked by name and type."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean, find, names
from outskirts.recipe import LOSS_FIELDS, Recipe, labelled
from outskirts.settings import field_types, read, set_field

TOGETHER = ("filter", "analyse")
"""Groups whose fields need each other; they are set at once, in any order."""


def override(recipe: Recipe, texts: Sequence[str]) -> Recipe:
    """A copy of `recipe` with fields set from texts such as `seeds=0,1`, `train.epochs=3`, `synth.steps=20`, `score.knn.k=20`.

    `synth.FIELD` and `score.LABEL.FIELD` are checked against the fields of the synthesizer and of the score; `synth=NAME`
    drops what `synth_with` held for another one, and `train.loss=NAME` what only another loss reads. Raises OutskirtsError naming the field that is unknown, or whose value
    is of another type.
    """
    first = ("benchmark=", "synth=", "scores=", "plain_scores=", "train.loss=")  # then their fields
    together: dict[str, dict[str, Any]] = {}
    for text in sorted(texts, key=lambda t: not t.startswith(first)):
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise OutskirtsError(f"cannot read {text!r}; write FIELD=VALUE, e.g. train.epochs=3")
        group, _, inner = name.partition(".")
        if group in TOGETHER and name in field_names(recipe):
            hints = field_types(type(getattr(recipe, group)))
            together.setdefault(group, {})[inner] = read(name, value, hints[inner])
        else:
            recipe = _set(recipe, name, value)
    for group, values in together.items():
        try:
            recipe = dataclasses.replace(recipe, **{group: dataclasses.replace(getattr(recipe, group), **values)})
        except OutskirtsError as e:
            raise OutskirtsError(f"{group}.{e}") from None  # the message starts with the field
    return recipe


def _set(recipe: Recipe, name: str, value: str) -> Recipe:
    group, dot, inner = name.partition(".")
    if dot and group == "synth":
        options = _option(recipe.synth_with, "synth", recipe.synth, inner, value, "synth")
        return dataclasses.replace(recipe, synth_with=options)
    if dot and group == "score" and "." in inner:
        label, _, inner = inner.rpartition(".")
        scores = dict(labelled(s) for s in (*recipe.scores, *recipe.plain_scores))
        if label not in scores:
            raise OutskirtsError(
                f"no score {label!r} in this recipe{did_you_mean(label, scores)}; it has {', '.join(scores)}"
            )
        options = _option(recipe.score_with.get(label, {}), "scores", scores[label], inner, value, f"score.{label}")
        return dataclasses.replace(recipe, score_with={**recipe.score_with, label: options})
    if name not in (known := field_names(recipe)):
        raise OutskirtsError(
            f"no recipe field {name!r}{did_you_mean(name, known)}; `outskirts show {recipe.name}` lists them"
        )
    if name == "benchmark":
        from outskirts import benchmarks

        return benchmarks.apply(recipe, read(name, value, str | None))
    if name == "synth":
        _on_shelf("synth", value)
        recipe = recipe if value == recipe.synth else dataclasses.replace(recipe, synth_with={})
    if name in ("scores", "plain_scores"):
        given = dict(labelled(s) for s in read(name, value, tuple[str, ...]))
        for score in given.values():
            _on_shelf("scores", score)
        others = recipe.plain_scores if name == "scores" else recipe.scores
        kept = {*given, *(labelled(s).label for s in others)}
        recipe = dataclasses.replace(recipe, score_with={k: v for k, v in recipe.score_with.items() if k in kept})
    if not dot:
        return set_field(recipe, name, value)
    if name == "train.loss":
        others = {field: None for field, loss in LOSS_FIELDS.items() if loss != value}
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **others))
    try:
        return dataclasses.replace(recipe, **{group: set_field(getattr(recipe, group), inner, value)})
    except OutskirtsError as e:
        raise OutskirtsError(f"{group}.{e}") from None  # the message starts with the field


def _on_shelf(shelf: str, name: str) -> None:
    """Refuse a wrong name here and now; a right one is not imported for it."""
    if "." not in name and name not in names(shelf):
        find(shelf, name)


def _option(options, shelf: str, name: str, field: str, value: str, prefix: str) -> dict[str, Any]:
    hints = field_types(find(shelf, name))
    if field not in hints:
        known = ", ".join(hints) or "no fields"
        raise OutskirtsError(f"{name!r} has no field {field!r}{did_you_mean(field, hints)}; it has {known}")
    return {**options, field: read(f"{prefix}.{field}", value, hints[field])}


def field_names(recipe: Recipe) -> list[str]:
    """Every field that `override` sets, groups written with a dot; those of the synthesizer and the scores not among them."""
    found = []
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        found += (
            [f"{f.name}.{g.name}" for g in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else [f.name]
        )
    return [n for n in found if n not in ("synth_with", "score_with")]
