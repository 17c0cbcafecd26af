"""`FilterSettings`, which outliers are kept, and `AnalyseSettings`, how they are looked at, as plain values. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from outskirts.errors import OutskirtsError
from outskirts.settings import check_above, check_at_least, check_at_most, check_types

Band = Literal["mid", "high", "low", "random", "none"]
Calibrator = Literal["beta", "platt", "temperature", "isotonic"]
ENDS = {False: (0.3, 0.5), True: (0.15, 0.92)}
"""Ends of the middle band on P(ID), Bad-OOD Table 2; by rank, the 77 % that the paper keeps: all but the least ID-like 15 % and the most ID-like 8 %."""
ONE_CALIBRATION = {"images": "given", "classes_out": "held_out_classes"}
"""Fields that one kind of calibration set alone reads; they are refused with another one."""


@dataclass(frozen=True)
class FilterSettings:
    """Which outliers are kept, by the P(ID) that a scout detector gives them (spec of Bad-OOD, part e)."""

    band: Band = "mid"
    """mid: P(ID) from `low` to `high`; high: from `low` on; low: up to `high`; random: as many as mid, drawn evenly; none: all."""
    low: float | None = None
    """Lower end of mid, 0 to 1; none: 0.3, with calibration=rank 0.15."""
    high: float | None = None
    """Upper end of mid, 0 to 1; none: 0.5, with calibration=rank 0.92."""
    n_keep: int | None = None
    """At most so many are kept, drawn evenly with each class in proportion; none: all of the band."""
    score: Literal["phi", "energy"] = "phi"
    """What is calibrated: phi, the log-odds of ID that the scout's loss learns, centred at 0; energy, -E as in the paper, of which
    beta calibration can use one parameter only."""
    calibration: Literal["constructed", "given", "held_out_classes", "synthetic", "rank"] = "constructed"
    """OOD side of the calibration set: constructed from held-out ID images; given, yours; held_out_classes, images of ID classes that a
    second scout does not know; synthetic, outliers that the scout did not train on; rank: none, bands are shares of the outliers."""
    images: str | None = None
    """given only: real OOD validation images by name; they must be in no test set."""
    classes_out: float | None = None
    """held_out_classes only: share of the ID classes; none: 0.15."""
    calibrator: Calibrator | None = None
    """Map from the score to P(ID); none: beta. Not with calibration=rank, which needs none."""
    balance: bool = True
    """Weigh both sides of the calibration set alike; without it their sizes move the band."""
    cross_fit: int = 1
    """Scouts: each trains on the other parts of the outliers and scores its own; 1: one, which scores what it trained on."""
    epochs: int | None = None
    """Epochs of the scout; none: train.epochs."""
    seed: int = 0
    """Of the draws of n_keep and band=random, and of constructed images."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "cross_fit")
        check_at_least(self, 0, "seed")
        for name in ("n_keep", "epochs", "classes_out"):
            if getattr(self, name) is not None:
                check_above(self, 0, name)
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                check_at_least(self, 0, name)
                check_at_most(self, 1, name)
        if self.ends[0] >= self.ends[1]:
            raise OutskirtsError(f"low is {self.ends[0]:g} and high {self.ends[1]:g}; low must be the smaller one")
        if self.classes_out is not None and self.classes_out >= 1:
            raise OutskirtsError(f"classes_out is {self.classes_out:g}, a share of the ID classes; give less than 1")
        for name, only in ONE_CALIBRATION.items():
            if getattr(self, name) is not None and self.calibration != only:
                raise OutskirtsError(
                    f"{name} is {getattr(self, name)!r}, which only calibration={only} reads, and calibration is {self.calibration}; leave "
                    f"it out, or give calibration={only}"
                )
        if self.calibration == "given" and not self.images:
            raise OutskirtsError("calibration=given needs OOD validation images; give images=NAME, e.g. folder:DIR")
        if self.rank and (self.calibrator is not None or not self.balance):
            raise OutskirtsError(
                "calibration=rank fits no map; leave calibrator and balance out, or take another calibration"
            )
        if self.calibrator == "temperature" and self.score == "energy":
            raise OutskirtsError(
                "calibrator=temperature has no bias, and energies lie far from 0, so every P(ID) would be above 0.5; give score=phi, or calibrator=platt"
            )

    @property
    def rank(self) -> bool:
        return self.calibration == "rank"

    @property
    def ends(self) -> tuple[float, float]:
        """Of the middle band."""
        low, high = ENDS[self.rank]
        return low if self.low is None else self.low, high if self.high is None else self.high


@dataclass(frozen=True)
class AnalyseSettings:
    """How filtered outliers, and the detector's shifts, are looked at for the report."""

    judge: str | None = None
    """Who says what an outlier shows: clip:FOLDER or clip:ID; a classifier of the ID classes by name; fit: one trained like the plain
    classifier, from another seed; none: the plain classifier itself, which is no independent witness."""
    words: tuple[str, ...] = ()
    """Further words that a CLIP judge may answer with: words themselves, file:PATH, timm:imagenet, benchmark:NAME."""
    types: int = 500
    """Outliers whose type is told, drawn evenly."""
    shift_map: Literal["constructed", "measured", "none"] = "constructed"
    """constructed: OOD classes by distance x corruptions by severity; measured: by distances in CLIP's class and style
    directions (a CLIP judge is needed); none."""
    cells: str | None = None
    """Folder of Syn-IS: sub-folders cov_0_sem_0 to cov_7_sem_7, each with images; the map is then of these too."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "types")
        clip = (self.judge or "").startswith("clip:")
        if self.judge == "clip:" or (self.judge or "x").strip() == "":
            raise OutskirtsError(f"judge is {self.judge!r}; give clip:FOLDER, clip:ID, a classifier, fit, or none")
        if self.words and not clip:
            raise OutskirtsError(
                "words are what a CLIP judge may answer with; give judge=clip:FOLDER too, or leave words out"
            )
        if self.shift_map == "measured" and not clip:
            raise OutskirtsError(
                "shift_map=measured is measured with CLIP; give judge=clip:FOLDER, or shift_map=constructed"
            )
