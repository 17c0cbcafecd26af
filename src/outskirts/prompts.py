"""Words for prompts: lists of outside words without the ID names and their near synonyms, and which of them suits a class.

A word list is written as texts: a word itself, `file:PATH` (one word or caption a line), `timm:imagenet` (the 1000 class
names that come with timm), or `benchmark:NAME` (the names of its ID classes). No list of words is bundled. SONA, arXiv 2408.14841, App. F calls the strategies random, close and far.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.plurals import forms

STRATEGIES = ("random", "close", "far")
SYNONYM = 0.9
"""Cosine of CLIP text embeddings from which a word counts as a near synonym of an ID name."""
NAMED = 8
"""Words that a warning lists."""
JOINED = 4
"""Words that may be one name written apart: race car, tee shirt."""
APART = frozenset(
    ["a", "an", "and", "as", "at", "be", "by", "he", "i", "is", "it", "me", "my", "of", "or", "so", "the", "to", "we"]
)
"""Words that never are part of a name written apart: `go at` is no goat."""
Embed = Callable[[Sequence[str]], Float[Tensor, "n D"]]
"""Texts -> embeddings of norm 1."""
log = logging.getLogger("outskirts")


def spoken(name: str) -> str:
    """A class name as a prompt says it: `tabby_cat, Felis catus` -> `tabby cat`."""
    return " ".join(name.split(",")[0].replace("_", " ").split())


def called(classes: Sequence[str]) -> list[str]:
    """Names of the classes; of a WordNet number, which ImageNet's folders are named by, those that timm has for it."""
    if not any(re.fullmatch(r"n\d{8}", c) for c in classes):
        return list(classes)
    from timm.data import ImageNetInfo

    known = ImageNetInfo().label_descriptions(as_dict=True)
    return [known.get(c, c) for c in classes]


def word_list(texts: Sequence[str]) -> dict[str, str]:
    """Word -> the word and its synonyms, separated by commas, of the words, `file:PATH`s, `timm:imagenet` and `benchmark:NAME`s in `texts`."""
    words: dict[str, str] = {}
    for text in texts:
        kind, colon, rest = text.partition(":")
        if kind == "file" and colon:
            found = {line: line for line in _lines(rest)}
        elif kind == "timm" and colon:
            found = _timm(rest)
        elif kind == "benchmark" and colon:
            found = {spoken(names): names for names in called(_of_benchmark(rest))}
        else:
            found = {text.strip(): text}
        for word, names in found.items():
            words[word] = f"{words[word]}, {names}" if word in words else names
    return {word: names for word, names in words.items() if word}


def outside(words: Mapping[str, str], classes: Sequence[str], embed: Embed | None = None) -> list[str]:
    """The words that neither are nor contain the name of an ID class, whatever the case, the plural, the spaces and the hyphens.

    With `embed` also without those whose text lies within a cosine of 0.9 of an ID name's: near synonyms, which a warning names.
    Raises OutskirtsError where no word is left.
    """
    named = _namer(tuple(classes))
    left = [w for w, names in words.items() if not named(names)]
    if embed is not None and left:
        close = (similarity(left, classes, embed) > SYNONYM).any(1).tolist()
        if dropped := [w for w, c in zip(left, close, strict=True) if c]:
            first = ", ".join(dropped[:NAMED]) + (", ..." if len(dropped) > NAMED else "")
            log.warning("%d outside words are near synonyms of ID names and were dropped: %s", len(dropped), first)
        left = [w for w, c in zip(left, close, strict=True) if not c]
    if not left:
        raise OutskirtsError(
            f"no outside word is left of {len(words)}: each is, or contains, the name of an ID class ({', '.join(classes[:6])}"
            f"{', ...' if len(classes) > 6 else ''}) or a near synonym; give other words"
        )
    return left


def says(text: str, names: str) -> bool:
    """Whether `text` contains one of `names` (separated by commas), whatever the case, the plural, the spaces and the hyphens."""
    return _namer((names,))(text)


def known_to(words: Mapping[str, str], known: Sequence[str], model: str) -> Mapping[str, str]:
    """`words`; raises OutskirtsError unless the pixel model called `model`, whose classes are `known`, has each as a class."""
    if unknown := [w for w in words if w not in known]:
        raise OutskirtsError(
            f"diffusion model {model!r} has no class {unknown[0]!r} to write in; it knows {', '.join(known[:12]) or 'no names'}: "
            "give some of them that are no ID classes, or toward=null"
        )
    return words


def similarity(words: Sequence[str], classes: Sequence[str], embed: Embed) -> Float[Tensor, "W K"]:
    """Cosine of the texts `a photo of a WORD` and `a photo of a CLASS`."""
    a, b = (embed([f"a photo of a {spoken(x)}" for x in texts]) for texts in (words, classes))
    return a @ b.T


