"""What stands around the object of an image, in words: the prompts of SynOOD (arXiv 2507.10225, eq. 3), by any of several providers.

    file:PATH                 JSONL or CSV of the user: image and answer, e.g. LLaVA's; images without an entry are no sources
    words:PATH, or a mapping  words of each class, some of which are drawn for each outlier
    clip                      the words of a vocabulary that CLIP finds in the image (captions.py)
    hf:ID                     any captioner or vision-language model of the Hugging Face Hub (captions.py)
    python:MODULE:FUNCTION    a ContextProvider of the user
    text:WORDS                the same for every image

A context leaves the class of its image out: words that a model, or a file of its answers, says and that name it are dropped; words that
the user wrote down and that name it are an error.
"""

import csv
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from outskirts.answers import texts
from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.images import Images
from outskirts.prompts import called, says
from outskirts.sources import look_up, read_lines

KINDS = ("file", "words", "clip", "hf", "python", "text")
log = logging.getLogger("outskirts")


@runtime_checkable
class ContextProvider(Protocol):
    """Words for images: those at `rows` of `images`, one text each, words separated by commas.

    `seeds` are what random choices are made from, one each, so that a text does not depend on the images beside it.
    """

    def __call__(self, images: Images, rows: Sequence[int], seeds: Sequence[int]) -> list[str]: ...


class FromFile:
    """The answers of a JSONL file, or of a CSV file with columns `image` and `text`."""

    def __init__(self, path: str, images: Images, names: Sequence[str], most: int = 8):
        answers = _answers(path)
        self.said = look_up(images, answers, path)
        self.names, self.most = names, most
        if len(self.said) < len(images):
            log.warning(
                "%s has answers for %d of %d images of %s; the others are no sources",
                path,
                len(self.said),
                len(images),
                images.name,
            )

    @property
    def rows(self) -> list[int]:
        """Of the images that have an answer."""
        return list(self.said)

    def __call__(self, images: Images, rows: Sequence[int], seeds: Sequence[int]) -> list[str]:
        return texts([self.said[r] for r in rows], images, rows, self.names, self.most)


class FromWords:
    """Up to `most` of the words of an image's class, drawn for each outlier."""

    def __init__(self, words: Mapping[str, Sequence[str]], images: Images, names: Sequence[str], most: int = 8):
        _check_words(words, images.classes, names)
        self.words, self.most = [list(dict.fromkeys(words[c])) for c in images.classes], most

    def __call__(self, images: Images, rows: Sequence[int], seeds: Sequence[int]) -> list[str]:
        found = []
        for label, seed in zip(images.labels[torch.as_tensor(rows)].tolist(), seeds, strict=True):
            words = self.words[label]
            order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))
            found.append(", ".join(words[i] for i in order[: self.most].tolist()))
        return found


def provider(
    contexts: str | Mapping[str, Sequence[str]] | None,
    images: Images,
    *,
    most: int = 8,
    synonyms: Mapping[str, str] | None = None,
    clip: str | None = None,
    vocabulary: Sequence[str] = (),
    device: str = "cpu",
) -> ContextProvider:
    """The provider that `contexts` names, see the head of this file; `clip` by default where `clip` and `vocabulary` are given.

    synonyms   class -> other names of it, separated by commas, that no context may say either.
    Raises OutskirtsError for one that cannot be had, or words of the user that name the class.
    """
    names = _names(images.classes, synonyms or {})
    if contexts is None and clip and vocabulary:
        contexts = "clip"
    if contexts != "clip" and (clip or vocabulary):
        raise OutskirtsError(
            f"clip and vocabulary rank words by image (contexts=clip), but contexts is {contexts!r}; give both, or neither"
        )
    if isinstance(contexts, Mapping):
        return FromWords(contexts, images, names, most)
    kind, _, rest = (contexts or "").partition(":")
    if kind == "clip" and not rest and clip and vocabulary:
        from outskirts.captions import Tagger

        return Tagger(clip, vocabulary, images, names, most, device=device)
    if kind not in KINDS or not rest:
        raise OutskirtsError(
            f"contexts is {contexts!r}; give file:PATH (JSONL or CSV), words:PATH or a JSON object (class -> words), clip (with clip= and "
            "vocabulary=), hf:ID, python:MODULE:FUNCTION or text:WORDS"
        )
    match kind:
        case "file":
            return FromFile(rest, images, names, most)
        case "words":
            return FromWords(_json(rest), images, names, most)
        case "hf":
            from outskirts.captions import Captioner

            return Captioner(rest, names, most, device=device)
        case "python":
            return _own(rest)
    _check_text(rest, images.classes, names)
    return lambda images, rows, seeds: [rest] * len(rows)


