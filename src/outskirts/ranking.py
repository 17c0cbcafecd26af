"""Who leads among many methods, and what may be said of it: plain lists of dicts in and out, as in `verdict.py`."""

from collections.abc import Iterable, Mapping, Sequence

from outskirts.verdict import MEANS, METRICS, SAY, as_it_is, points
from outskirts.wording import NOISE, PLAIN, label, pct

ALL = "mean-all"


def headline_score(summaries: Sequence[Mapping]) -> str | None:
    """The score that methods are compared by: energy, else the first one that a deployed detector can compute."""
    able = [s["score"] for s in summaries if not s["transductive"]]
    return "energy" if "energy" in able else next(iter(able), None)


def whole(summaries: Sequence[Mapping]) -> list[Mapping]:
    """Those that may be ranked: not transductive, and over as many test sets as the fullest mean of their place."""
    fewest: dict[str, int] = {}
    for s in summaries:
        fewest[s["place"]] = min(s["n_excluded"], fewest.get(s["place"], s["n_excluded"]))
    return [s for s in summaries if not s["transductive"] and s["n_excluded"] == fewest[s["place"]]]


def ranked(summaries: Iterable[Mapping], score: str | None = None) -> list[Mapping]:
    """Summaries over all sets (of one score, or of every score), the highest AUROC first; those without a value are not in it."""
    field = [s for s in summaries if s["place"] == ALL and s["auroc"] and score in (None, s["score"])]
    return sorted(field, key=lambda s: -s["auroc"][0])


def best_of(fair: Sequence[Mapping], methods: Iterable[str]) -> Mapping | None:
    """The summary, of any of `methods` with any score, that has the highest mean AUROC over all sets."""
    methods = set(methods)
    return next((s for s in ranked(fair) if s["method"] in methods), None)


def across(fair: Sequence[Mapping], own: Sequence[str]) -> list[tuple[Mapping, Mapping]]:
    """(summary of a method, of what it is held against), each with a score of its own: every method with the headline score and with
    its best one against the plain classifier's best; the compared ones also against the best baseline's best, where that is another.

    The best is the one with the highest mean AUROC on the test sets themselves, on both sides.
    """
    score, methods = headline_score(fair), list(dict.fromkeys(s["method"] for s in fair))
    plain, baseline = best_of(fair, [PLAIN]), best_of(fair, [m for m in methods if m not in own])
    out = []
    for m in (m for m in methods if m != PLAIN):
        mine = [next((s for s in ranked(fair, score) if s["method"] == m), None), best_of(fair, [m])]
        for other in (plain, *([baseline] if m in own and baseline is not plain else [])):
            out += [(s, other) for s in mine if s and other]
    return [pair for i, pair in enumerate(out) if pair not in out[:i]]


def ahead(summaries: Sequence[Mapping], comparisons: Sequence[Mapping], method: str) -> dict | None:
    """The row of the plain classifier or of the noise floor, of any score, whose AUROC over all sets is above every one of `method`."""
    fair = whole(summaries)
    mine, top = best_of(fair, [method]), best_of(fair, {PLAIN, NOISE} - {method})
    if not (mine and top) or top["auroc"][0] <= mine["auroc"][0]:
        return None
    found = _against(mine, top, comparisons)
    clear = {None: "", "no clear difference": ", no clear difference"}.get(found["verdict"], ", a clear difference")
    value, best = (pct(s["auroc"][0]) for s in (top, mine))
    return found | {
        "sentence": f"The {label(top['method'])} with {label(top['score'])} ranks above {label(method)} with any score: "
        f"AUROC {value} against at best {best} ({label(mine['score'])}){clear}."
    }


