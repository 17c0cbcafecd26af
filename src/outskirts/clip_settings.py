"""`ClipTuneSettings`: how CLIP is tuned on outliers, as plain values. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from outskirts.errors import OutskirtsError
from outskirts.settings import check_above, check_at_least, check_at_most, check_types

VARIANTS = {
    "steps": ("labels", "projection", "both"),
    "joint": ("joint",),
    "projection": ("projection",),
    "labels": ("labels",),
}
"""Mode -> what it makes; the last one is the detector's."""


@dataclass(frozen=True)
class ClipTuneSettings:
    """SynOOD's two tunings of CLIP (arXiv 2507.10225), and the negative labels that they start from."""

    mode: Literal["steps", "joint", "projection", "labels"] = "steps"
    """steps: image side and label side, each by itself, then both together; joint: both losses at once, on projected features; or one side alone."""
    template: str = "the nice {}"
    """Prompt of class names and nouns."""
    share: float = 0.15
    """Of the nouns, and of the adjectives, that become negative labels."""
    quantile: float = 0.95
    """Of a word's cosines to the class names, by which words are ranked."""
    groups: int = 100
    """Groups of negative labels in the score."""
    tau: float = 0.01
    """Temperature of the score."""
    cap: int | None = None
    """Outliers that one label takes at most, its nearest ones; the others are left out of the tuning. none: all."""
    held_out: float = 0.1
    """Share of the outliers that no tuning sees; the log says how each variant tells them from ID images."""
    batch_size: int = 128
    """Images per step; on the image side half of them ID images, half outliers."""
    epochs: int = 3
    """Image side, and joint: passes over the larger of the two populations."""
    lr: float = 1e-3
    """Image side: initial learning rate of Adam, cosine per epoch to 1e-5."""
    label_epochs: int = 5
    """Label side: passes over the outliers."""
    label_lr: float = 2e-2
    """Label side: initial learning rate of SGD with momentum 0.9, cosine per epoch to 0. The paper says 2e-3, its release takes 2e-2."""
    weight_decay: float = 1e-5
    """L2 penalty, per step, on both sides."""
    keep: float = 0.95
    """Share of ID images that the detector's threshold keeps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial projection and the order of images; the detector is that of the first. A claim needs at least two."""

    def __post_init__(self):
        check_types(self)
        check_above(
            self,
            0,
            "groups",
            "tau",
            "share",
            "batch_size",
            "epochs",
            "lr",
            "label_epochs",
            "label_lr",
            "held_out",
            "keep",
        )
        check_at_least(self, 0, "quantile", "weight_decay")
        check_at_most(self, 1, "share", "quantile")
        check_at_most(self, 0.5, "held_out")
        if self.cap is not None:
            check_above(self, 0, "cap")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise OutskirtsError(f"seeds is {self.seeds!r}; give at least one, each 0 or above and none twice")