def early(
    contexts: str | Mapping[str, Sequence[str]] | None, classes: Sequence[str], synonyms: Mapping[str, str]
) -> None:
    """Raises OutskirtsError for what `provider` would refuse and the class names alone tell: words of the user that name one."""
    names = _names(classes, synonyms)
    kind, _, rest = contexts.partition(":") if isinstance(contexts, str) else ("", "", "")
    if isinstance(contexts, Mapping):
        _check_words(contexts, classes, names)
    elif kind == "words" and rest:
        _check_words(_json(rest), classes, names)
    elif kind == "text" and rest:
        _check_text(rest, classes, names)


def _names(classes: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    """Each class's names, separated by commas, that no context may say."""
    if unknown := [c for c in synonyms if c not in classes]:
        raise OutskirtsError(
            f"synonyms of {unknown[0]!r}, no class{did_you_mean(unknown[0], classes)}; the ID classes are {', '.join(classes)[:200]}"
        )
    return [", ".join(filter(None, (n, synonyms.get(c)))) for c, n in zip(classes, called(classes), strict=True)]


def _check_words(words: Mapping[str, Sequence[str]], classes: Sequence[str], names: Sequence[str]) -> None:
    for c, mine in zip(classes, names, strict=True):
        if not words.get(c) or isinstance(words[c], str):
            raise OutskirtsError(f"contexts has no list of words for class {c!r}; it has {', '.join(words)[:200]}")
        for word in words[c]:
            if not isinstance(word, str) or says(word, mine):
                raise OutskirtsError(
                    f"contexts of class {c!r} holds {word!r}, which names it or is no text; give what stands around it"
                )
    if unknown := [c for c in words if c not in classes]:
        raise OutskirtsError(
            f"contexts has words for {unknown[0]!r}, no class{did_you_mean(unknown[0], classes)}; the ID classes are {', '.join(classes)[:200]}"
        )


def _check_text(text: str, classes: Sequence[str], names: Sequence[str]) -> None:
    if named := [c for c, mine in zip(classes, names, strict=True) if says(text, mine)]:
        raise OutskirtsError(
            f"contexts='text:{text}' names the class {named[0]!r}; give words that stand around every class"
        )


def _answers(path: str) -> dict[str, str]:
    """Image -> answer of a file; {path: answer} a line, or an object with `image` and `text`, or a CSV with these columns."""
    what = 'JSON lines, {"dog/1.jpg": "sofa, rug"} each, or a CSV with columns image and text'
    lines, found = read_lines(path, what), {}
    if Path(path).suffix.lower() == ".csv":
        table = csv.DictReader(lines)
        if not {"image", "text"} <= set(table.fieldnames or ()):
            raise OutskirtsError(f"{path} has columns {', '.join(table.fieldnames or ()) or 'none'}; give {what}")
        pairs = [(row["image"], row["text"]) for row in table]
    else:
        pairs = [p for i, line in enumerate(lines) for p in _pairs(line, f"{path}, line {i + 1}", what)]
    for image, text in pairs:
        if not isinstance(text, str):
            raise OutskirtsError(f"{path}: the answer for {image!r} is {text!r}, no text; give {what}")
        found[Path(str(image)).as_posix().removeprefix("./")] = text
    return found


def _pairs(line: str, where: str, what: str) -> list[tuple[str, Any]]:
    try:
        entry = json.loads(line)
    except ValueError as e:
        raise OutskirtsError(f"{where} is no JSON ({e}); give {what}") from e
    if not isinstance(entry, dict):
        raise OutskirtsError(f"{where} is {entry!r}, no JSON object; give {what}")
    return [(entry["image"], entry["text"])] if {"image", "text"} <= entry.keys() else list(entry.items())


def _json(path: str) -> Mapping[str, Sequence[str]]:
    what = 'a JSON object, e.g. {"cat": ["sofa", "rug"]}'
    try:
        found = json.loads("\n".join(read_lines(path, what)))
    except ValueError as e:
        raise OutskirtsError(f"{path} is no JSON ({e}); give {what}") from e
    if not isinstance(found, dict):
        raise OutskirtsError(f"{path} holds {type(found).__name__}; give {what}")
    return found


def _own(path: str) -> ContextProvider:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise OutskirtsError(f"contexts=python:{path} cannot be imported ({e}); write python:MODULE:FUNCTION") from e
