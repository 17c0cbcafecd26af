"""Published rows, and what bars them: they stand beside a benchmark only where it is the one that they were measured on."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from outskirts.manifest import ROLES, names, packaged

STANDARD, FULL = "standard", "full-spectrum"


def on_board(board: str | None, table: str = STANDARD) -> list[dict[str, Any]]:
    """The rows of a board, the name that a manifest has under `published`: marked `published`, with their source; none without one."""
    facts = packaged("published")
    rows = [r for r in facts["rows"] if board is not None and (r["benchmark"], r["table"]) == (board, table)]
    return [{**r, "source": facts["sources"][r["source"]], "published": True} for r in rows]


def boards() -> dict[str, dict[str, Any]]:
    """Board -> the packaged manifest whose images its rows were measured on."""
    every = map(packaged, names())
    return {facts["published"]: facts for facts in every if facts.get("published")}


def barred(facts: Mapping[str, Any]) -> dict[str, str]:
    """Table -> why its published rows can never stand beside what is measured on this manifest; only tables that are barred."""
    if facts.get("published") is None:
        return {}
    why = {
        table: _barred(facts, {*ROLES} - ({"shifted"} if table == STANDARD else set())) for table in (STANDARD, FULL)
    }
    return {table: words for table, words in why.items() if words}


def _barred(facts: Mapping[str, Any], roles: set[str]) -> str:
    board, known = facts["published"], boards()
    if board not in known:
        return f"no packaged benchmark has rows of that name; known: {', '.join(known)}"
    if facts["classes"]["sha256"] != known[board]["classes"]["sha256"]:
        return f"its class list is not that of the benchmark {board}"
    mine, theirs = ([p for p in f["parts"] if p["role"] in roles] for f in (facts, known[board]))
    has, wants = (Counter(map(_bound, parts)) for parts in (mine, theirs))
    if lacks := [p["label"] for p in theirs if has[_bound(p)] < wants[_bound(p)]]:
        return f"no part of it has the count and hash of {', '.join(lacks)} in the benchmark {board}"
    if more := [p["label"] for p in mine if has[_bound(p)] > wants[_bound(p)]]:
        return f"the benchmark {board} has no part like {', '.join(more)}"
    if unknown := [p["label"] for p in mine if not _provable(p)]:
        return f"no hash tells whether the images of {', '.join(unknown)} are those that the rows were measured on"
    return ""


def _bound(part: Mapping[str, Any]) -> tuple:
    """What a match of the part rests on: role, count, hashes, and archives that torchvision checks."""
    hashes = sorted(item for item in part.items() if item[0].endswith("sha256"))
    archives = sorted(a["name"] for a in part["at"] if _archive(a))
    return part["role"], part.get("images"), *hashes, *archives


def _provable(part: Mapping[str, Any]) -> bool:
    """Can what lies at one of its places be a match at all?"""
    known = part["role"].startswith("id") or any(key.endswith("sha256") for key in part)
    local = any("why" not in a and not a["name"].startswith(("hf:", "torchvision:")) for a in part["at"])
    return (known and local) or any(map(_archive, part["at"]))


def _archive(place: Mapping[str, Any]) -> bool:
    return place["name"].startswith("torchvision:") and "why" not in place
