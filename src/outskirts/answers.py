"""From what a model says of an image to the words of a prompt: parsed, without the image's class, and as long as a text encoder reads."""

import logging
import re
from collections.abc import Sequence

import torch

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.prompts import says

NOTHING = "background"
"""The context of an image of which nothing but its class was said."""
MOST_TOKENS = 70
"""Of a prompt: CLIP's text encoder reads 75. SynOOD's release cuts the answer after 73 characters."""
LINKS = re.compile(
    r"\b(?:on|in|with|of|at|by|near|under|over|above|below|behind|beside|beneath|next to|in front of|inside|across|against|along|around|"
    r"through|from|to|for|and|while|that|which|is|are|sitting|standing|lying|laying|looking|there)\b",
    re.IGNORECASE,
)
"""Where a sentence falls apart into things."""
log = logging.getLogger("outskirts")


def parse(answer: str, names: str = "", most: int = 8, *, sentence: bool = False) -> list[str]:
    """Up to `most` different words or short phrases of a model's answer, without those that contain one of `names`.

    A list on one line or on several, with or without bullets, numbers, articles and an introduction that ends in a colon. With
    `sentence` also a caption, cut where prepositions and verbs join its things.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    if lines and re.search(r"[,;]", lines[0]):
        lines = lines[:1]  # what follows a list is chatter
    parts = [p for line in lines for p in re.split(r"[,;\u2022]", line.split(": ")[-1])]
    if sentence:
        parts = [p for part in parts for p in LINKS.split(part)]
    words = {}
    for part in parts:
        word = re.sub(r"^\s*(?:[-*]|\d+[.)])\s*", "", part).strip(" .!?\"'*-\t")
        word = re.sub(r"^(?:(?:and|or|a|an|the|some|several)\s+)+", "", word, flags=re.IGNORECASE).strip()
        if word and not says(word, names):
            words.setdefault(word.casefold(), word)
    return list(words.values())[:most]


def prompt(template: str, context: str, model) -> str:
    """`template` with the context in the place of {context}, as much of it, in whole words, as `model`'s text encoder reads.

    Raises OutskirtsError where not even one word has room.
    """
    most = min(MOST_TOKENS, model.tokenizer.model_max_length - 2)
    words = context.split()
    for n in range(len(words), 0, -1):
        text = template.replace("{context}", " ".join(words[:n]).rstrip(",;"))
        if len(model.words(text)) <= most:
            return text
    raise OutskirtsError(
        f"prompt {template!r} leaves no room for {words[0] if words else 'no word'!r} in {most} tokens; shorten it"
    )


def texts(
    answers: Sequence[str],
    images: Images,
    rows: Sequence[int],
    names: Sequence[str],
    most: int,
    *,
    sentence: bool = False,
) -> list[str]:
    """The words of each answer without the names of its image's class; `background`, and a warning, where none is left."""
    labels = images.labels[torch.as_tensor(rows)].tolist()
    found = [
        ", ".join(parse(a, names[y] if y >= 0 else "", most, sentence=sentence))
        for a, y in zip(answers, labels, strict=True)
    ]
    if empty := [r for r, text in zip(rows, found, strict=True) if not text]:
        log.warning(
            "nothing but the class was said of %d of %d images (row %d first); their context is %r",
            len(empty),
            len(rows),
            empty[0],
            NOTHING,
        )
    return [text or NOTHING for text in found]
