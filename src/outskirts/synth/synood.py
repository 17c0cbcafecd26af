"""SynOOD: ID images in-painted into what stands around them, from a start whose noise is moved to the classifier's boundary.

Li et al., arXiv 2507.10225 (ICCV 2025). With an in-painting model of Stable Diffusion the prompt says the context of the image and not its
class; with a pixel model (no mask, no prompt) the class is simply not said. docs/papers/synood.md maps equations to symbols and lists
where we depart. What the paper then does with CLIP is `outskirts clip-tune`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outskirts.answers import prompt
from outskirts.contexts import FromFile, early, provider
from outskirts.diffuse import Noise, sample_from
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.guide import cfg, clip
from outskirts.images import Images
from outskirts.initial_noise import LOSSES, Learned, aim, learn_noise
from outskirts.inpaint import require_inpainting
from outskirts.load_diffusion import input_channels, load_diffusion
from outskirts.progress import track
from outskirts.scores.energy import Score as Energy
from outskirts.sources import select
from outskirts.synth._shared import as_outliers, pixels_of, seed_of
from outskirts.synth._synood import check_settings
from outskirts.synth.sona import ENCODED, starting_levels
from outskirts.types import Outlier, Request

GUIDANCE = 8.0
"""Classifier-free guidance with text: the release's, the paper has no number."""
PER_CLASS = 50
STEP = 5.0
STEPS = tuple(round(10 ** (k / 2), 4) for k in range(-6, 3))
"""0.001 to 10, where pixel models look for theirs."""


