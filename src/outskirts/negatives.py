"""Negative labels: words whose texts are far from those of every class. NegLabel, Jiang et al. (arXiv 2403.20078).

A word list is written as texts: a file, one word a line; a folder of them; `wordnet`, where nltk and its corpus are installed. A file
called `adj.*` holds adjectives, any other nouns; `noun:FILE` and `adj:FILE` say so in front. No list is bundled.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outskirts.clip import TextEncoder
from outskirts.errors import OutskirtsError
from outskirts.files import writable

ADJECTIVE = "This is a {} photo"
"""Prompt of adjectives; nouns have that of the class names."""
KINDS = ("noun", "adj")
LEFT_OUT = ("noun.animal", "noun.food")
"""WordNet files that NegLabel does not read."""
CHUNK = 1000
"""Words compared with the class names at a time."""
log = logging.getLogger("outskirts")


@dataclass(frozen=True)
class Negatives:
    """M negative labels, nouns first, within a part of speech the least like the classes first."""

    words: tuple[str, ...]
    features: Float[Tensor, "M D"]
    """Of their prompts, not normalised."""


def read_words(texts: Sequence[str]) -> dict[str, list[str]]:
    """{"noun": words, "adj": words} of the lists in `texts`: stripped of brackets, each word once, nouns before adjectives.

    Raises OutskirtsError for a list that cannot be read, and where no word is in them.
    """
    files = [f for text in texts for f in _files(text)]
    found, seen = {kind: [] for kind in KINDS}, set()
    for kind in KINDS:  # a word that is both is a noun: nouns first, whatever order the folder has
        for _, lines in (f for f in files if f[0] == kind):
            for word in (
                line.strip().strip("[]").strip() for line in lines()
            ):  # `[rhizoidal`, a parse error of the lists
                if word and word not in seen:
                    seen.add(word)
                    found[kind].append(word)
    if not seen:
        raise OutskirtsError(
            f"no word to mine negative labels from in {', '.join(texts) or 'an empty list'}; give words=FILE, one word a line, "
            "a folder of noun.* and adj.* files, or wordnet"
        )
    return found


def mine(
    words: dict[str, list[str]],
    classes: Float[Tensor, "K D"],
    embed: Callable[[Sequence[str]], Float[Tensor, "n D"]],
    *,
    template: str,
    share: float = 0.15,
    quantile: float = 0.95,
) -> Negatives:
    """The `share` of the nouns and that of the adjectives that are least like the classes (text features of norm 1).

    How alike a word is, is the `quantile` of its cosines to the classes: NegLabel's distance, whose percentile eta is 1 - quantile.
    Raises OutskirtsError where no word is left.
    """
    kept, parts = [], []
    for kind, prompt in (("noun", template), ("adj", ADJECTIVE)):
        if not (some := words.get(kind)):
            continue
        features = embed([prompt.replace("{}", w) for w in some])
        like = [(F.normalize(x, dim=-1) @ classes.T).quantile(quantile, dim=1) for x in features.split(CHUNK)]
        rows = torch.cat(like).argsort(stable=True)[: int(share * len(some))]
        kept += [some[i] for i in rows.tolist()]
        parts.append(features[rows])
    if not kept:
        counts = ", ".join(f"{len(w)} {kind}" for kind, w in words.items())
        raise OutskirtsError(
            f"no word is left: {share:g} of the words ({counts}) is less than one; give more, or a larger share"
        )
    return Negatives(tuple(kept), torch.cat(parts))


def remembered(encoder: TextEncoder) -> Callable[[Sequence[str]], Float[Tensor, "n D"]]:
    """`encoder.raw`, whose features of a list of texts are kept in $OUTSKIRTS_CACHE/text (by default below ~/.cache/outskirts).

    A file is found by its content: weights, vocabulary and texts. One that is damaged is made again.
    """

    def embed(texts: Sequence[str]) -> Float[Tensor, "n D"]:
        facts = json.dumps([encoder.fingerprint, *texts])
        folder = Path(os.environ.get("OUTSKIRTS_CACHE", "~/.cache/outskirts")).expanduser() / "text"
        path = folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.safetensors"
        try:
            return load_file(path)["features"]
        except (OSError, SafetensorError, KeyError):
            features = encoder.raw(texts).cpu()
        try:
            writable(folder)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({"features": features}, temporary)
            os.replace(temporary, path)
        except (OSError, OutskirtsError, SafetensorError) as e:
            log.warning(
                "text features are not kept for another time: %s; set OUTSKIRTS_CACHE to a folder that can be written",
                e,
            )
        return features

    return embed


def _files(text: str) -> Iterator[tuple[str, Callable[[], Sequence[str]]]]:
    """(part of speech, what reads the lines) of every file that `text` names, in order of name."""
    if text == "wordnet":
        yield from ((kind, lambda w=words: w) for kind, words in _wordnet().items())
        return
    kind, colon, rest = text.partition(":")
    path = Path(rest if colon and kind in KINDS else text).expanduser()
    inside = path.is_dir()
    for file in sorted(path.iterdir()) if inside else [path]:
        called = file.name.partition(".")[0]
        if inside and called not in KINDS:
            continue
        yield (kind if colon and kind in KINDS else called if called in KINDS else "noun"), lambda f=file: _lines(f)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise OutskirtsError(f"cannot read the word list {str(file)!r} ({e}); give a text file, one word a line") from e


def _wordnet() -> dict[str, list[str]]:
    """The words of an installed WordNet, in order of its files, without those that NegLabel leaves out."""
    try:
        from nltk.corpus import wordnet

        synsets = {kind: list(wordnet.all_synsets(tag)) for kind, tag in zip(KINDS, "na", strict=True)}
    except (ImportError, LookupError) as e:  # LookupError: nltk without the corpus
        raise OutskirtsError(
            f"wordnet is not installed ({str(e).strip().splitlines()[0].strip('* ')}); pip install nltk and nltk.download('wordnet'), or give word lists as files"
        ) from e
    return {
        kind: [
            name.replace("_", " ")
            for s in sorted(of, key=lambda s: s.lexname())
            if s.lexname() not in LEFT_OUT
            for name in s.lemma_names()
        ]
        for kind, of in synsets.items()
    }
