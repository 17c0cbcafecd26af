"""GOOD: guided out-of-distribution diffusion (arXiv 2510.17131, NeurIPS 2025), without its transductive parts.

A diffusion model is pushed up the gradient of the ID classifier's energy (image level, eq. 3) or of the distance to its k-th
nearest training feature (feature level, eq. 6), through training-free guidance, at many strengths at once.
docs/papers/good.md maps equations to symbols and lists where we depart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.diffuse import Noise, sample
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.guide import Target, band, cfg, clip, tfg
from outskirts.load_diffusion import load_diffusion
from outskirts.scores.energy import Score as Energy
from outskirts.scores.knn import Score as KNN
from outskirts.settings import check_above, check_at_least, check_at_most, check_types
from outskirts.synth._shared import as_outliers, seed_of
from outskirts.synth._strength import tries, units
from outskirts.types import Outlier, Request

IMAGE, FEATURE, BOTH = "image", "feature", "both"


@dataclass
class Synthesizer:
    """Outliers by guidance of a diffusion model with the user's classifier.

    The grid is 25 image-level pairs (rho, mu) and 7 feature-level values rho = mu, mixed within batches; an outlier
    depends on its own request alone.
    """

    diffusion: str = "digits"
    """Diffusion model: `digits`, a diffusers folder or a Hub id."""
    guidance: tuple[str, ...] = (IMAGE, FEATURE)
    """Targets: image (energy), feature (kNN distance), both (their sum; the paper's code has it, its results do not use it)."""
    toward: Literal["ood", "id"] = "ood"
    """Up the score or down it."""
    image_grid: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    """Values of rho and of mu, every pair, image level."""
    feature_grid: tuple[float, ...] = (0.2, 0.4, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Values of rho = mu, feature level."""
    images_per_pair: int = 5
    """Per class, image level."""
    images_per_value: int = 15
    """Per class, feature level."""
    strength: Literal["auto", "literal"] = "auto"
    """auto: the grid is multiplied by the unit at which its middle, guided towards OOD, reaches what `quantile` of held-out ID
    images stay under; the same unit serves toward="id". literal: the numbers as they are."""
    quantile: float = 0.95
    """Of held-out ID energies (or kNN distances), for strength="auto" and for the band."""
    probe: int = 16
    """Requests per strength in the search for that unit."""
    band_width: float = 0.0
    """Above 0: aim at the quantile instead of ever upwards, log f = -(E - Q)^2 / (2 width^2); in units of the score."""
    k: int = 100
    """Neighbour of the feature level."""
    knn_scale: float = 0.0
    """s in log f = s D_k; 0: measured, so that both targets push alike (the paper's lost constant is about 10)."""
    steps: int = 50
    """DDIM steps."""
    eta: float = 1.0
    """0 deterministic, 1 ancestral."""
    reference_steps: int = 100
    """Steps the grid is meant for: the total push stays the same whatever `steps` is."""
    guidance_scale: float = 1.0
    """Classifier-free guidance s: 1 none; 7.5 for Stable Diffusion."""
    sigma_image: float = 0.1
    """Smoothing of the image-level target (the paper's gamma), in units of x0."""
    sigma_feature: float = 0.001
    """Smoothing of the feature-level target."""
    draws: int = 1
    """Monte-Carlo draws of the smoothing."""
    iterations: int = 1
    """N_iter of mean guidance."""
    recurrences: int = 1
    """N_recur: repetitions of each step."""
    schedule: Literal["increase", "decrease", "constant"] = "increase"
    """How strengths are spread over the steps, mean 1."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guide only between these positions, 0 noise to 1 image; the others' share is made up for."""
    every: int = 1
    """Guide every n-th step, likewise."""
    prompt: str = "A high-quality image of the {class}"
    """Template, for models that take text."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Class name -> prompt of its own, e.g. {"kite": "A high-quality image of the kite, a bird"}."""
    batch_size: int = 32
    """Outliers sampled at a time."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the denoising network and the guidance decoder; scores are always fp32."""
    compile: bool = False
    """torch.compile the denoising network: worth it for long runs on a GPU."""
    tiny_vae: str | None = None
    """AutoencoderTiny to decode with for guidance, e.g. madebyollin/taesd; final images come from the full VAE."""
    image_size: int | None = None
    """Side in pixels, latent models only; the model's own by default."""
    checkpointing: bool = False
    """Recompute activations: less memory, about a third slower; latent models only."""

    requires: ClassVar[frozenset[str]] = frozenset({"label", "classifier"})

    def __post_init__(self):
        check_types(self)
        wrong = set(self.guidance) - {IMAGE, FEATURE, BOTH}
        if wrong or not self.guidance:
            raise OutskirtsError(f"guidance={self.guidance}; accepted: some of image, feature, both")
        counts = ("images_per_pair", "images_per_value", "probe", "k", "steps", "reference_steps", "draws")
        check_above(self, 0, *counts, "iterations", "recurrences", "every", "batch_size", "quantile")
        check_at_least(self, 0, "band_width", "knn_scale", "eta", "guidance_scale", "sigma_image", "sigma_feature")
        check_at_most(self, 1, "quantile")
        for name in ("image_grid", "feature_grid"):
            values = getattr(self, name)
            if not values or not all(math.isfinite(v) and v >= 0 for v in values):
                raise OutskirtsError(f"{name} is {values}; give one or more strengths, each 0 or above")
        if self.band_width and self.toward == "id":
            raise OutskirtsError(
                "band_width aims at one value from both sides, toward=id at the low end; give one of them"
            )

    def fit(
        self, images, classifier, *, val=None, state: Mapping[str, Any] | None = None, progress: bool = False
    ) -> "Synthesizer":
        """Loads the diffusion model, builds the kNN bank from `images`, and finds the units of strength on `val`.

        `state` is what an earlier fit left in `self.state` (plain numbers): with it nothing is searched again.
        """
        self.classifier = classifier.to(self.device).frozen()
        options = {"tiny_vae": self.tiny_vae, "image_size": self.image_size, "checkpointing": self.checkpointing}
        self.model = load_diffusion(
            self.diffusion, device=self.device, precision=self.precision, compile=self.compile, **options
        )
        self.classes = list(images.classes)
        self._check_conditions()
        self.energy, self.knn = Energy(), None
        val = images if val is None else val
        title = "features of ID images" if progress else None
        outputs = collect(self.classifier, val, progress=title)
        if {FEATURE, BOTH} & set(self.guidance):
            train = collect(self.classifier, images, progress=title)
            self.knn = KNN(k=self.k).fit(train, images.labels)
        self.state = dict(state) if state else units(self, val, outputs)
        return self

    @property
    def search_cost(self) -> int:
        """Outliers' worth of sampling that `fit` spends on the search for the units; for estimates of time."""
        return len(self.guidance) * tries() * self.probe if self.strength == "auto" else 0

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """The whole grid for every class, or `n` requests that visit classes and grid cells evenly, in a seeded order."""
        cells = self._cells()
        order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed % 2**63)).tolist()
        K = len(self.classes)
        n = K * len(cells) if n is None else n
        return [self._request(i, seed, i % K, cells[order[(i // K) % len(cells)]]) for i in range(n)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        x0 = self.sample(requests, self.strengths(requests))
        with torch.no_grad():  # a few at a time: the full VAE at 512 px is the largest thing in memory
            images = torch.cat([self.model.decode(part) for part in x0.split(8)])
        yield from as_outliers(requests, images, self.classifier, self.knn)

    def strengths(self, requests: Sequence[Request]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """rho and mu of each request, in the units found by `fit`."""
        unit = torch.tensor([self.state[r.dials["target"]]["unit"] for r in requests])
        rho, mu = (torch.tensor([float(r.dials[name]) for r in requests]) for name in ("rho", "mu"))
        return rho * unit, mu * unit

    def sample(self, requests: Sequence[Request], strengths, callback=None) -> Float[Tensor, "B *S"]:
        """x0 of each request under guidance of (rho, mu) [B], each from its own generator."""
        model = self.model
        labels, prompts = [r.label for r in requests], [r.prompt for r in requests]
        cond = (
            model.condition(prompts=prompts) if model.takes == "prompt" else model.condition(labels=self._own(labels))
        )
        predictor = cfg(model, *cond, self.guidance_scale)
        levels = model.levels(self.steps)
        noise = Noise([r.seed for r in requests], model.shape, model.device)
        x_T = noise()
        by_feature = torch.tensor([r.dials["target"] == FEATURE for r in requests])
        guided = tfg(
            clip(predictor) if model.clips else predictor,
            self.target(requests),
            levels,
            rho=strengths[0],
            mu=strengths[1],
            sigma=torch.where(by_feature, self.sigma_feature, self.sigma_image),
            draws=self.draws,
            iterations=self.iterations,
            noise=noise,
            schedule=self.schedule,
            reference_steps=self.reference_steps,
            interval=self.interval,
            every=self.every,
        )
        return sample(guided, x_T, levels, noise=noise, eta=self.eta, recurrences=self.recurrences, callback=callback)

    def target(self, requests: Sequence[Request]) -> Target:
        """log f of a mixed batch: energy, s D_k, or their sum, whichever each request asks for; one pass for all."""
        kinds = [r.dials["target"] for r in requests]
        on = {t: torch.tensor([k in (t, BOTH) for k in kinds], device=self.model.device) for t in (IMAGE, FEATURE)}
        sign = 1.0 if self.toward == "ood" else -1.0

        def log_f(x0: Tensor) -> Tensor:
            outputs = self.classifier(self.model.decode_for_guidance(x0))
            total = 0.0
            for name, score, s in ((IMAGE, self.energy, 1.0), (FEATURE, self.knn, self.state.get("knn_scale", 1.0))):
                if not on[name].any():
                    continue
                value = score(outputs)
                if self.band_width > 0:
                    value = band(value, self.state[f"{name}_aim"], self.band_width)
                else:
                    value = sign * s * value  # GOOD eq. 3, eq. 6
                # where, not times: a value that is not finite stays with the samples that asked for it
                total = total + torch.where(on[name].repeat(len(x0) // len(requests)), value, 0.0)
            return total

        return log_f

    def _cells(self) -> list[dict]:
        pairs = [(rho, mu) for rho in self.image_grid for mu in self.image_grid]
        cells = []
        for target in self.guidance:
            if target == FEATURE:
                cells += [(target, v, v) for v in self.feature_grid for _ in range(self.images_per_value)]
            else:
                cells += [(target, *pair) for pair in pairs for _ in range(self.images_per_pair)]
        return [{"target": target, "rho": rho, "mu": mu} for target, rho, mu in cells]

    def _request(self, id: int, seed: int, label: int, dials: dict) -> Request:
        name = self.classes[label]
        prompt = self.prompts.get(name, self.prompt.replace("{class}", name)) if self.model.takes == "prompt" else None
        return Request(id, seed_of(seed, id), label, prompt=prompt, dials=dials)

    def _check_conditions(self) -> None:
        if unknown := sorted(set(self.prompts) - set(self.classes)):
            raise OutskirtsError(
                f"prompts for {', '.join(unknown[:5])}, which are no classes of the data; known: {', '.join(self.classes[:10])}"
            )
        if self.model.takes == "label" and self.model.classes:
            missing = [c for c in self.classes if c not in self.model.classes]
            if missing:
                raise OutskirtsError(
                    f"diffusion model {self.diffusion!r} knows no class {missing[0]!r}; it knows {', '.join(self.model.classes[:12])}: train one with fit-diffusion"
                )

    def _own(self, labels: Sequence[int | None]) -> list[int | None]:
        """The data's labels as the diffusion model numbers them; None stays, for the null class."""
        known = self.model.classes
        return [known.index(self.classes[y]) if known and y is not None else y for y in labels]
