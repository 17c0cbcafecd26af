"""What every settings dataclass can do: check its values by type, read a value from text, become JSON and come back."""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal

from outskirts.errors import OutskirtsError

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "none",
    Mapping: 'a JSON object, e.g. {"a": 1}',
}


def check_types(settings) -> None:
    """Raise OutskirtsError naming the first field whose value is not of its annotated type."""
    for name, hint in field_types(type(settings)).items():
        if not fits(value := getattr(settings, name), hint):
            raise OutskirtsError(f"{name} is {value!r}; it must be {describe(hint)}")


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> annotated type, for the fields that a caller may set."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def fits(value, hint) -> bool:
    """Is `value` of type `hint`? An int passes as a float; a bool passes as nothing but a bool."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple) or (args[-1] is not ... and len(args) != len(value)):
            return False
        return all(fits(v, a) for v, a in zip(value, _items(args, value), strict=True))
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, origin or hint)


def describe(hint) -> str:
    """A type in words, for error messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return " or ".join(describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        many = args[-1] is ...
        return (
            f"values separated by commas, each {describe(args[0])}"
            if many
            else f"{len(args)} values separated by a comma"
        )
    return WORDS.get(origin or hint, f"a {(origin or hint).__name__}")


def parse(text: str, hint) -> Any:
    """A value of type `hint` from the text of a command line. Raises ValueError where it cannot be read as one.

    Values of a tuple are separated by commas outside brackets, whole numbers may be ranges such as 0-4, `none` is None;
    JSON is read where it is a list or an object.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return _first(text, args)
    if origin is Literal:
        return {str(a): a for a in args}.get(text) if text in map(str, args) else _refuse(text)
    if origin is tuple:
        return _tuples(json.loads(text)) if text.startswith("[") else _tuple(text, args)
    if hint is NoneType:
        return None if text.lower() in ("none", "null") else _refuse(text)
    if hint is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if hint in (int, float, str):
        return hint(text)
    return json.loads(text)


def set_field(settings, name: str, text: str):
    """A copy of `settings` with the field `name` read from `text`; raises OutskirtsError for text of another type."""
    return dataclasses.replace(settings, **{name: read(name, text, field_types(type(settings))[name])})


def read(name: str, text: str, hint) -> Any:
    """`parse`, with an error that names the field."""
    try:
        value = parse(text, hint)
    except ValueError:
        value = _Unread
    if not fits(value, hint):
        raise OutskirtsError(f"{name} is {text!r}; it must be {describe(hint)}")
    return value


def check_above(settings, low: float, *names: str) -> None:
    _check(settings, names, lambda v: v > low, f"above {low}")


def check_at_least(settings, low: float, *names: str) -> None:
    _check(settings, names, lambda v: v >= low, f"at least {low}")


def check_at_most(settings, high: float, *names: str) -> None:
    _check(settings, names, lambda v: v <= high, f"at most {high}")


def as_plain(settings) -> dict[str, Any]:
    """Settings as JSON-able values; `from_plain` reads them back."""
    return _plain({f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})


def from_plain(plain: Mapping[str, Any], cls: type):
    """The settings of type `cls` that `as_plain` wrote. Raises OutskirtsError for a field that `cls` does not have."""
    hints = field_types(cls)
    if unknown := [k for k in plain if k not in hints]:
        raise OutskirtsError(f"{cls.__name__} has no field {unknown[0]!r}; was the file written by another version?")
    return cls(
        **{k: from_plain(v, hints[k]) if dataclasses.is_dataclass(hints[k]) else _tuples(v) for k, v in plain.items()}
    )


def as_values(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields as JSON has them, as settings have them: tuples for lists."""
    return {k: _tuples(v) for k, v in plain.items()}


class _Unread:
    """Fits no type."""


def _items(args: tuple, value: Sequence) -> tuple:
    return (args[0],) * len(value) if args[-1] is ... else args


def _first(text: str, hints: tuple) -> Any:
    # None, choices and numbers before texts, which fit everything
    for hint in sorted(hints, key=lambda h: (h is str, h is not NoneType, typing.get_origin(h) is not Literal)):
        try:
            return parse(text, hint)
        except ValueError:
            continue
    return _refuse(text)


def _tuple(text: str, args: tuple) -> tuple:
    parts = [p.strip() for p in re.split(r",(?![^\[\(]*[\]\)])", text) if p.strip()]
    if args == (int, ...):
        parts = [n for p in parts for n in _range(p)]
    return tuple(parse(p, a) for p, a in zip(parts, _items(args, parts), strict=True))


def _range(part: str) -> list[str]:
    m = re.fullmatch(r"(\d+)-(\d+)", part)
    return [str(n) for n in range(int(m[1]), int(m[2]) + 1)] if m else [part]


def _refuse(text: str):
    raise ValueError(text)


def _check(settings, names: tuple[str, ...], ok: Callable[[float], bool], words: str) -> None:
    for name in names:
        if not ok(getattr(settings, name)):
            raise OutskirtsError(f"{name} is {getattr(settings, name)!r}; it must be {words}")


def _plain(value):
    if dataclasses.is_dataclass(value):
        return as_plain(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _tuples(value):
    """JSON has lists where settings have tuples, inside mappings too."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
