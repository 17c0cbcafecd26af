"""Contexts by looking at the images: CLIP over a vocabulary, and captioners or vision-language models of the Hugging Face Hub."""

import logging
from collections.abc import Sequence
from urllib.parse import quote

import torch
from PIL import Image

from outskirts.answers import texts
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.models import load_classifier
from outskirts.prompts import SYNONYM, clip_text, says, similarity, spoken, word_list
from outskirts.shard import picture

QUESTION = (
    "List up to eight objects or background elements visible in this picture, leaving out the {class}. "
    "Answer only with a comma-separated list of nouns."
)
"""SynOOD's question is not published."""
NEW_TOKENS = 60
"""Of an answer."""
TEMPLATE = "a photo of a {}"
"""Of the words that CLIP compares with an image."""
BATCH = 64
"""Images that CLIP looks at together."""


class Tagger:
    """The `most` words of `vocabulary` (as `prompts.word_list` reads it) whose CLIP texts are most like an image.

    Words that name the image's class, or whose text lies within a cosine of 0.9 of its name, are passed over.
    """

    def __init__(
        self,
        clip: str,
        vocabulary: Sequence[str],
        images: Images,
        names: Sequence[str],
        most: int = 8,
        *,
        device: str = "cpu",
    ):
        self.words, self.names, self.most, self.device = list(word_list(vocabulary)), names, most, device
        embed = clip_text(clip, device)
        self.clip = load_classifier(f"clip:{clip}?template={quote(TEMPLATE)}", classes=self.words).to(device).frozen()
        like = similarity(self.words, [spoken(name) for name in names], embed) if names else torch.zeros(0)
        self.close = like > SYNONYM

    @torch.inference_mode()
    def __call__(self, images: Images, rows: Sequence[int], seeds: Sequence[int]) -> list[str]:
        part, found = images.subset(torch.as_tensor(rows)), []
        for pixels, labels in part.batches(BATCH, size=self.clip.size):
            logits = self.clip(pixels.to(self.device)).logits
            order = logits.argsort(dim=1, descending=True, stable=True).tolist()
            found += [self._first(ranked, label) for ranked, label in zip(order, labels.tolist(), strict=True)]
        return found

    def _first(self, ranked: Sequence[int], label: int) -> str:
        kept = []
        for word in ranked:
            if label < 0 or not (self.close[word, label] or says(self.words[word], self.names[label])):
                kept.append(self.words[word])
            if len(kept) == self.most:
                break
        if not kept:
            raise OutskirtsError(
                f"every word of the vocabulary names the class {self.names[label]!r}; give other words"
            )
        return ", ".join(kept)


class Captioner:
    """What a model says of an image: things, where it takes questions (it has a chat template, as LLaVA has), else a caption cut into things.

    Greedy, and one image at a time: padding and rounding in a batch would let a caption depend on its company.
    """

    def __init__(self, name: str, names: Sequence[str], most: int = 8, *, device: str = "cpu"):
        from transformers import AutoModelForImageTextToText

        self.names, self.most, self.device = names, most, device
        for library in ("huggingface_hub", "transformers"):
            logging.getLogger(library).setLevel(logging.ERROR)
        half = torch.float16 if torch.device(device).type == "cuda" else torch.float32  # LLaVA 7B: 14 GB instead of 28
        try:
            self.processor = _processor(name)
            model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, torch_dtype=half)
        except (OSError, ValueError, KeyError) as e:
            first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
            raise OutskirtsError(
                f"cannot load {name!r} as a model from images to text ({first[:200]}); give a folder or a Hub id, e.g. "
                "llava-hf/llava-1.5-7b-hf or Salesforce/blip-image-captioning-base"
            ) from e
        self.model = model.to(device).eval().requires_grad_(False)
        self.asks = bool(getattr(self.processor, "chat_template", None))

    def __call__(self, images: Images, rows: Sequence[int], seeds: Sequence[int]) -> list[str]:
        answers = []
        for row in rows:
            pixels, label = images[row]
            answers.append(self.say(picture((pixels * 255).round().to(torch.uint8)), self._name(label)))
        return texts(answers, images, rows, self.names, self.most, sentence=not self.asks)

    @torch.no_grad()
    def say(self, image: Image.Image, name: str) -> str:
        """The model's own words about `image`, told to leave the class `name` out if it takes questions."""
        if self.asks:
            content = [{"type": "image"}, {"type": "text", "text": QUESTION.replace("{class}", name)}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = self.processor(images=image, text=text, return_tensors="pt")
        else:
            inputs = self.processor(images=image, return_tensors="pt")
        inputs = {
            k: v.to(self.device, self.model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()
        }
        tokens = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        asked = inputs["input_ids"].shape[1] if self.asks else 0  # the question comes back before the answer
        return self.processor.batch_decode(tokens[:, asked:], skip_special_tokens=True)[0]

    def _name(self, label: int) -> str:
        return spoken(self.names[label]) if label >= 0 else "main object"


def _processor(name: str):
    """Of images, and of texts; early captioners (ViT and GPT-2) keep the two apart."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

    if AutoConfig.from_pretrained(name).model_type != "vision-encoder-decoder":
        return AutoProcessor.from_pretrained(name)
    processor = AutoImageProcessor.from_pretrained(name)
    processor.batch_decode = AutoTokenizer.from_pretrained(name).batch_decode
    return processor
