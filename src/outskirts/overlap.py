"""Classes of OOD sets that are called like ID classes: by the same name, however it is spelled, or by one that ends in it."""

from collections.abc import Iterator, Mapping, Sequence

from outskirts import imglist
from outskirts.images import Images
from outskirts.prompts import APART, JOINED, called, name_words, written_as_one

NAMED = 12
"""Classes that a warning lists."""


def overlaps(classes: Sequence[str], sets: Mapping[str, Images]) -> Iterator[str]:
    """OOD sets with classes that are, or may be, ID classes: by name, whatever the case, the plural, the separators and the other names."""
    known = {key: c for c, names in zip(classes, called(classes), strict=True) for key in keys(names)}
    for label, images in sets.items():
        present = _present(images)
        names = called(present)
        same = [c for c, other in zip(present, names, strict=True) if keys(other) & known.keys()]
        found = {
            c: end for c, other in zip(present, names, strict=True) if c not in same and (end := _ends(other, known))
        }
        if same:
            yield (
                f"{label} has {len(same)} of its {len(present)} classes in common with the ID set, by name: {_listed(same)}; "
                f"leave them out{_how(images, same)}"
            )
        if found:
            yield (
                f"{label} has {len(found)} of its {len(present)} classes that may overlap with the ID set, for their names end in those of ID "
                f"classes: {_listed([f'{c} ({one})' for c, one in found.items()])}; look at them, and leave out what overlaps{_how(images, list(found))}"
            )


def keys(names: str) -> set[str]:
    """What two spellings of one name share: each name between commas as one word, and what that may be the plural of."""
    return {key for words in name_words(names) for key in written_as_one(words)}


def _present(images: Images) -> list[str]:
    """Classes that have images; of an image list without labels, the folders that the images are in."""
    if not images.classes and images.name.startswith("imglist:"):
        return imglist.folders(images.name.removeprefix("imglist:"))
    return [images.classes[y] for y in images.labels.unique().tolist() if 0 <= y < len(images.classes)]


def _ends(names: str, known: Mapping[str, str]) -> str | None:
    """The ID class that one of the names ends in: cat, of tabby cats."""
    for words in name_words(names):
        for n in range(1, min(len(words), JOINED + 1)):
            end = words[-n:]
            if n > 1 and not APART.isdisjoint(end):
                break
            if found := [known[key] for key in written_as_one(end) if key in known and not key.isdigit()]:
                return min(found)
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _how(images: Images, names: Sequence[str]) -> str:
    """How to leave out the classes `names`, as it would be written."""
    if not images.classes:
        return ": take their lines out of the list"
    inside = images.name.partition("[")[2].removesuffix("]")
    if inside and not inside.startswith("!"):
        return " of the brackets"
    # a name with a comma goes by its first part, one that is a number by its position, which brackets that are there would shift
    short = [str(images.classes.index(c)) if c.isdigit() and not inside else c.partition(",")[0] for c in names]
    more = [",..."] * (len(short) > NAMED)
    return f" with [!{','.join(filter(None, (inside.removeprefix('!'), *short[:NAMED])))}{''.join(more)}]"
