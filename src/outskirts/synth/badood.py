"""Bad-OOD: an ID image's representation, noised and denoised while it is pushed to where representations are rare, then decoded.

The representation diffusion model is trained on embeddings of the user's own ID images; so is the default decoder. One outlier
per ID image. `decoder=none` leaves outliers in the classifier's feature space (Table 13), which is the honest choice for natural
images without a GPU. docs/papers/badood.md maps equations to symbols and lists where we depart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.data import require_labels
from outskirts.decoder_small import fit_small
from outskirts.decoders import NONE, SMALL, load_space
from outskirts.diffuse import Noise, sample
from outskirts.encoders import embeddings
from outskirts.errors import OutskirtsError
from outskirts.fit_representation import RepresentationSettings, fit_representation
from outskirts.guide_minority import jitter, minority
from outskirts.images import Images
from outskirts.recipe import DiffusionSettings
from outskirts.representation import Representation, level, levels
from outskirts.scores._shared import head_of
from outskirts.settings import check_above, check_at_least, check_at_most, check_types
from outskirts.synth._artefact import generator_of
from outskirts.synth._badood import check, check_images, found, unset
from outskirts.synth._ratio import knn_distance
from outskirts.synth._shared import as_outliers, feature_outliers, from_sources, pixels_of
from outskirts.tensors import content_hash
from outskirts.types import Outlier, Predictor, Request


@dataclass
class Synthesizer:
    """An outlier for each ID image: its anchor.

    Ratios are those of the mean distance to the nearest training representations, 1 as far as held-out ID images are.
    """

    encoder: str = "classifier"
    """Where representations come from: classifier (its features), timm:ID, clip:ID. Decoders with an encoder of their own need none."""
    decoder: str = "small"
    """small (trained on the ID images), none (outliers stay features of the classifier), kandinsky:ID, unclip:ID, mage:FOLDER."""
    knn_ratio: tuple[float, ...] = (1.0, 1.1, 1.2)
    """How far out, outliers in turn: the strength of each is searched for."""
    strengths: tuple[float, ...] = ()
    """Instead of ratios: length of the guided path in units of z (form=unit), or the weight w. The paper's 0.025, 0.05, 0.075 for each of
    75 steps are 1.875, 3.75, 5.625 with n_steps=75."""
    guidance: Literal["minority", "noise", "none"] = "minority"
    """noise: a random direction at each step instead, the baseline of Table 7; none: anchors are only decoded, a control of what traces
    of the decoder do."""
    toward: Literal["ood", "id"] = "ood"
    """Up the minority score or down it; down takes strengths."""
    form: Literal["unit", "adm", "sg_minority"] = "unit"
    """What a step is, see `guide_minority.minority`."""
    distance: Literal["l2", "l1"] = "l2"
    """Between the two estimates."""
    draws: int = 1
    """Noises of the second estimate; 4 points more surely outwards, for twice the time."""
    t: int = 300
    """Level, of 1000, that anchors are noised to."""
    s: int = 125
    """Level, of 1000, of the second estimate."""
    n_steps: int = 15
    """Guided steps from t to the data; 1: one step and its estimate. RCG's stride is 75."""
    k: int = 5
    """Neighbours of the distance."""
    probe: int = 200
    """Anchors on which strengths are tried."""
    components: int | None = None
    """Dimensions of z at most, principal components; none: 256, and all for decoders that are trained already."""
    representation: str | None = None
    """Folder of a representation diffusion model to take instead of training one, e.g. RCG's (`outskirts convert-rcg --rdm`)."""
    width: int | None = None
    """Of the representation diffusion model; none, as for blocks: by the number of images."""
    blocks: int | None = None
    """Of the representation diffusion model."""
    class_conditional: bool | None = None
    """Whether it is conditional on the ID classes, and guided outliers on that of their anchor; none: no."""
    model_steps: int = 2000
    """Steps at most of its training, batches of 256."""
    decoder_steps: int = 1000
    """Steps of the small decoder's training. Natural images need tens of thousands."""
    decoder_channels: tuple[int, ...] = (64, 96)
    """Channels of the small decoder, finest first."""
    decoder_batch: int = 128
    """Images per step of its training."""
    decoder_lr: float = 1e-3
    """Its peak learning rate."""
    codec: Literal["auto", "none", "patch-pca"] = "auto"
    """Of the small decoder: patch-pca makes natural images cheap, auto takes it for those on a CPU."""
    steps: int = 20
    """DDIM steps of the decoder; MAGE's passes."""
    guidance_scale: float | None = None
    """Of the decoder's classifier-free guidance; none: 2 (small), 4 (Kandinsky), 10 (unCLIP), 0 (MAGE)."""
    from_anchor: float = 0.0
    """Above 0, small decoder only: start from the anchor's image, noised by this share of the steps. Hides a weak decoder; not in the paper."""
    image_size: int | None = None
    """Side of what is decoded; none: that of the ID images (small), or the model's own."""
    artefacts: int = 100
    """Held-out images decoded unperturbed, to see whether the decoder shows; 0: none."""
    batch_size: int = 64
    """Outliers made at a time."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of CLIP encoders and of decoding."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "classifier"})

    def __post_init__(self):
        check_types(self)
        check_above(
            self, 0, "draws", "k", "probe", "model_steps", "decoder_steps", "steps", "batch_size", "s", "n_steps"
        )
        check_at_least(self, 0, "from_anchor", "artefacts")
        check_at_most(self, 1, "from_anchor")
        self.levels, self.second = levels(self.t, self.n_steps), level(self.s)
        check(self)

    def fit(
        self,
        images: Images,
        classifier,
        *,
        val: Images | None = None,
        state: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        progress: bool = False,
    ) -> "Synthesizer":
        """Embeds `images`, trains the models on them, searches for the strengths and looks for the decoder's traces.

        In `folder` models and embeddings are kept by what they were made of; `state` is what an earlier fit left in `self.state`.
        Raises OutskirtsError for names that do not go together, embeddings that are not finite, too few images.
        """
        check_images(self, images)  # what cannot be trained on is told before anything is embedded
        self.images_, self.classifier = images, classifier.to(self.device).frozen()
        where = {"folder": folder, "progress": progress}
        options = {
            "precision": self.precision,
            "components": self.components,
            "side": self.image_size,
            "device": self.device,
        }
        self.encoder_, self.decoder_, normalizer = load_space(
            self.encoder, self.decoder, self.classifier, steps=self.steps, scale=self.guidance_scale, **options
        )
        self.head_ = head_of(self.classifier, "decoder=none") if self.decoder == NONE else None
        x = embeddings(self.encoder_, images, **where)
        if self.representation:
            self.model = Representation.load(Path(self.representation), normalizer, self.device)
        else:
            settings = RepresentationSettings(self.width, self.blocks, self.model_steps)
            given = {"labels": require_labels(images).labels} if self.class_conditional else {}
            self.model = fit_representation(x, normalizer, settings, device=self.device, **given, **where)
        with torch.no_grad():
            self.z_ = self.model.normalizer(x.to(self.device))
        if self.decoder == SMALL:
            self.decoder_ = self._train_decoder(x, where)
        hashes = {"model": content_hash(self.model.network, self.model.normalizer)}
        hashes |= {"decoder_weights": self.decoder_.weights_hash} if self.decoder_ else {}
        if state and (changed := [k for k, v in hashes.items() if state.get(k) != v]):
            raise OutskirtsError(
                f"the {changed[0]} is another one than that of the outliers here ({hashes[changed[0]]}, was {state.get(changed[0])}); "
                "make them again with --redo synth"
            )
        self.state = dict(state) if state else hashes | found(self, val, where)
        return self

    def shortened(self, steps: int = 4) -> tuple["Synthesizer", float]:
        """(the same with `steps` of training and no search, how many times as long this one trains): for estimates of time."""
        decoder = max(1, round(self.decoder_steps * steps / self.model_steps))
        few = {"model_steps": steps, "decoder_steps": decoder, "artefacts": 0}
        few |= {} if self.guidance == "none" else {"strengths": self.strengths or (1.0,)}
        return replace(self, **few), self.model_steps / steps

    def control(self) -> "Synthesizer":
        """The same, but that anchors are only decoded: the ID images of train.vae_roundtrip."""
        if self.decoder == NONE:
            raise OutskirtsError(
                "train.vae_roundtrip passes ID images through the decoder of the outliers, and decoder=none makes none an image; leave it out, or "
                "take a decoder"
            )
        return replace(self, **unset(self), guidance="none", artefacts=0)

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` requests (one for each ID image) over the ID images in a seeded order, with ratios or strengths in turn."""
        strengths = (0.0,) if self.guidance == "none" else self.strengths
        name, values = ("strength", strengths) if strengths else ("ratio", self.knn_ratio)
        found = from_sources(self.images_, len(self.images_) if n is None else n, seed)
        return [replace(r, dials={name: values[i % len(values)]}) for i, r in enumerate(found)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        strengths = torch.tensor([self._strength(r) for r in requests])
        z = self.represent(requests, strengths)
        anchors = torch.tensor([r.source for r in requests], device=z.device)
        far = knn_distance(z, self.z_, self.k, own=anchors)
        columns = {
            "strength": strengths,
            "knn_distance": far,
            "knn_ratio": far / self.state["knn_reference"],
            "anchor_distance": (z - self.z_[anchors]).norm(dim=1),
        }
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        notes = [
            {"anchor": r.source, **dict(zip(columns, row, strict=True))} for r, row in zip(requests, rows, strict=True)
        ]
        x = self.model.normalizer.inverse(z)
        if self.decoder_ is None:
            for outlier in feature_outliers(requests, x.cpu(), self.head_, notes):
                fine = outlier.feature.isfinite().all()
                yield outlier if fine else Outlier(outlier.request, notes={"failed": "features that are not finite"})
            return
        options = {}
        if self.from_anchor:
            images = pixels_of(self.images_, anchors.tolist(), self.decoder_.native_size)
            options = {"anchors": images.float() / 255, "from_anchor": self.from_anchor}
        decoded = self.decoder_.decode(x, [generator_of(r.seed) for r in requests], **options)
        for outlier, more in zip(as_outliers(requests, decoded, self.classifier), notes, strict=True):
            yield outlier if "failed" in outlier.notes else replace(outlier, notes={**outlier.notes, **more})

    def represent(self, requests: Sequence[Request], strengths: float | Float[Tensor, "B"]) -> Float[Tensor, "B c"]:
        """z of each request: its anchor noised to t and walked back under guidance of the given strength; without guidance, its anchor."""
        if self.guidance == "none":
            return self.z_[[r.source for r in requests]]
        noise = Noise([r.seed for r in requests], self.z_.shape[1:], self.z_.device)
        start, abar = self.z_[[r.source for r in requests]], self.levels[0].abar
        x = abar**0.5 * start + (1 - abar) ** 0.5 * noise()
        of = {"labels": self.images_.labels[[r.source for r in requests]]} if self.class_conditional else {}
        return sample(self._guided(partial(self.model.predictor, **of), strengths, noise), x, self.levels)

    def _guided(self, predictor: Predictor, strengths: float | Tensor, noise: Noise) -> Predictor:
        if self.guidance == "noise":
            return jitter(predictor, strength=strengths, noise=noise)
        sign = 1.0 if self.toward == "ood" else -1.0
        options = {"form": self.form, "distance": self.distance, "draws": self.draws}
        return minority(predictor, self.second, strength=sign * strengths, noise=noise, **options)

    def _strength(self, request: Request) -> float:
        dials = request.dials
        return float(dials["strength"] if "strength" in dials else self.state[f"ratio {dials['ratio']:g}"]["strength"])

    def _train_decoder(self, x: Float[Tensor, "N d"], where: dict):
        settings = DiffusionSettings(
            self.decoder_channels, codec=self.codec, steps=self.decoder_steps, batch_size=self.decoder_batch, lr=self.decoder_lr
        )  # fmt: skip
        sampling = {"steps": self.steps, "precision": self.precision}
        sampling |= {} if self.guidance_scale is None else {"scale": self.guidance_scale}
        options = {"side": self.image_size, "device": self.device, **where, **sampling}
        return fit_small(self.images_, x, self.encoder_, self.model.normalizer, settings, **options)