def candidates(
    words: Sequence[str],
    classes: Sequence[str],
    strategy: str = "random",
    share: float = 0.1,
    embed: Embed | None = None,
) -> Bool[Tensor, "W K"]:
    """Which of `words` may stand in for each class: any (random), or the `share` that is most (close) or least (far) like it."""
    if strategy not in STRATEGIES:
        raise OutskirtsError(f"strategy {strategy!r}; accepted: {', '.join(STRATEGIES)}")
    if strategy == "random":
        return torch.ones(len(words), len(classes), dtype=torch.bool)
    if embed is None:
        raise OutskirtsError(f"strategy={strategy} compares texts; give clip=FOLDER or a Hub id of a CLIP model")
    return ranked(similarity(words, classes, embed), strategy, share)


def ranked(like: Float[Tensor, "W K"], strategy: str, share: float) -> Bool[Tensor, "W K"]:
    """The `share` of the words that is most (close) or least (far) like each class; one at least."""
    order = like.argsort(dim=0, descending=strategy == "close", stable=True)
    chosen = torch.zeros(like.shape, dtype=torch.bool)
    return chosen.scatter(0, order[: max(1, round(share * len(like)))].cpu(), True)


def clip_text(name: str, device: str = "cpu", batch_size: int = 256) -> Embed:
    """The text embeddings, of norm 1, of the CLIP model `name`, a folder or a Hub id with safetensors weights.

    Raises OutskirtsError where it cannot be loaded, or has no text projection (Stable Diffusion's text encoder has none).
    """
    from outskirts.clip import text_encoder  # it imports this module

    return text_encoder(name, device, batch_size)


def _timm(name: str) -> dict[str, str]:
    if name != "imagenet":
        raise OutskirtsError(f"no word list timm:{name}; accepted: timm:imagenet")
    from timm.data import ImageNetInfo

    info, words = ImageNetInfo(), {}
    for i in range(info.num_classes()):
        names = info.index_to_description(i)
        word = spoken(names)
        words[word] = f"{words[word]}, {names}" if word in words else names  # two cranes, two maillots
    return words


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise OutskirtsError(f"cannot read the word list {path!r} ({e}); give a text file, one word a line") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of_benchmark(name: str) -> Sequence[str]:
    """Names of the ID classes: as the manifest, another one of the same classes, or timm has them, which the manifest's hash tells."""
    from outskirts import benchmarks
    from outskirts.imglist import names_hash

    wanted = benchmarks.manifest(name)["classes"]
    every = [wanted, *(benchmarks.manifest(other)["classes"] for other in benchmarks.names())]
    lists = [c["names"] for c in every if "names" in c]
    files = [resources.files("timm.data").joinpath("_info", f"imagenet{one}_synsets.txt") for one in ("", "_r")]
    lists += [f.read_text().split() for f in files if f.is_file()]
    found = next((names for names in lists if names_hash(names) == wanted["sha256"]), None)
    if found is None:
        raise OutskirtsError(
            f"benchmark {name!r} has no names of its {wanted['n']} classes in its manifest; list them in a file, one a line, and give file:PATH"
        )
    return found


def name_words(text: str) -> list[list[str]]:
    """'Tabby cats, Felis_catus' -> the words of every name."""
    parts = [re.findall(r"\w+", p.replace("_", " ").casefold()) for p in text.split(",")]
    return [p for p in parts if p]


@lru_cache(maxsize=1024)
def _namer(names: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a text contains one of `names`."""
    known = [part for name in names for part in name_words(name)]
    whole = frozenset(f for part in known for f in written_as_one(part))
    longer = [list(map(forms, part)) for part in known if len(part) > 1]

    def named(text: str) -> bool:
        return any(
            not whole.isdisjoint(_inside(words)) or any(_holds(list(map(forms, words)), n) for n in longer)
            for words in name_words(text)
        )

    return named


def written_as_one(words: Sequence[str]) -> set[str]:
    """Forms of `words` written as one: race cars -> racecars, racecar."""
    together, start = "".join(words), "".join(words[:-1])
    return {together, *forms(together), *(start + f for f in forms(words[-1]))}


def _inside(words: Sequence[str]) -> Iterable[str]:
    """Forms of each word, and of neighbours written as one."""
    for i in range(len(words)):
        for n in range(1, JOINED + 1):
            part = words[i : i + n]
            if len(part) < n or (n > 1 and (not APART.isdisjoint(part) or all(map(str.isdigit, part)))):
                break
            yield from written_as_one(part)


def _holds(name: Sequence[frozenset[str]], part: Sequence[frozenset[str]]) -> bool:
    return any(all(a & b for a, b in zip(name[i:], part, strict=False)) for i in range(len(name) - len(part) + 1))
