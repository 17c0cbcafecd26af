"""What limits a number on the pages, beside its interval: test sets of few images, and methods that trained on what is tested."""

from collections.abc import Iterable, Mapping, Sequence

from outskirts.checks import NEEDED
from outskirts.scored import GROUPS
from outskirts.verdict import MEANS


def few(summaries: Iterable[Mapping]) -> dict | None:
    """The OOD sets in the means that have fewer images than an interval needs, and a clause that counts them; None for none."""
    sizes = {
        s["place"]: (s["group"], s["n_ood"]) for s in summaries if s["place"] not in MEANS and s["auroc"] and s["n_ood"]
    }
    small = [place for place, (_, n) in sizes.items() if n < NEEDED]
    if not small:
        return None
    counts = {g: (sum(sizes[s][0] == g for s in small), sum(x == g for x, _ in sizes.values())) for g in GROUPS}
    said = [
        f"the one {g} set" if of == 1 else f"all {n} {g} sets" if n == of else f"{n} of the {of} {g} sets"
        for g, (n, of) in counts.items()
        if n
    ]
    verb = "has" if len(small) == 1 else "have"
    return {"sets": small, "needed": NEEDED, "clause": f"{' and '.join(said)} {verb} fewer than {NEEDED} images"}


def leaked(methods: Sequence[str], warnings: Iterable, recipe: Mapping) -> dict[str, str]:
    """Method -> the warning of `checks.of_outliers` that its outliers, or those that it shares, give test sets away."""
    lines = [w for w in warnings if isinstance(w, str)]
    shares = {m: entry["of"] for m, entry in (recipe.get("methods") or {}).items() if "of" in entry}
    found = {}
    for m in methods:
        maker = shares.get(m, m)
        start, end = (
            f"{maker} trains on classes that ",
            f" are also among the outliers that {maker} trains on, pixel by pixel",
        )
        if line := next((w for w in lines if w.startswith(start) or w.endswith(end)), None):
            found[m] = line
    return found
