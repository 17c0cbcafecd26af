"""ID images through the diffusion model's lossy codec (a VAE, or a patch codec) and back, and nothing else.

SONA's release (arXiv 2408.14841) also trains on them as ID images, so that a detector cannot take the codec's traces for the mark of an
outlier: here `train.vae_roundtrip`. As outliers (`synth=roundtrip`) they are a control: what they gain, traces gain.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from outskirts.data import require_labels
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.load_diffusion import load_diffusion, located
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import as_outliers, from_sources, pixels_of, seed_of
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """An ID image, encoded and decoded. There is nothing random in it."""

    diffusion: str = "digits"
    """Diffusion model whose codec it is: a diffusers folder or a Hub id."""
    batch_size: int = 8
    """Images that pass at a time: at 512 px a VAE takes more memory than the network."""
    device: str = "cpu"
    """Where the codec runs."""
    image_size: int | None = None
    """Side in pixels, latent models only; the model's own by default."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "label"})

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "batch_size")

    def check(self, index: Mapping, classes: Sequence[str]) -> None:
        """Raises OutskirtsError where the model's `index`, or its folder, says that it has no codec, before anything is loaded."""
        if "vae" not in index and not (Path(located(self.diffusion)) / "codec").is_dir():
            raise OutskirtsError(no_codec(self.diffusion))

    def fit(self, images: Images, classifier=None, *, val: Images | None = None) -> "Synthesizer":
        """Loads the diffusion model. Raises OutskirtsError where it has no lossy codec."""
        self.images_, self.state = require_labels(images), {}
        self.classifier = None if classifier is None else classifier.to(self.device).frozen()
        self.model = load_diffusion(self.diffusion, device=self.device, image_size=self.image_size)
        codec = getattr(self.model, "codec", None)
        if self.model.takes != "prompt" and (codec is None or codec.components == len(codec.mean)):
            raise OutskirtsError(no_codec(self.diffusion))
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """Every ID image in order, or `n` of them in a seeded order."""
        if n is not None:
            return from_sources(self.images_, n, seed)
        return [Request(i, seed_of(seed, i), label, i) for i, label in enumerate(self.images_.labels.tolist())]

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        images = pixels_of(self.images_, [r.source for r in requests], self.model.image_size).to(self.model.device)
        yield from as_outliers(requests, self.model.decode(self.model.encode(images.float() / 255)), self.classifier)


def no_codec(name: str) -> str:
    """What to say of a diffusion model that images pass unchanged."""
    return (
        f"diffusion model {name!r} works on pixels, so images have no lossy codec to pass through; leave train.vae_roundtrip and "
        "synth=roundtrip out, or give a latent model, or one made by fit-diffusion with codec=patch-pca"
    )
