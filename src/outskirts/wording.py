"""Names and numbers as a reader sees them: prose for registry names, percent with one decimal, a proper minus sign."""

import math

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
PLAIN, NOISE = "plain", "noise"
"""Method names of the classifier before outlier training, and of the noise floor."""
LABELS = {
    PLAIN: "plain classifier",
    NOISE: "noise floor",
    "good": "GOOD",
    "badood": "Bad-OOD",
    "sona": "SONA",
    "synood": "SynOOD",
    "dream": "Dream-OOD",
    "vos": "VOS",
    "npos": "NPOS",
    "knn": "kNN",
    "msp": "MSP",
    "auroc": "AUROC",
}


def label(name: str) -> str:
    """A method, score or metric as it is written in prose."""
    return LABELS.get(name, name)


def finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def pct(value) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}" if finite(value) else DASH


def signed(value) -> str:
    """A difference in [-1, 1] as percentage points with its sign; what rounds to zero has none."""
    if not finite(value):
        return DASH
    return "0.0" if abs(value) < 0.0005 else minus(f"{100 * value:+.1f}")


def num(value) -> str:
    """A number in its own unit, three significant digits."""
    return minus(f"{value:#.3g}").rstrip(".") if finite(value) else DASH


def minus(text: str) -> str:
    """A number with a minus sign in place of the hyphen."""
    return text.replace("-", MINUS)
