"""What lies at the place of a benchmark's part, without decoding an image: counts, classes and hashes."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outskirts import imglist
from outskirts.errors import OutskirtsError
from outskirts.stamp import file_hash

PROBED = 20_000
"""Files of a list that are looked for, evenly spread over it."""
BASIS = {
    "file_sha256": "by a hash of the one file that holds its images",
    "list_sha256": "by the list of its files and labels; what is in the files was not hashed",
    "names_sha256": "by the names and labels of its files, whatever their folders; what is in the files was not hashed",
    "files_sha256": "by the names of its files; what is in the files was not hashed",
}
"""What a match rests on, by the hash that the manifest has; of several, the first."""


@dataclass(frozen=True)
class Located:
    """One image set on disk."""

    images: int | None = None
    """None for a Parquet file, whose hash says it."""
    classes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = ()
    """By the names that manifests give them, the keys of BASIS."""

    def bound(self, spec: Mapping[str, Any]) -> str | None:
        """What a match with the manifest rests on, in words; None where it would be a count alone."""
        if known := [words for key, words in BASIS.items() if key in spec and key in self.hashes]:
            return known[0]
        if spec["role"].startswith("id") and self.named:
            return f"by its class list{' and count' if spec.get('images') else '; how many images it should have is not known'}"
        return None

    @property
    def named(self) -> bool:
        """Have its classes names, rather than numbers alone?"""
        return bool(self.classes) and self.classes != tuple(map(str, range(len(self.classes))))

    def differs(self, spec: Mapping[str, Any], classes: Mapping[str, Any]) -> tuple[str, bool]:
        """(how it is not what the manifest says, whether it is another thing altogether); ("", False) where it is."""
        if spec["role"].startswith("id") and self.classes:
            if len(self.classes) != classes["n"]:
                return f"has {len(self.classes)} classes, the benchmark {classes['n']}", True
            if self.named and imglist.names_hash(self.classes) != classes["sha256"]:
                shared = len(set(self.classes) & set(classes.get("names") or ()))
                known = f": {shared} of {classes['n']} are shared" if classes.get("names") else ""
                return f"has another class list than the benchmark{known}", True
        if self.images is not None and spec.get("images") not in (None, self.images):
            return f"{self.images:,} images, the benchmark has {spec['images']:,}", False
        if any(key in spec and spec[key] != value for key, value in self.hashes.items()):
            return "other images than the benchmark's, or in other files (their hash differs)", False
        return "", False


def look(name: str) -> Located | str:
    """What is at an `imglist:`, `folder:` or `parquet:` name; a text that says what is missing where there is nothing."""
    kind, _, rest = name.partition(":")
    rest, _, inside = rest.partition("[")
    return {"imglist": _imglist, "folder": _folder, "parquet": _parquet}[kind](rest, inside.removesuffix("]"))


def _imglist(rest: str, _: str) -> Located | str:
    file, root = imglist.place(rest)
    if not file.is_file():
        return f"no {file}"
    listed = imglist.parse(file)
    step = max(1, len(listed.paths) // PROBED)
    probed = listed.paths[::step]
    gone = [p for p in probed if not (root / p).is_file()]
    if gone:
        return f"{len(gone):,} of {len(probed):,} images of {file} are not below {root}, e.g. {gone[0]}"
    hashes = {"list_sha256": listed.hash(), "names_sha256": listed.hash(names_only=True)}
    return Located(len(listed.paths), tuple(listed.classes), hashes | _files(listed))


def _folder(rest: str, inside: str) -> Located | str:
    root = Path(rest).expanduser()
    if not root.is_dir():
        return f"no folder {root}"
    wanted = set(inside.split(",")) if inside else None
    listed = imglist.of_folder(root, wanted)
    if not listed.paths:
        return f"no images in {root}"
    return Located(len(listed.paths), tuple(listed.classes), _files(listed))


def _files(listed: imglist.Listed) -> dict[str, str]:
    return {"files_sha256": imglist.names_hash(p.rpartition("/")[2] for p in listed.paths)}


def _parquet(rest: str, _: str) -> Located | str:
    paths = sorted(glob.glob(str(Path(rest).expanduser())))
    if len(paths) != 1:
        return f"no {rest}" if not paths else f"{len(paths)} files match {rest}"
    try:
        return Located(hashes={"file_sha256": file_hash(paths[0])})
    except OSError as e:
        raise OutskirtsError(f"cannot read {paths[0]}: {e.strerror}; check its permissions") from e
