"""What the pages of a report share: reading the files of a run, plain JSON, the templates."""

import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from outskirts import plots, verdict, wording
from outskirts.benchmarks import ROLES
from outskirts.errors import OutskirtsError


def read(
    folder: Path, name: str, missing: list[dict], part: str, keep: Callable[[str], bool] = lambda key: True
) -> Any:
    """A JSON or npz file of the run; None, and a line in `missing`, where it does not exist.

    Of an npz file only the arrays whose key `keep` accepts are read: the scores of a large comparison do not fit on a page.
    """
    path = folder / name
    if not path.exists():
        missing.append({"part": part, "file": name})
        return None
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return {key: arrays[key] for key in arrays.files if keep(key)}
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise OutskirtsError(f"cannot read {str(path)!r} ({e}); run the stage that writes it again") from e


def write(out: str | os.PathLike, name: str, facts: Mapping, page: str, *, indent: int | None = 1) -> Path:
    """NAME.json and NAME.html in the folder `out`, which is made where it does not exist; returns the page's path."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(clean(facts), indent=indent, allow_nan=False)
        (out / f"{name}.json").write_text(text, encoding="utf-8")
        (out / f"{name}.html").write_text(page, encoding="utf-8")
    except OSError as e:
        raise OutskirtsError(
            f"cannot write the {name} to {str(out)!r} ({e.strerror}); give a folder that is writable"
        ) from e
    return out / f"{name}.html"


def clean(value):
    """Plain JSON: numbers that are not finite become null, pixels stay in the page."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items() if k not in ("src", "examples")}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(template: str, facts: Mapping, **words) -> str:
    """The page that a template of `templates/` makes of facts; what they hold is escaped."""
    return _environment().get_template(template).render(**facts, **words)


@cache
def _environment():
    import jinja2

    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    env = jinja2.Environment(loader=jinja2.PackageLoader("outskirts"), **options)
    env.filters |= {
        "pct": wording.pct,
        "signed": wording.signed,
        "num": wording.num,
        "pct2": wording.pct2,
        "name": wording.label,
        "title_of": wording.title,
        "duration": wording.duration,
        "zip": zip,
    }
    env.globals |= {"plots": plots, "product": lambda a, b: list(itertools.product(a, b))}
    env.globals |= {"metrics": verdict.METRICS, "means": verdict.MEANS, "roles": ROLES}
    env.globals |= {"published_columns": published_columns}
    return env


def published_columns(rows: Sequence[Mapping]) -> dict[str, str]:
    """The metrics that published rows have, in words."""
    groups = ("near", "far", "all")
    known = {f"{g}_{m}": f"{wording.label(m)}, {g}" for g in groups for m in verdict.METRICS}
    known |= {f"{g}_fpr95_published": f"fpr95 as published, {g}" for g in groups}
    return {k: v for k, v in {**known, "id_accuracy": "ID accuracy"}.items() if any(k in r for r in rows)}
