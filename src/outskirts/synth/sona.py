"""SONA: ID images noised to a random level and denoised with their class taken out and an outside word written in.

Yoon et al., arXiv 2408.14841 (AAAI 2025). With Stable Diffusion the outside word is a text; with a class-conditional pixel model it is
a class of the model that is no ID class, or nothing at all (`toward="null"`): the ID class is then only taken out.
docs/papers/sona.md maps equations to symbols and lists where we depart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from outskirts.data import require_labels
from outskirts.diffuse import PREDICTION_TYPES, Noise, sample_from
from outskirts.errors import OutskirtsError
from outskirts.guide import clip
from outskirts.guide_sona import Sona, Terms, Watch, likeness
from outskirts.images import Images
from outskirts.load_diffusion import load_diffusion, located, pixel_facts
from outskirts.prompts import called, candidates, clip_text, known_to, outside, ranked, spoken, word_list
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import as_outliers, feature_distance, from_sources, pixels_of, seed_of
from outskirts.types import Level, Outlier, Request

ENCODED = 8
"""Images that pass the encoder or decoder at a time: at 512 px it is the largest thing in memory."""

UNCOMPARED = "strategy={} compares texts; give synth.clip=FOLDER or a Hub id of a CLIP model"


@dataclass
class Synthesizer:
    """One outlier for an ID image (`source`): noised to where T of the steps are left, then denoised under SONA's guidance.

    T, the outside word and the noise are the request's own. An outlier is the same whatever the order and the worker; in a batch
    of other company rounding can move an element across a mask's threshold.
    """

    diffusion: str = "digits"
    """Diffusion model with classes or text: `digits`, a diffusers folder or a Hub id."""
    words: tuple[str, ...] = ()
    """Outside words: words themselves, file:PATH with one a line, timm:imagenet, benchmark:NAME (names of its ID classes). ID names
    among them are dropped. For pixel models: classes that the model knows."""
    toward: Literal["words", "null"] = "words"
    """words: the ID class out, an outside word in; null: only the ID class out, where there is no outside word."""
    strategy: Literal["random", "close", "far"] = "random"
    """Any outside word, or one of those most or least like the source's class: by CLIP text similarity where `clip` is given, else, in
    pixel models, by the mean images that the model holds of its classes."""
    share: float = 0.1
    """Of the outside words, how many count as close or far."""
    clip: str | None = None
    """CLIP model (folder or Hub id) that compares texts: needed for close and far of text; also drops near synonyms of ID names."""
    prompt: str = "a photo of a {word}"
    """Template of the ID and of the outside prompt, for models that take text."""
    lam: float = 0.2
    """Share of positions that are semantic, and share that are nuisance; below 0.5."""
    scale: float = 10.0
    """Strength s of the guidance."""
    scope: Literal["channel", "sample"] = "channel"
    """What shares are counted over: the positions of each channel, or a sample's positions and channels together."""
    use_id: bool = True
    """Take the ID class out of its semantic region."""
    use_nuisance: bool = True
    """Hold the ID class in its nuisance region."""
    use_ood: bool = True
    """Write the outside word into its semantic region."""
    nuisance_filter: bool = True
    """Keep the outside word out of the ID nuisance region."""
    global_guidance: bool = False
    """The outside word everywhere and nothing else: the baseline of Table 3."""
    sega: bool = False
    """The release's preset, warm-up and momentum: a sample with 10 steps or fewer gets no guidance, and is flagged."""
    steps: int = 50
    """DDIM steps of the whole grid; eta is 0."""
    start: tuple[int, int] | None = None
    """T, the steps left where a sample starts, is drawn evenly between these; none: 1 to `steps`. More is farther from the source."""
    batch_size: int = 32
    """Outliers sampled at a time; samples join when their step comes."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the denoising network."""
    compile: bool = False
    """torch.compile the denoising network: worth it for long runs on a GPU."""
    image_size: int | None = None
    """Side in pixels, latent models only; the model's own by default."""

    requires: ClassVar[frozenset[str]] = frozenset({"source", "label", "prompt"})

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "steps", "batch_size", "share")
        if self.share > 1:
            raise OutskirtsError(f"share is {self.share!r}; it must be at most 1")
        first, last = self.start or (1, self.steps)
        if not 1 <= first <= last <= self.steps:
            raise OutskirtsError(f"start is {self.start!r}; give two numbers, 1 <= from <= to <= steps ({self.steps})")
        if "{word}" not in self.prompt:
            raise OutskirtsError(f"prompt is {self.prompt!r}; it must hold {{word}}")
        terms = self._terms()
        if self.toward == "null":
            if self.words or self.clip or self.strategy != "random":
                raise OutskirtsError("toward=null writes no word in; leave words, clip and strategy out")
            if terms.global_guidance or not (terms.use_id or terms.use_nuisance):
                raise OutskirtsError(
                    "toward=null leaves use_id and use_nuisance; leave one on, and global_guidance out"
                )
        elif not self.words:
            raise OutskirtsError(
                "no outside words; give synth.words=WORD,WORD,..., words=file:PATH or words=timm:imagenet, or toward=null"
            )

    def check(self, index: Mapping, classes: Sequence[str]) -> None:
        """Raises OutskirtsError where no word is left, the model lacks one, or texts are to be compared and nothing can, before anything is loaded.

        index    of the diffusion model, its model_index.json.
        """
        if self.words:
            words = word_list(self.words)
            if "vae" not in index:
                known_to(words, pixel_facts(located(self.diffusion)).get("classes", ()), self.diffusion)
            outside(words, called(classes) if "vae" in index else classes)
        if "vae" in index and self.strategy != "random" and not self.clip:
            raise OutskirtsError(UNCOMPARED.format(self.strategy))

    def fit(self, images: Images, classifier=None, *, val: Images | None = None) -> "Synthesizer":
        """Loads the diffusion model and settles the words. Raises OutskirtsError where they, or the schedule, cannot serve."""
        self.images_, self.classes = require_labels(images), list(images.classes)
        self.classifier = None if classifier is None else classifier.to(self.device).frozen()
        self.model = load_diffusion(
            self.diffusion,
            device=self.device,
            precision=self.precision,
            compile=self.compile,
            image_size=self.image_size,
        )
        self.levels = starting_levels(self.model, self.steps)
        self._check_classes()
        self.names_ = called(self.classes) if self.model.takes == "prompt" else self.classes
        self.words_, self.suits_ = [], None
        if self.toward == "words":
            embed = clip_text(self.clip, self.device) if self.clip else None
            words = word_list(self.words)
            if self.model.takes == "label":
                known_to(words, self.model.classes, self.diffusion)
            self.words_ = outside(words, self.names_, embed)
            self.suits_ = self._suits(embed)
        self.state = {"words": len(self.words_)}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` (1000) requests over the ID images in a seeded order, each with its T and its words as dials."""
        return [self._request(r) for r in from_sources(self.images_, n, seed)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        requests = sorted(requests, key=lambda r: (-r.dials["T"], r.id))  # late ones join those that began before
        images, decoded, guide = self.sample(requests)
        away = feature_distance(self.classifier, images, decoded)
        made = as_outliers(requests, decoded, self.classifier)
        for outlier, fact, how_far in zip(made, guide.facts(), away, strict=True):
            yield replace(outlier, notes={**outlier.notes, **fact, **how_far})

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], watch: Watch | None = None) -> tuple[Tensor, Tensor, Sona]:
        """(sources, outliers, the guide that kept account) of requests in falling order of T; images [B, 3, H, W] in [0, 1]."""
        model = self.model
        images = pixels_of(self.images_, [r.source for r in requests], model.image_size).to(model.device).float() / 255
        x0 = torch.cat([model.encode(part) for part in images.split(ENCODED)])
        guide = Sona(model, *self._conditions(requests), self._terms(), watch)
        noise = Noise([r.seed for r in requests], model.shape, model.device)
        steps = [r.dials["T"] for r in requests]
        x0 = sample_from(clip(guide) if model.clips else guide, x0, noise(), self.levels, steps)
        return images, torch.cat([model.decode(part) for part in x0.split(ENCODED)]), guide

    def _terms(self) -> Terms:
        return Terms(**{f.name: getattr(self, f.name) for f in fields(Terms)})

    def _request(self, r: Request) -> Request:
        g = torch.Generator().manual_seed(seed_of(r.seed, r.source))
        first, last = self.start or (1, self.steps)
        dials = {
            "T": int(torch.randint(first, last + 1, (), generator=g))
        }  # SONA alg. 2, T from 1: 0 is the source itself
        name = self.names_[r.label]
        text = self.model.takes == "prompt"
        dials["id_prompt"] = self._prompt(spoken(name)) if text else name
        if self.toward == "null":
            return replace(r, dials=dials)
        suited = self.suits_[:, r.label].nonzero()[:, 0]
        word = self.words_[int(suited[torch.randint(len(suited), (), generator=g)])]
        dials["word"] = word
        return replace(r, prompt=self._prompt(word) if text else word, dials=dials)

    def _prompt(self, word: str) -> str:
        return self.prompt.replace("{word}", word)

    def _conditions(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor | None, Tensor]:
        """(ID class, outside word or None, null) of each request."""
        pair = []
        for said in ([r.dials["id_prompt"] for r in requests], [r.prompt for r in requests]):
            if None in said:
                continue
            if self.model.takes == "prompt":
                pair.append(self.model.condition(prompts=said))
            else:
                numbers = [self._number(name) for name in said]
                pair.append(self.model.condition(labels=numbers))
        (cond_id, null), cond_ood = pair[0], pair[1][0] if len(pair) > 1 else None
        return cond_id, cond_ood, null

    def _number(self, name: str) -> int:
        """Of a class, as the diffusion model numbers them."""
        known = self.model.classes
        return known.index(name) if known else self.classes.index(name)

    def _suits(self, embed) -> Bool[Tensor, "W K"]:
        """Which words may stand in for each class."""
        if embed is not None or self.strategy == "random":
            return candidates(self.words_, self.names_, self.strategy, self.share, embed)
        if self.model.takes == "prompt":
            raise OutskirtsError(UNCOMPARED.format(self.strategy))
        numbers = [[self._number(name) for name in names] for names in (self.words_, self.classes)]
        return ranked(likeness(self.model, *numbers, self.levels[0]), self.strategy, self.share)

    def _check_classes(self) -> None:
        model = self.model
        if model.takes == "prompt":
            return
        if not model.conditional or model.null_label is None:
            raise OutskirtsError(
                f"diffusion model {self.diffusion!r} has no {'null class' if model.conditional else 'classes'}, and guidance compares "
                "with and without a class; give one made by fit-diffusion with label_dropout above 0, or one of text"
            )
        if missing := [c for c in self.classes if model.classes and c not in model.classes]:
            raise OutskirtsError(
                f"diffusion model {self.diffusion!r} knows no class {missing[0]!r}; it knows {', '.join(model.classes[:12])}: train one with fit-diffusion"
            )


def starting_levels(model, steps: int) -> list[Level]:
    """The DDIM grid of `model`, which can be entered anywhere. Raises OutskirtsError for a schedule on which that has no meaning."""
    config = model.scheduler_config
    name = config.get("_class_name", "its scheduler")
    if model.kind not in PREDICTION_TYPES or not {"beta_schedule", "trained_betas"} & set(config):
        raise OutskirtsError(
            f"{name} has no noise levels abar_t, so an image cannot start in its middle; give a diffusion model with a DDIM, DDPM or PNDM "
            "scheduler and prediction type epsilon, v_prediction or sample"
        )
    levels = model.levels(steps)
    if model.kind == "epsilon" and levels[0].abar == 0:
        raise OutskirtsError(
            f"{name} begins at pure noise, where epsilon says nothing of the image; it needs v_prediction"
        )
    return levels