@dataclass
class Synthesizer:
    """One outlier for a request: a selected ID image noised to `strength`, its noise learned in `passes` generations.

    An outlier is the same whatever the order, the batch and the worker, up to rounding.
    """

    diffusion: str = "digits"
    """In-painting model of Stable Diffusion (folder or Hub id with 9 input channels), or a pixel model such as `digits`."""
    select: str = "compressed"
    """ID images to start from: compressed, those of each class with the largest JPEG file per pixel; all; or file:PATH, one a line."""
    per_class: int | None = None
    """Images of each class, select=compressed only; none: 50."""
    contexts: str | Mapping[str, Any] | None = None
    """What prompts say of a source, models with text only: file:PATH (JSONL or CSV: image, answer), words:PATH or a JSON object
    (class -> words), clip, hf:ID (a captioner, LLaVA), python:MODULE:FUNCTION, text:WORDS; none: clip, if clip and vocabulary are given."""
    clip: str | None = None
    """CLIP model (folder or Hub id) that finds the words of `vocabulary` in an image."""
    vocabulary: tuple[str, ...] = ()
    """Words, file:PATH with one a line, timm:imagenet, benchmark:NAME (names of its ID classes)."""
    most: int = 8
    """Words of a context at most."""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Class -> other names of it, separated by commas, that no context may say."""
    prompt: str = "A photo only remain {context}."
    """Template, the release's."""
    loss: Literal["energy_target", "hinge", "release", "msp"] = "energy_target"
    """energy_target: (E - target)^2; hinge: relu(target - E)^2; release: the same as the first with mean - lse in the place of E;
    msp: KL from the uniform distribution."""
    target: float | None = None
    """Energy aimed at, nats; none: the one under which `quantile` of held-out ID images stay (release: -5)."""
    quantile: float = 0.95
    """Of held-out ID energies."""
    passes: int = 3
    """Generations of each outlier; the noise is moved between them, so one less than that."""
    step: float | None = None
    """How far the noise moves along the gradient of the loss at the decoder's input; none: 5, the release's 10 with the mean over two;
    with pixel models, whose gradients are of another size, the one of a grid that ends nearest to the target on `probe` sources."""
    probe: int = 16
    """Outliers made with each step of that grid."""
    tolerance: float = 0.1
    """An outlier whose loss is at most the square of this is done: for energies, nats from the target."""
    steps: int = 20
    """DDIM steps of the whole grid; eta is 0."""
    strength: float = 0.6
    """Share of them that is walked, at least one step: how far the source is noised."""
    guidance_scale: float | None = None
    """Classifier-free guidance s, models with text only; none: 8."""
    batch_size: int = 32
    """Outliers made at a time."""
    decode_batch: int = 8
    """Outliers that are decoded and classified with a gradient at a time: the largest thing in memory at 512 px."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the denoising network."""
    compile: bool = False
    """torch.compile the denoising network, anew for every size that early stops leave of a batch: best with tolerance=0."""
    image_size: int | None = None
    """Side in pixels, latent models only; the model's own by default."""
    checkpointing: bool = False
    """Recompute activations of the decoder: less memory; latent models only."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "prompt", "classifier"})

    def __post_init__(self):
        check_settings(self)

    def check(self, index: Mapping, classes: Sequence[str] = ()) -> None:
        """Raises OutskirtsError for settings that do not suit the model, as its index and configuration tell, and contexts that name
        a class; nothing is loaded."""
        if "vae" in index and self.contexts is None and not (self.clip and self.vocabulary):
            raise OutskirtsError(
                f"no contexts, and {self.diffusion!r} reads prompts; give synth.contexts=file:PATH, words:PATH, hf:ID, text:WORDS or "
                "python:MODULE:FUNCTION, or synth.clip= and synth.vocabulary="
            )
        if "vae" in index and classes:
            require_inpainting(self.diffusion, input_channels(self.diffusion))
            early(self.contexts, classes, self.synonyms)
        for name in () if "vae" in index else ("contexts", "clip", "vocabulary", "synonyms", "guidance_scale"):
            if getattr(self, name) not in (None, (), {}):
                raise OutskirtsError(
                    f"{name} was given, but {self.diffusion!r} is a pixel model, which reads no prompt; leave it out"
                )

    def fit(
        self,
        images: Images,
        classifier,
        *,
        val: Images | None = None,
        state: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> "Synthesizer":
        """Loads the models, selects the sources, and finds the target energy on `val`; `state` is what an earlier fit found.

        Raises OutskirtsError for a model or schedule that cannot serve, and for contexts that name the class.
        """
        self.images_ = images
        self.classifier = classifier.to(self.device).frozen()
        self.model = load_diffusion(
            self.diffusion,
            device=self.device,
            precision=self.precision,
            compile=self.compile,
            image_size=self.image_size,
            checkpointing=self.checkpointing,
        )
        self.levels = starting_levels(self.model, self.steps)
        self.walked = max(1, int(self.steps * self.strength))
        self._check_model()
        self.check({"vae": None} if self.model.takes == "prompt" else {})
        options = {f: getattr(self, f) for f in ("most", "synonyms", "clip", "vocabulary", "device")}
        self.contexts_ = provider(self.contexts, images, **options) if self.model.takes == "prompt" else None
        has = self.contexts_.rows if isinstance(self.contexts_, FromFile) else range(len(images))
        self.sources_ = select(images, self.select, self.per_class or PER_CLASS, has)
        if state is None:
            energies = Energy()(collect(self.classifier, images if val is None else val))
            target = (
                aim(self.loss, energies, self.quantile, classifier.num_classes) if self.target is None else self.target
            )
            state = {"sources": len(self.sources_), "target": target} | ({"step": self.step} if self.step else {})
        self.state = dict(state)
        self.loss_ = partial(LOSSES[self.loss], target=self.state["target"])
        if "step" not in self.state:
            self.state["step"] = STEP if self.model.takes == "prompt" else self._best_step(progress)
        return self

    @property
    def search_cost(self) -> int:
        """Outliers' worth of sampling that `fit` spends on the search for a step, at most; for estimates of time."""
        return 0 if self.step or self.passes == 1 else len(STEPS) * self.probe

    def without_search(self) -> "Synthesizer":
        """For estimates of time, itself without the search for a step, which is as long as some 100 outliers."""
        return replace(self, step=self.step or STEP)

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` requests (one for each source) over the sources, the best of every class first, all of them before any one twice."""
        labels = self.images_.labels.tolist()
        rows = [self.sources_[i % len(self.sources_)] for i in range(len(self.sources_) if n is None else n)]
        return [Request(i, seed_of(seed, i), None if labels[r] < 0 else labels[r], r) for i, r in enumerate(rows)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        requests = self._prompted(sorted(requests, key=lambda r: r.id))
        learned = self.learn(requests, self.state["step"])
        facts = {"target": self.state["target"], "t_start": self.levels[len(self.levels) - self.walked].t}
        outliers = as_outliers(requests, learned.images, self.classifier)
        for outlier, energies in zip(outliers, learned.energies, strict=True):
            yield replace(outlier, notes={**outlier.notes, **facts, "passes": len(energies), "energies": energies})

    @torch.no_grad()
    def learn(self, requests: Sequence[Request], step: float) -> Learned:
        """Images and traces of requests that have their prompts."""
        model = self.model
        images = pixels_of(self.images_, [r.source for r in requests], model.image_size).to(model.device).float() / 255
        x0 = torch.cat([model.encode(part) for part in images.split(ENCODED)])
        cond, null = self._conditions(requests)
        # the decoder reads z / scaling, and the published step is in its units
        unit = model.vae.config.scaling_factor if model.takes == "prompt" else 1.0

        def generate(eps: Tensor, rows: Tensor) -> Tensor:
            here, none = (c if c is None else c[rows] for c in (cond, null))
            predictor = cfg(model, here, none, self._scale)
            steps = [self.walked] * len(rows)
            found = sample_from(clip(predictor) if model.clips else predictor, x0[rows], eps, self.levels, steps)
            return found / unit

        return learn_noise(
            generate,
            lambda u: model.decode(u * unit),
            self.classifier,
            self.loss_,
            Noise([r.seed for r in requests], model.shape, model.device)(),
            passes=self.passes,
            step=step,
            tolerance=self.tolerance,
            at_a_time=self.decode_batch,
        )

    def _best_step(self, progress: bool) -> float:
        """The step of the grid after whose passes the loss is least: the mean of its root, nats."""
        if self.passes == 1:
            return STEP  # nothing moves
        requests = self.requests(self.probe)
        tried = track(STEPS, "steps of the noise", show=progress)
        ends = [self.learn(requests, step).losses.clamp(min=0).sqrt().mean().nan_to_num(math.inf) for step in tried]
        return STEPS[int(torch.stack(ends).argmin())]

    @property
    def _scale(self) -> float:
        return 1.0 if self.model.takes != "prompt" else GUIDANCE if self.guidance_scale is None else self.guidance_scale

    def _prompted(self, requests: Sequence[Request]) -> list[Request]:
        """`requests` with what their sources' contexts say, which workers find out, each for its own."""
        if self.contexts_ is None:
            return list(requests)
        seeds = [seed_of(r.seed, r.source) for r in requests]
        said = self.contexts_(self.images_, [r.source for r in requests], seeds)
        return [replace(r, prompt=prompt(self.prompt, s, self.model)) for r, s in zip(requests, said, strict=True)]

    def _conditions(self, requests: Sequence[Request]) -> tuple[Tensor | None, Tensor | None]:
        if self.model.takes == "prompt":
            return self.model.condition(prompts=[r.prompt for r in requests])
        return self.model.condition(labels=[None] * len(requests))

    def _check_model(self) -> None:
        model = self.model
        if model.takes == "prompt":
            require_inpainting(self.diffusion, model.unet.config.in_channels)
        if model.takes == "label" and model.conditional and model.null_label is None:
            raise OutskirtsError(
                f"diffusion model {self.diffusion!r} has no null class, and the class of an image must not be said; give one made by "
                "fit-diffusion with label_dropout above 0"
            )
