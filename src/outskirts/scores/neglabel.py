"""NegLabel: CLIP's choice between the class names and words that are far from them, Jiang et al. (arXiv 2403.20078)."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from outskirts.clip import clip_of, text_encoder
from outskirts.errors import OutskirtsError
from outskirts.negatives import Negatives, mine, read_words, remembered
from outskirts.scores._shared import learned
from outskirts.types import Outputs

CHUNK = 2**24
"""Cosines to negative labels held at a time."""


@dataclass
class Score:
    """-log(S / (1 - S)), S the share of softmax on the class names, mean over groups of negative labels. A CLIP classifier only.

    The paper's S is higher for ID. Its log-odds rank the same, with the other sign, where softmax has long saturated and S ties. The
    labels are dealt into groups by a fixed permutation; the last M mod G, the least far of the last part of speech, are left out.
    """

    words: str = ""
    """Word lists, separated by commas: files of one word a line (adj.* adjectives, others nouns; or noun:FILE, adj:FILE), folders of noun.*
    and adj.* files, or wordnet, an installed nltk corpus."""
    clip: str | None = None
    """The CLIP model that embeds the words, a folder or a Hub id; none: the one that the classifier was made from."""
    groups: int = 100
    """G; each has M / G negative labels. 1: one softmax over all."""
    tau: float = 0.01
    """Temperature of the softmax over cosines."""
    share: float = 0.15
    """Of the nouns, and of the adjectives, that become negative labels."""
    quantile: float = 0.95
    """Of a word's cosines to the class names, by which words are ranked."""

    differentiable: ClassVar[bool] = True
    transductive: ClassVar[bool] = False
    reads_texts: ClassVar[bool] = True
    """Fits CLIP classifiers only."""

    def __post_init__(self):
        if self.groups < 1 or not self.tau > 0:
            raise OutskirtsError(
                f"groups={self.groups}, tau={self.tau}; give at least one group and a temperature above 0"
            )
        if not (0 < self.share <= 1 and 0 <= self.quantile <= 1):
            raise OutskirtsError(f"share={self.share}, quantile={self.quantile}; give shares above 0 and up to 1")

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
        classifier=None,
    ) -> "Score":
        """Mines the labels; no image is read. Raises OutskirtsError without words, or with fewer labels than groups."""
        negatives = self.mined(classifier)
        return self.with_labels(negatives, classifier.net.head.logit_scale.exp().item())

    def mined(self, classifier) -> Negatives:
        """The negative labels of a CLIP classifier's class names, among the words."""
        net = clip_of(classifier, "neglabel")
        words = read_words([w.strip() for w in self.words.split(",") if w.strip()])
        encoder = text_encoder(self.clip or net.name)
        if encoder.fingerprint != net.text_side:
            raise OutskirtsError(
                f"{self.clip or net.name} is not the CLIP model that the classifier was made from; give that one as clip="
            )
        settings = {"template": net.template, "share": self.share, "quantile": self.quantile}
        return mine(words, net.head.text.cpu(), remembered(encoder), **settings)

    def with_labels(self, negatives: Negatives, scale: float) -> "Score":
        """Self, fitted with these labels on a classifier whose logits are `scale` times a cosine."""
        if len(negatives.words) < self.groups:
            raise OutskirtsError(
                f"{len(negatives.words)} negative labels for {self.groups} groups; give more words, a larger share or fewer groups"
            )
        self.negatives_ = F.normalize(negatives.features.float(), dim=-1)
        self.labels_, self.scale_ = "\n".join(negatives.words), float(scale)
        dealt = len(negatives.words) // self.groups * self.groups
        self.order_ = torch.randperm(dealt, generator=torch.Generator().manual_seed(0))
        return self

    def tuned(self, rows: Int[Tensor, " m"], features: Float[Tensor, "m D"]) -> "Score":
        """A copy whose labels at `rows` have other features; they are brought to norm 1."""
        other = copy.copy(self)
        other.negatives_ = learned(self, "negatives_").index_copy(0, rows, F.normalize(features.float(), dim=-1))
        return other

    def __call__(self, outputs: Outputs) -> Float[Tensor, " B"]:
        negatives = learned(self, "negatives_")
        if negatives.shape[1] != outputs.features.shape[1]:
            raise OutskirtsError(
                f"neglabel has labels of {negatives.shape[1]} features, the images {outputs.features.shape[1]}; fit it on this CLIP classifier"
            )
        negatives = negatives[self.order_].to(outputs.features.device, torch.float64)
        parts = [outputs]
        if not torch.compiler.is_compiling():  # while it is traced, for export, a batch has no size to cut it by
            rows = max(1, CHUNK // len(negatives))
            parts = [outputs[i : i + rows] for i in range(0, max(1, len(outputs)), rows)]
        return torch.cat([self._scores(part, negatives) for part in parts]).float()

    def _scores(self, outputs: Outputs, negatives: Float[Tensor, "M D"]) -> Float[Tensor, " b"]:
        p = (outputs.logits.double() / (self.scale_ * self.tau)).logsumexp(-1)
        q = F.normalize(outputs.features.double(), dim=-1) @ negatives.T / self.tau
        x = p[:, None] - q.unflatten(1, (self.groups, -1)).logsumexp(-1)  # a group's softmax share is sigmoid(x)
        return F.logsigmoid(-x).logsumexp(-1) - F.logsigmoid(x).logsumexp(-1)

    def nearest(self, outputs: Outputs) -> list[str]:
        """The negative label that each image is most like: what it might be, if it is OOD."""
        q = F.normalize(outputs.features.float(), dim=-1) @ learned(self, "negatives_").to(outputs.features.device).T
        words = self.labels_.split("\n")
        return [words[i] for i in q.argmax(1).tolist()]
