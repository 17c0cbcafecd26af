"""SONA on the digits, in its pixel form: 0 to 4 known; in their images the digit is taken out and a 5 or a 6 written in.

    outskirts run sona_digits --out runs/sona_digits

The quickstart's diffusion model knows 0 to 6, so 5 and 6 are the outside words; 7 to 9, the near test set, it never saw. Trained as SONA is, with
uniform outlier exposure and the bound on mutual information. Beside it: the first of the two losses alone (Table 4), the digit only
taken out (`toward=null`, what is left where a model knows no outside class), and training on the real 5s and 6s.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart

SAMPLING = {"steps": 20, "batch_size": 128}
WITH = {"words": ("5", "6"), **SAMPLING}


def recipe() -> Recipe:
    q = quickstart.recipe()
    return replace(
        q,
        name="sona_digits",
        about="SONA's pixel form on handwritten digits: 0 to 4 known, 5 and 6 the outside words, 7 to 9 unknown to all; OE and L_MI.",
        classes="0-4",
        synth="sona",
        synth_with=WITH,
        train=replace(q.train, loss="oe_uniform", lam=0.5, mi=0.01, outlier_batch_size=32),
        methods={
            "sona without L_MI": {"of": "sona", "train": {"mi": None}},
            "class only out": {"synth": "sona", "with": {"toward": "null", **SAMPLING}},
            "real 5 and 6": {"outliers": "digits[5,6]", "train": {"mi": None}},
        },
        own=("sona", "sona without L_MI", "class only out"),
    )


def ablation(name: str, about: str, methods: Mapping[str, Mapping[str, Any]], **changes) -> Recipe:
    """A recipe on how outliers are made: `recipe` trained with OE alone. L_MI changes nothing here (`sona_losses`) and takes the most time."""
    base = recipe()
    oe = replace(base.train, mi=None)
    return replace(base, **{"name": name, "about": about, "train": oe, "methods": methods, "own": ("sona",), **changes})


def made(variants: Mapping[str, Mapping[str, Any]], **also) -> dict[str, dict[str, Any]]:
    """Label -> a method with outliers of its own, for each of `variants`, fields of the synthesizer that differ."""
    return {label: {"synth": "sona", "with": {**WITH, **also, **fields}} for label, fields in variants.items()}