def alone(summaries: Sequence[Mapping], comparisons: Iterable[Mapping] = ()) -> dict | None:
    """Of a classifier measured without any method: the score with the best AUROC over all sets, and those that come close to it.

    A score comes close where the interval of its paired difference from the best holds zero: these images do not tell the two
    apart. `paired` counts the scores that the best was held against in this way.
    """
    order = ranked(whole(summaries))
    if not order:
        return None
    top = order[0]
    against = {
        c["baseline_score"]: c["verdict"]
        for c in comparisons
        if as_it_is(c) and (c["score"], c["place"], c["metric"]) == (top["score"], ALL, "auroc")
    }
    able = [s for s in summaries if s["place"] == ALL and s["auroc"] and not s["transductive"]]
    return {
        "score": top["score"],
        "scores": len(able),
        "close": [score for score, said in against.items() if said == "no clear difference"],
        "paired": len(against),
        "sets": len({s["place"] for s in summaries if s["place"] not in MEANS and s["auroc"]}),
        "n_excluded": top["n_excluded"],
        **{m: top[m] for m in (*METRICS, "id_accuracy")},
    }


def standing(fair: Sequence[Mapping], comparisons: Sequence[Mapping], own: Sequence[str], score: str | None) -> dict:
    """Who is first by mean AUROC over all sets, and every own method against the best baseline, by paired intervals alone.

    `fair` are the summaries that may be ranked (see `whole`). Where one method alone was measured, its scores are ranked, and
    the first is held against the others.
    """
    methods = list(dict.fromkeys(s["method"] for s in fair))
    order = ranked(fair, score) if len(methods) > 1 else ranked(fair)
    baseline = next((s for s in order if s["method"] not in own), None) if len(methods) > 1 else None
    against = [_against(s, baseline, comparisons) for s in order if s["method"] in own and baseline]
    if len(methods) == 1:
        against = [_against(order[0], s, comparisons) for s in order[1:]]
    anything = ranked(fair)
    return {
        "score": score,
        "metric": "auroc",
        "place": ALL,
        "methods": methods,
        "scores": list(dict.fromkeys(s["score"] for s in fair)),
        "seeds": max((s["seeds"] for s in order), default=0),
        "order": [_short(s) for s in order],
        "best": _short(order[0]) if order else None,
        "best_is_own": bool(order) and order[0]["method"] in own,
        "best_baseline": _short(baseline) if baseline else None,
        "against": against,
        "best_of_all": _short(anything[0]) if anything else None,
        "best_plain": next((_short(s) for s in anything if s["method"] == PLAIN), None),
        "across": [_against(s, other, comparisons) for s, other in across(fair, own)],
    }


def _short(s: Mapping) -> dict:
    return {k: s[k] for k in ("method", "score", "auroc", "seeds")}


def _against(mine: Mapping, baseline: Mapping, comparisons: Sequence[Mapping]) -> dict:
    """One own method against the best baseline: the paired difference, and the words that its interval allows."""
    at = (mine["method"], baseline["method"], mine["score"], baseline["score"], ALL, "auroc")
    keys = ("method", "baseline", "score", "baseline_score", "place", "metric")
    c = next((c for c in comparisons if tuple(c[k] for k in keys) == at), None)
    head = {"method": mine["method"], "score": mine["score"], "auroc": mine["auroc"]}
    head |= {"baseline": baseline["method"], "baseline_score": baseline["score"], "baseline_auroc": baseline["auroc"]}
    if c is None:
        return {**head, "verdict": None, "text": "was not compared with", "points": ""}
    numbers = {k: c[k] for k in ("diff", "lo", "hi", "seeds", "verdict", "before", "after", "transductive")}
    return {**head, **numbers, "text": SAY[c["verdict"]], "points": points(c)}


def axes(lines: Iterable[Mapping]) -> dict[tuple[str, str], tuple[float, float]]:
    """(place, metric) -> the ends of the scale that holds every value and interval of its column."""
    lines, out = list(lines), {}
    for where in MEANS:
        for m in METRICS:
            values = [v for s in lines if s["place"] == where and s[m] for v in s[m] if v is not None]
            lo, hi = min(values, default=0.0), max(values, default=1.0)
            pad = 0.03 * (hi - lo) or 0.01
            out[where, m] = (max(0.0, lo - pad), min(1.0, hi + pad))
    return out
