"""For scores that compare images with texts: a tiny CLIP classifier, and words of our own. Its features have 8 dimensions."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from outskirts.find import find, names
from outskirts.models import load_classifier
from tiny import tiny_clip

NOUNS = """anvil, basket, candle, dune, easel, fjord, glacier, hammock, inkwell, jigsaw, kettle, lantern, mitten, nutmeg, oar, pebble,
quill, rudder, saddle, thimble, urn, velvet, wagon, xylem, yoke, zipper, acorn, bellows, compass, drizzle, ember, flute, gravel,
hinge, icicle, juniper, kiln, ladder, marble, needle""".replace("\n", " ").split(", ")
ADJECTIVES = """amber, brisk, coarse, damp, eager, faint, gaunt, hollow, idle, jagged, keen, limp, mellow, numb, opaque, plump, quaint,
rugged, sleek, tepid""".replace("\n", " ").split(", ")


@cache
def clip_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "words").mkdir()
    (folder / "words" / "noun.things.txt").write_text("\n".join(NOUNS))
    (folder / "words" / "adj.all.txt").write_text("\n".join(ADJECTIVES))
    return tiny_clip(folder)


def words() -> str:
    """6 nouns and 3 adjectives of them become negative labels."""
    return str(clip_folder().parent / "words")


@cache
def clip_classifier(classes="abcd"):
    return load_classifier(f"clip:{clip_folder()}", classes=list(classes)).frozen()


def settings(name: str) -> dict:
    """What a score must be given that reads texts; nothing for others."""
    return {"words": words(), "groups": 3} if _reads_texts(name) else {}


def classifier_for(name: str, other):
    """A CLIP classifier for those scores, `other` for the rest."""
    return clip_classifier() if _reads_texts(name) else other


def without_texts() -> list[str]:
    """The scores that any classifier can have."""
    return [n for n in names("scores") if not _reads_texts(n)]


def _reads_texts(name: str) -> bool:
    return getattr(find("scores", name), "reads_texts", False)
