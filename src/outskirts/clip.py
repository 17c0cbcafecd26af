"""CLIP as a classifier, `clip:FOLDER-or-ID[?template=the nice {}]`: an image is compared with the names of the classes.

Models are transformers' CLIPModel, in its folder with safetensors weights, tokenizer and preprocessing; `random:clip` is a tiny one with
random weights, for trying a chain out. A saved classifier holds
the image side and the classes' text features; the text side is read again only where new words are to be embedded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.prompts import called, spoken
from outskirts.random_components import place
from outskirts.tensors import content_hash

TEMPLATE = "the nice {}"
"""NegLabel's prompt of class names and nouns. SynOOD's release tunes with "a nice {}" and scores with this one; here it is one."""
WHOLE = "give a whole CLIP model, with its projection, e.g. openai/clip-vit-base-patch32"


class Cosine(nn.Module):
    """Features [B, D] of any length -> logits [B, K]: exp(logit_scale) times the cosine to each class's text features, of norm 1.

    The texts are buffers: training the network leaves them where the class names are.
    """

    def __init__(self, text: Float[Tensor, "K D"], logit_scale: float):
        super().__init__()
        self.register_buffer("text", text)
        self.register_buffer("logit_scale", torch.tensor(float(logit_scale)))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return self.logit_scale.exp() * F.normalize(features, dim=-1) @ self.text.T


class Residual(nn.Module):
    """F + ReLU(LayerNorm(Linear(F))) of raw image features F: SynOOD's projection (arXiv 2507.10225), not normalised.

    On features of norm 10, as CLIP's are, the new part starts at about the size of the old one; on unit features it would drown it.
    """

    def __init__(self, size: int):
        super().__init__()
        self.delta = nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size), nn.ReLU())

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return features + self.delta(features)


class Clip(nn.Module):
    """Normalised images -> logits. What the head reads, F or F + delta(F), is `Outputs.features`: projected, not normalised."""

    FACTS = ("name", "revision", "template", "text_side")

    def __init__(self, vision: nn.Module, project: nn.Module, head: Cosine, **facts: str | None):
        """`facts`: the model's folder or id, its commit on the Hub, the prompt, and the hash of the text side's weights."""
        super().__init__()
        self.vision, self.project, self.head = vision, project, head
        self.name, self.revision, self.template, self.text_side = (facts[k] for k in self.FACTS)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.project(self.vision(images).image_embeds))

    def architecture(self) -> dict[str, Any]:
        """What `rebuild` needs besides the weights, JSON-able."""
        facts = {k: getattr(self, k) for k in self.FACTS}
        return {**facts, "projection": isinstance(self.project, Residual), "vision": self.vision.config.to_diff_dict()}


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Texts -> text features [n, D] of norm 1."""

    model: nn.Module
    tokenizer: Any
    batch_size: int = 256

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of weights and vocabulary."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{content_hash(self.model)} {vocabulary}".encode()).hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        return F.normalize(self.raw(texts), dim=-1)

    @torch.no_grad()
    def raw(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        """The same, not normalised: what SynOOD's label side starts from."""
        device, found = next(self.model.parameters()).device, []
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        for i in range(0, len(texts), self.batch_size):
            # Padded to the longest of the batch: no token sees those after it, and the last one is what is read.
            options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
            tokens = self.tokenizer(list(texts[i : i + self.batch_size]), **options)
            found.append(self.model(**tokens.to(device)).text_embeds.float())
        return torch.cat(found)


def text_encoder(name: str, device: str = "cpu", batch_size: int = 256) -> TextEncoder:
    """The text side of the CLIP model `name`, a folder or a Hub id.

    Raises OutskirtsError where it cannot be loaded, or has no text projection (Stable Diffusion's text encoder has none).
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    return TextEncoder(_load(CLIPTextModelWithProjection, name).to(device), _part(CLIPTokenizer, name), batch_size)


def build(name: str, classes: Sequence[str] | None) -> tuple[Clip, dict[str, Any]]:
    """(network, the other arguments of Classifier) for `clip:FOLDER-or-ID[?template=...]` and the names of the classes.

    Raises OutskirtsError without class names, and for a model that cannot be loaded or has no projection.
    """
    from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

    from outskirts.architectures import preprocessing  # it imports this module

    where, _, query = name.removeprefix("clip:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"template"}:
        raise OutskirtsError(f"unknown option {min(unknown)!r} in {name!r}; known: template=TEXT with {{}}")
    template = checked_template(options.get("template", TEMPLATE))
    texts = [template.replace("{}", spoken(c)) for c in called([str(c) for c in classes or ()])]
    if not texts or not all(spoken(str(c)) for c in classes):
        raise OutskirtsError(
            f"{name} has no classes of its own, it compares images with their names; give classes=[...], or ID images in class folders"
        )
    model = _load(CLIPModel, where)
    facts = preprocessing(_part(CLIPImageProcessor, where))
    config = model.config.vision_config
    config.projection_dim = model.config.projection_dim  # the whole model's is the one that counts
    vision = CLIPVisionModelWithProjection(config)
    vision.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(("vision_", "visual_"))})
    encoder = text_encoder(where)
    head = Cosine(encoder(texts), model.logit_scale.item())
    where = str(Path(where).resolve()) if Path(where).is_dir() else where
    told = {"name": where, "revision": getattr(model.config, "_commit_hash", None), "template": template}
    net = Clip(vision, nn.Identity(), head, **told, text_side=encoder.fingerprint)
    return net, {**facts, "classes": classes, "layer": "head", "source": f"clip:{where}"}


def rebuild(architecture: dict[str, Any], num_classes: int) -> Clip:
    """The network of a saved classifier, with weights of no meaning."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**architecture["vision"])
    project = Residual(config.projection_dim) if architecture["projection"] else nn.Identity()
    head = Cosine(torch.zeros(num_classes, config.projection_dim), 0.0)
    return Clip(CLIPVisionModelWithProjection(config), project, head, **{k: architecture[k] for k in Clip.FACTS})


def clip_of(classifier, who: str) -> Clip:
    """The CLIP network of `classifier`; raises OutskirtsError, with `who` asks, for any other one."""
    net = getattr(classifier, "net", None)
    if not isinstance(net, Clip):
        found = "no classifier was given" if net is None else f"this one is a {type(net).__name__}"
        raise OutskirtsError(
            f"{who} compares images with texts and needs a CLIP classifier, clip:FOLDER-or-ID; {found}"
        )
    return net


def checked_template(template: str) -> str:
    """`template`; raises OutskirtsError unless it has one place for a word."""
    if template.count("{}") != 1:
        raise OutskirtsError(f"template {template!r} must have one {{}}, where the word goes, e.g. {TEMPLATE!r}")
    return template


def _load(cls, name: str):
    """A frozen float32 model of a transformers class; raises OutskirtsError where weights are missing."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a table of the weights that the other side has
    logging.disable_progress_bar()
    try:
        # Of a text encoder alone, the sizes of a whole model's defaults differ too; what it lacks says more.
        options = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = cls.from_pretrained(place(name), **options)
    except (OSError, ValueError, RuntimeError) as e:
        raise _cannot(name, e) from e
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(info["missing_keys"], key=lambda k: ("projection" not in k, k)):
        raise OutskirtsError(
            f"CLIP model {name!r} lacks {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}; {WHOLE}"
        )
    if other := sorted(key for key, *_ in info["mismatched_keys"]):
        raise OutskirtsError(f"CLIP model {name!r} has {other[0]} of another size than its config.json says; {WHOLE}")
    return model.float().eval().requires_grad_(False)


def _part(cls, name: str):
    try:
        return cls.from_pretrained(place(name))
    except (OSError, ValueError) as e:
        raise _cannot(name, e) from e


def _cannot(name: str, error: Exception) -> OutskirtsError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return OutskirtsError(f"cannot load CLIP model {name!r} ({first[:200]}); give a folder or a Hub id")
