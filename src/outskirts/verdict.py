"""What the numbers allow one to say: rows over seeds, verdicts, the sentence. Plain lists of dicts in and out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from scipy.special import stdtrit

from outskirts.wording import NOISE, PLAIN, finite, label, pct, signed

METRICS = {"auroc": True, "fpr95_id": False, "fpr95_ood": False, "aupr_in": True, "aupr_out": True}
"""Metric -> True where higher is better."""
MEANS = {"mean-near": "near", "mean-far": "far", "mean-all": "all"}
SAY = {"improves": "improves on", "worsens": "is worse than", "no clear difference": "shows no clear difference from"}


def place(row: Mapping) -> str:
    """Where a row was measured: 'mean-near', 'mean-far', 'mean-all' or the name of a test set."""
    group = str(row.get("group") or "")
    return group if group in MEANS else str(row["set"])


def over_seeds(triples: Iterable[Sequence[float | int | None]]) -> list[float | None] | None:
    """(value, lo, hi) of each seed -> mean, lo, hi at 95 %; None where no seed has a finite value, lo and hi None without intervals.

    The test images are the same for every seed, so their share of the uncertainty (the bootstrap) does not shrink with
    the number of seeds; the spread of the seeds does. The two are independent and add in squares, as in `evaluate.compare`.
    """
    triples = [t for t in triples if finite(t[0])]
    if not triples:
        return None
    n, value = len(triples), sum(t[0] for t in triples) / len(triples)
    if not all(finite(bound) for t in triples for bound in t):
        return [value, None, None]
    lo, hi = (sum(t[i] for t in triples) / n for i in (1, 2))
    spread = 0.0
    if n > 1:
        sd = math.sqrt(sum((t[0] - value) ** 2 for t in triples) / (n - 1))
        spread = _t(n - 1) * sd / math.sqrt(n)
    return [value, max(0.0, value - math.hypot(value - lo, spread)), min(1.0, value + math.hypot(hi - value, spread))]


def summarise(rows: Iterable[Mapping]) -> list[dict]:
    """One entry per (method, score, place), in the order of the rows; metrics are [value, lo, hi] in [0, 1] or None."""
    cells: dict[tuple, list[Mapping]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["score"], place(row)), []).append(row)
    return [
        {
            "method": method,
            "score": score,
            "place": where,
            "group": MEANS.get(where) or first.get("group"),
            "transductive": any(bool(r.get("transductive")) for r in cell),
            "seeds": len({r.get("seed") for r in cell}),
            "n_id": first.get("n_id"),
            "n_ood": first.get("n_ood"),
            "excluded": "; ".join(dict.fromkeys(r["excluded"] for r in cell if r.get("excluded"))),
            "n_excluded": max((r.get("n_excluded") or 0 for r in cell), default=0),
            **{m: over_seeds([r.get(m), r.get(f"{m}_lo"), r.get(f"{m}_hi")] for r in cell) for m in METRICS},
            "id_accuracy": over_seeds(_accuracy(r) for r in cell),
        }
        for (method, score, where), cell in cells.items()
        for first in cell[:1]
    ]


def best(summaries: Sequence[Mapping]) -> dict[tuple[str, str], float]:
    """(place, metric) -> the best mean that a deployed detector can reach, so among the scores that are not transductive."""
    out: dict[tuple[str, str], float] = {}
    for s in summaries:
        for m, higher in METRICS.items():
            if s[m] and not s["transductive"]:
                value, at = s[m][0], (s["place"], m)
                out[at] = value if at not in out else (max if higher else min)(out[at], value)
    return out


def _accuracy(row: Mapping) -> list:
    value, n = row.get("id_accuracy"), row.get("n_id")
    if "id_accuracy_lo" in row or not finite(value) or not n:
        return [value, row.get("id_accuracy_lo"), row.get("id_accuracy_hi")]
    low, high = _wilson(round(value * n), int(n))
    return [value, min(value, low), max(value, high)]


@cache
def _wilson(hits: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # half a second, which scoring an image need not wait for

    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@cache
def _t(freedom: int) -> float:
    return float(stdtrit(freedom, 0.975))


def as_it_is(c: Mapping) -> bool:
    """Is this a difference between two scores of the plain classifier? Nothing was trained, so there are no seeds to differ."""
    return c["method"] == c["baseline"] == PLAIN


def call(metric: str, lo: float | int | None, hi: float | int | None, seeds: int, *, trained: bool = True) -> str:
    """'improves', 'worsens' or 'no clear difference', for a difference (method - baseline) with the interval lo .. hi.

    A claim needs an interval that excludes zero, over at least two training seeds where something was trained.
    """
    if (trained and seeds < 2) or not (finite(lo) and finite(hi)) or lo <= 0 <= hi:
        return "no clear difference"
    return "improves" if (lo > 0) == METRICS[metric] else "worsens"


def compare(differences: Iterable[Mapping], summaries: Sequence[Mapping]) -> list[dict]:
    """Difference rows with the verdict that their interval allows, and the values before and after beside them."""
    known = {(s["method"], s["score"], s["place"]): s for s in summaries}
    out = []
    for d in differences:
        if d["metric"] not in METRICS:
            continue
        where, before_score = place(d), d.get("baseline_score", d["score"])
        after, before = known.get((d["method"], d["score"], where)), known.get((d["baseline"], before_score, where))
        seeds = int(d.get("seeds") or (after or {}).get("seeds") or 1)
        keep = {k: d.get(k) for k in ("method", "baseline", "score", "metric", "diff", "lo", "hi")}
        out.append(
            {
                **keep,
                "baseline_score": before_score,
                "place": where,
                "group": MEANS.get(where) or (after or {}).get("group"),
                "transductive": any(bool(s and s.get("transductive")) for s in (d, before, after)),
                "seeds": seeds,
                "before": before and before[d["metric"]] and before[d["metric"]][0],
                "after": after and after[d["metric"]] and after[d["metric"]][0],
                "verdict": call(d["metric"], d.get("lo"), d.get("hi"), seeds, trained=not as_it_is(d)),
            }
        )
    order = list(MEANS)
    return sorted(out, key=lambda c: order.index(c["place"]) if c["place"] in MEANS else len(order))


def pairs(comparisons: Sequence[Mapping]) -> list[dict]:
    """Comparisons grouped into tables: one per method, baseline and pair of scores."""
    out: dict[tuple, dict] = {}
    for c in comparisons:
        head = {k: c[k] for k in ("method", "baseline", "score", "baseline_score", "transductive")}
        out.setdefault(tuple(head.values()), {**head, "rows": []})["rows"].append(c)
    return list(out.values())


def headline_score(comparisons: Sequence[Mapping], method: str) -> str | None:
    """The score of the verdict: energy, else the first one that a deployed detector can compute; the same on both sides."""
    able = [
        c["score"]
        for c in comparisons
        if c["method"] == method and not c["transductive"] and c["score"] == c["baseline_score"]
    ]
    return "energy" if "energy" in able else next(iter(able), None)


def verdict(comparisons: Sequence[Mapping], method: str, ahead: Mapping | None = None) -> dict:
    """The one sentence, its clauses, and where single groups, metrics or other scores disagree with it.

    The sentence speaks of the AUROC, mean over all sets, of one score that both sides share and that is not transductive.
    `ahead` is the row of a baseline that is above every one of the method, see `ranking.ahead`.
    """
    score = headline_score(comparisons, method)
    clauses, exceptions = [], []
    for baseline in (b for b in (PLAIN, NOISE) if b != method):
        fair = [
            c
            for c in comparisons
            if (c["method"], c["baseline"], c["score"]) == (method, baseline, c["baseline_score"])
            and not c["transductive"]
        ]
        mine = [c for c in fair if c["score"] == score]
        main = next((c for c in mine if c["place"] == "mean-all" and c["metric"] == "auroc"), None)
        if main is None or not finite(main["diff"]):
            text = f"was not compared with the {label(baseline)}"
            clauses.append({"baseline": baseline, "verdict": None, "text": text, "points": ""})
            continue
        text = f"{SAY[main['verdict']]} the {label(baseline)}"
        clauses.append({**main, "text": text, "points": points(main)})
        exceptions += [
            f"against the {label(baseline)}, {label(c['metric'])} on {MEANS[c['place']]} sets: {c['verdict']}"
            for c in mine
            if c["place"] in MEANS and c["metric"] in ("auroc", "fpr95_id") and c["verdict"] != main["verdict"]
        ]
        exceptions += _other_scores(fair, main)
    exceptions += [] if ahead and ahead["baseline"] == PLAIN else _plain_alone(comparisons, method, score)
    joint = " and " if len({c["verdict"] for c in clauses}) == 1 else ", but "
    said = joint.join(c["text"] + (f" ({c['points']})" if c["points"] else "") for c in clauses)
    return {
        "method": method,
        "score": score,
        "metric": "auroc",
        "place": "mean-all",
        "seeds": max((c.get("seeds", 0) for c in clauses), default=0),
        "sentence": f"{label(method)} {said}.",
        "joint": joint,
        "clauses": clauses,
        "exceptions": exceptions,
        "ahead": ahead,
    }


def _other_scores(fair: Sequence[Mapping], main: Mapping) -> list[str]:
    """The scores whose verdict against the baseline of `main` is another than its own, one line for each verdict."""
    said: dict[str, list[str]] = {}
    for c in fair:
        if (c["place"], c["metric"]) == (main["place"], main["metric"]) and finite(c["diff"]):
            said.setdefault(c["verdict"], []).append(label(c["score"]))
    start = f"against the {label(main['baseline'])}, {label(main['metric'])} with"
    return [f"{start} {', '.join(names)}: {v}" for v, names in said.items() if v != main["verdict"]]


def _plain_alone(comparisons: Sequence[Mapping], method: str, score: str | None) -> list[str]:
    """The best that a post-hoc score of the plain classifier reaches, where the method's headline stays below it."""
    known = {
        c["score"]: c
        for c in comparisons
        if (c["method"], c["baseline"], c["place"], c["metric"]) == (method, PLAIN, "mean-all", "auroc")
        and c["score"] == c["baseline_score"]
        and not c["transductive"]
        and finite(c["before"])
    }
    top = max(known.values(), key=lambda c: c["before"], default=None)
    if top is None or score not in known or not finite(after := known[score]["after"]) or top["before"] <= after:
        return []
    return [
        f"the {label(PLAIN)}'s {label(top['score'])} score alone reaches {pct(top['before'])}, {label(method)} {pct(after)}"
    ]


def points(c: Mapping) -> str:
    """A difference of AUROC in words, with its interval."""
    if c["seeds"] < 2 and not as_it_is(c):
        return f"{signed(c['diff'])} points of AUROC, one training seed: no interval over seeds"
    return f"{signed(c['diff'])} points of AUROC, {signed(c['lo'])} to {signed(c['hi'])}"
