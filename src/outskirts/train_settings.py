"""`TrainSettings`: how a classifier is trained on ID images and outliers, as plain values. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from outskirts.errors import OutskirtsError
from outskirts.settings import check_above, check_at_least, check_types

Augment = Literal["flip-crop", "shift", "none"]
MI_FIELDS = ("mi_steps", "mi_pretrain")
"""Fields of `TrainSettings` that are read where mi is above 0; they are refused elsewhere."""
LOSS_FIELDS = {
    "phi": "energy_logistic",
    **dict.fromkeys(("m_in", "m_out"), "energy_margin"),
    **dict.fromkeys(("mix", "mix_beta"), "mixoe"),
}
"""Fields of `TrainSettings` that one loss alone reads; they are refused with another one."""


@dataclass(frozen=True)
class TrainSettings:
    """How a classifier is trained on ID images and outliers (specs of GOOD eq. 8)."""

    loss: Literal["energy_logistic", "oe_uniform", "energy_margin", "mixoe"] = "energy_logistic"
    """energy_logistic: GOOD eq. 8; oe_uniform: cross-entropy to the uniform distribution (outlier exposure); energy_margin:
    squared hinges on the energy; mixoe: cross-entropy of ID images mixed with outliers to labels as soft (images only)."""
    lam: float = 2.5
    """Weight of the outlier loss beside the ID cross-entropy. The papers: 2.5 energy_logistic, 0.5 oe_uniform, 0.1
    energy_margin, 5 mixoe."""
    phi: Literal["monotone"] | None = None
    """energy_logistic only: monotone holds phi increasing, so that training cannot settle on less energy for outliers than for ID
    images; for outliers that start with less, such as VOS features. None: as in the paper, phi may turn round."""
    m_in: float | None = None
    """energy_margin only: energy below which ID images pay nothing; none: the plain classifier's mean on them, or that on the
    outliers where it is the lower."""
    m_out: float | None = None
    """energy_margin only: energy above which outliers pay nothing; none: the plain classifier's other mean. Give both, or neither."""
    mi: float | None = None
    """Weight, per nat, of a bound on the mutual information of outliers and the ID images that they were made from (SONA's L_MI, by
    CLUB): takes image outliers that have a source each; none: left out. SONA writes 1; 0.01 is stable on standardised features."""
    mi_steps: int | None = None
    """mi only: steps of the bound's own network per step of training; none: 5."""
    mi_pretrain: int | None = None
    """mi only: its steps before training, without which it bounds nothing; none: 200."""
    vae_roundtrip: bool | None = None
    """ID images are also seen as outliers come out, by their classes, so that no codec's or decoder's traces are the mark of an outlier:
    all of them after the lossy codec of the run's diffusion model (its VAE, or patch codec: SONA's release), or the outliers' anchors,
    decoded unguided, where the synthesizer has a decoder of its own (Bad-OOD). The scout of a filter sees them too; none: no."""
    mix: Literal["cutmix", "mixup"] | None = None
    """mixoe only: a box of the outlier pasted into the ID image, or a weighted mean; none: cutmix."""
    mix_beta: float | None = None
    """mixoe only: the ID image's share is drawn from Beta(mix_beta, mix_beta); none: 1, evenly."""
    epochs: int = 50
    """Passes over the ID training images, each in a new order."""
    steps: int | None = None
    """Steps of an epoch, where it should not see every ID image; none: all of them once."""
    lr: float = 1e-4
    """Initial learning rate of SGD with Nesterov momentum 0.9, cosine per iteration to 1e-6."""
    batch_size: int = 80
    """ID images per step."""
    outlier_batch_size: int = 80
    """Outliers per step; they start again when exhausted."""
    weight_decay: float = 5e-4
    """L2 penalty, per step."""
    clip_norm: float = 1.0
    """Largest gradient norm; without it the joint training diverges on small networks."""
    augment: Augment = "flip-crop"
    """As in ClassifierSettings; ID images and outliers are treated alike."""

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "epochs", "lr", "batch_size", "outlier_batch_size", "clip_norm")
        check_at_least(self, 0, "lam", "weight_decay")
        if self.mi is not None:
            check_above(self, 0, "mi")
        if self.mi and self.loss == "mixoe":
            raise OutskirtsError(
                "mi compares outliers with their sources, and loss=mixoe mixes them with others; give one of the two"
            )
        if self.mi and self.outlier_batch_size > self.batch_size:
            raise OutskirtsError(
                f"mi puts the source of each outlier into the ID batch, and outlier_batch_size ({self.outlier_batch_size}) is above "
                f"batch_size ({self.batch_size}); give at most as many"
            )
        for name in MI_FIELDS:
            if getattr(self, name) is not None and not self.mi:
                raise OutskirtsError(
                    f"{name} is {getattr(self, name)!r}, which only mi reads; leave it out, or give mi"
                )
            if getattr(self, name) is not None:
                check_at_least(self, 0, name)
        if self.steps is not None:
            check_above(self, 0, "steps")
        for name, loss in LOSS_FIELDS.items():
            if getattr(self, name) is not None and loss != self.loss:
                raise OutskirtsError(
                    f"{name} is {getattr(self, name)!r}, which only loss={loss} reads, and loss is {self.loss}; leave it out, or give loss={loss}"
                )
        if self.mix_beta is not None:
            check_above(self, 0, "mix_beta")
        if None not in (self.m_in, self.m_out) and self.m_in >= self.m_out:
            raise OutskirtsError(f"m_in is {self.m_in} and m_out {self.m_out}; m_in must be the lower energy")
