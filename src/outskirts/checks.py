"""What makes a benchmark say less than it seems to, in words: shared classes or images, sets that are too small.

And what a training cannot do with the outliers of its method, said before these are made.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.images import Images
from outskirts.methods import Method
from outskirts.overlap import keys, overlaps

NEEDED = 20
"""Images that a set needs: of fewer, 5 % are less than one image, so neither FPR95 nor a 95 % interval means much."""
HASHED = 200_000
"""Images, of a set that is not held in memory, that are decoded to look for duplicates; a larger set is left out."""


def warnings_of(
    train: Sequence[Images],
    test: Images,
    ood: Mapping[str, tuple[str, Images]],
    shifted: Mapping[str, Images] | None = None,
    *,
    decode: bool = True,
) -> list[str]:
    """One line for everything that is wrong with the test sets: sizes, classes that overlap, images that are in both.

    `train` are the ID images that are not tested: for training and validation. `ood` maps a label to its group (near or far)
    and images; `shifted` are more ID test sets. Without `decode`, pixels are compared only where every set is held in memory.
    """
    sets, moved = {label: images for label, (_, images) in ood.items()}, dict(shifted or {})
    tested = sets | moved
    said = [*sizes({"ID test": test, **tested}), *overlaps(test.classes, sets)]
    look = decode or held(*train, test, *tested.values())
    return [*said, *shared(train, test, tested)] if look else said


def held(*sets: Images) -> bool:
    """Are all of them in memory, so that to compare their pixels costs little?"""
    return all(images.pixels is not None for images in sets)


def enough_for(name: str, synthesizer, train: Images) -> None:
    """Raise OutskirtsError where a synthesizer that looks for the k-th neighbour among the training images, or those of a class, finds fewer."""
    k, guided_by = getattr(synthesizer, "k", 0), getattr(synthesizer, "guidance", ())
    if not k or (isinstance(guided_by, tuple) and guided_by and not {"feature", "both"} & set(guided_by)):
        return
    n, which = len(train), "training images"
    if getattr(synthesizer, "per_class", False):
        counts = np.bincount(train.labels.numpy(), minlength=len(train.classes))
        n, which = int(counts.min()), f"training images of class {train.classes[int(counts.argmin())]!r}"
        if synthesizer.rows < n:
            n, which = synthesizer.rows, "rows held of each class"
    most = n - ("source" in synthesizer.requires)  # a training image is its own first neighbour
    if k > most:
        raise OutskirtsError(f"k of synth={name} is {k}, but there are {n} {which}; give 1 to {most}")


def of_codec(what: str, codec: str) -> None:
    """Raise OutskirtsError for a lossy format or quality that no outlier could pass through."""
    import torch

    from outskirts.recode import recode

    try:
        recode(torch.zeros(3, 16, 16, dtype=torch.uint8), codec)
    except OutskirtsError as e:
        raise OutskirtsError(f"{what}: {e}") from None


def of_losses(every: Iterable[Method]) -> Iterator[str]:
    """Margins of which one half is known only when the outliers are made. Raises OutskirtsError for a loss of another kind of outliers."""
    for m in every:
        if m.train.loss == "mixoe" and m.synth and getattr(find("synth", m.synth), "makes_features", False):
            raise OutskirtsError(
                f"{m.label}: train.loss=mixoe mixes images, and the outliers of synth={m.synth} are features; take another loss, or outliers that are images"
            )
        if m.train.loss == "energy_margin" and (m.train.m_in is None) != (m.train.m_out is None):
            given, other = ("m_in", "m_out") if m.train.m_out is None else ("m_out", "m_in")
            yield (
                f"{m.label}: train.{given} is {getattr(m.train, given):g} and train.{other} is estimated, which may not fit to it and "
                "is known only when the outliers are made; give both, or neither"
            )


def of_outliers(label: str, outliers: Images, ood: Mapping[str, tuple[str, Images]]) -> Iterator[str]:
    """Test sets that the real outliers of the method `label` give away: by classes of the same name, or the very images."""
    sets = {name: images for name, (_, images) in ood.items()}
    known = {key for c in outliers.classes for key in keys(c)}
    same = [name for name, images in sets.items() if any(keys(c) & known for c in images.classes)]
    if same:
        yield f"{label} trains on classes that {', '.join(same)} has too, by name: its figures there are a ceiling, not a comparison"
    yield from left_out({f"the outliers of {label}": [outliers]} | {name: [images] for name, images in sets.items()})
    mine = Counter() if too_many(outliers) else pixel_hashes(outliers)
    for name, images in sets.items() if mine else ():
        n = 0 if too_many(images) else sum(count for h, count in pixel_hashes(images).items() if h in mine)
        if n:
            yield f"{n} of {len(images)} images of {name} are also among the outliers that {label} trains on, pixel by pixel"


def not_empty(ood: Mapping[str, tuple[str, Images]]) -> None:
    """Raise OutskirtsError for an OOD set without images."""
    for label, (_, images) in ood.items():
        if not len(images):
            raise OutskirtsError(f"the set {label!r} ({images.name}) has no images; give one at least, or leave it out")


def sizes(sets: Mapping[str, Images]) -> Iterator[str]:
    """Sets of one image, and sets with fewer than an interval needs."""
    for label, images in sets.items():
        if len(images) == 1:
            yield f"{label} has one image: each of its metrics is that image's rank, and its intervals say nothing"
        elif len(images) < NEEDED:
            yield f"{label} has {len(images)} images: FPR95 and 95 % intervals need at least {NEEDED}, and are too narrow here"


def spellings(name: str) -> set[str]:
    """'Tabby, tabby_cat' -> {'tabby', 'tabby cat'}."""
    return {" ".join(part.replace("_", " ").replace("-", " ").lower().split()) for part in name.split(",")} - {""}


def shared(train: Sequence[Images], test: Images, sets: Mapping[str, Images]) -> Iterator[str]:
    """Test images whose pixels are also in the ID training set, OOD images that are also in the ID test set, sets of one picture."""
    tested = {"ID test": test, **sets}
    yield from left_out({"ID training": train} | {label: [images] for label, images in tested.items()})
    known = {"ID training": sum((pixel_hashes(x) for x in train if not too_many(x)), Counter())}
    for label, images in tested.items():
        if too_many(images):
            continue
        mine = pixel_hashes(images)
        if len(mine) == 1 and len(images) > 1:
            yield f"all {len(images)} images of {label} are one picture: every score is constant there, so it is left out of the means"
        for where, theirs in known.items():
            n = sum(count for h, count in mine.items() if h in theirs)
            if n:
                yield f"{n} of {len(images)} images of {label} are also among the {where} images, pixel by pixel"
        if label == "ID test":
            known[label] = mine


def too_many(images: Images) -> bool:
    """Would decoding them all, to look for duplicates, take too long?"""
    return images.pixels is None and len(images) > HASHED


def left_out(sets: Mapping[str, Sequence[Images]]) -> Iterator[str]:
    """The sets that are too large to be looked at, in one line."""
    if large := {label: n for label, parts in sets.items() if (n := sum(len(x) for x in parts if too_many(x)))}:
        listed = ", ".join(f"{label} ({n:,} images)" for label, n in large.items())
        yield f"duplicates were not looked for in {listed}: sets of more than {HASHED:,} images that are not held in memory are left out"


def pixel_hashes(images: Images) -> Counter:
    """How often each picture, by its size and decoded pixels, is in a set."""
    if images.pixels is not None:
        arrays = iter(np.ascontiguousarray(images.pixels.numpy()))
    else:
        import torch

        parts = torch.arange(len(images)).split(256)
        arrays = (a for _, read in images._read_ahead(parts, None) for a in read)
    return Counter(hashlib.blake2b(a.tobytes(), digest_size=16, salt=_salt(a.shape)).digest() for a in arrays)


def _salt(shape: tuple[int, ...]) -> bytes:
    return "x".join(map(str, shape[-2:])).encode()[:16]
