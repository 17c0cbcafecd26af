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
    "shuffle": "shuffled patches",
    "mix": "mixed images",
    "real": "real outliers",
    "oe": "OE",
    "mixoe": "MixOE",
    "outliers": "real outliers",
    "stored": "stored outliers",
    "knn": "kNN",
    "msp": "MSP",
    "maxlogit": "MaxLogit",
    "odin": "ODIN",
    "mahalanobis": "Mahalanobis",
    "rmd": "relative Mahalanobis",
    "vim": "ViM",
    "react": "ReAct",
    "dice": "DICE",
    "ash": "ASH",
    "scale": "SCALE",
    "gen": "GEN",
    "she": "SHE",
    "klm": "KL matching",
    "openmax": "OpenMax",
    "gradnorm": "GradNorm",
    "rankfeat": "RankFeat",
    "auroc": "AUROC",
}


def label(name: str) -> str:
    """A method, score or metric as it is written in prose."""
    return LABELS.get(name, name)


def title(name: str) -> str:
    """A method or score at the start of a sentence."""
    first, space, rest = label(name).partition(" ")
    return (first[:1].upper() + first[1:] if first.isalpha() and first.islower() else first) + space + rest


def finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def pct(value) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}" if finite(value) else DASH


def pct2(value) -> str:
    """A small share, such as a standard deviation, as percent with two decimals."""
    return f"{100 * value:.2f}" if finite(value) else DASH


def signed(value) -> str:
    """A difference in [-1, 1] as percentage points with its sign; what rounds to zero has none."""
    if not finite(value):
        return DASH
    return "0.0" if abs(value) < 0.0005 else minus(f"{100 * value:+.1f}")


def num(value) -> str:
    """A number in its own unit, three significant digits."""
    return minus(f"{value:#.3g}").rstrip(".") if finite(value) else DASH


def duration(seconds) -> str:
    """Seconds as a person says them, two or three digits."""
    if not finite(seconds):
        return DASH
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f}\N{NO-BREAK SPACE}s"


def minus(text: str) -> str:
    """A number with a minus sign in place of the hyphen."""
    return text.replace("-", MINUS)
