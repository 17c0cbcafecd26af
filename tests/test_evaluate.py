"""Rows and differences: what is averaged, what is paired, and when a verdict may be given."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from outskirts import evaluate, metrics, scored, verdict
from outskirts.data import Images
from outskirts.errors import OutskirtsError
from outskirts.evaluate import REPORTED, Scored, collect, compare, rows, score_sets
from outskirts.models import Classifier
from outskirts.scored import to_arrays
from outskirts.scores import energy, knn, msp, unified
from outskirts.types import Outputs


def outputs(n, shift=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, generator=g)
    logits[:, 0] += 3 - shift
    features = torch.randn(n, 6, generator=g)
    features[:, 0] += 4 - shift
    return Outputs(logits, features)


TRAIN, VAL = outputs(200, seed=8), outputs(200, seed=9)
ID, LABELS = outputs(300), torch.zeros(300, dtype=torch.long)
SETS = {"a": ("near", outputs(150, 1.0, 1)), "b": ("near", outputs(90, 1.5, 2)), "c": ("far", outputs(200, 4.0, 3))}
NONE = torch.zeros(200, dtype=torch.long)


def scored_by(method="plain", seed=0, gain=0.0, noise=0.0, score="energy"):
    """Scores of the same images by a made-up method: `gain` moves OOD images, `noise` is that of a training seed."""
    g = torch.Generator().manual_seed(1000 + seed)
    moved = gain + noise * torch.randn(1, generator=g).item()
    e = energy.Score()
    return [
        Scored(method, seed, score, False, name, group, e(ID), e(o) + moved, 0.9) for name, (group, o) in SETS.items()
    ]


# --- one forward pass --------------------------------------------------------------------------------------------------


@pytest.fixture(name="classifier")
def _classifier():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    return Classifier(net, classes=list("abcd"), size=None)


def test_collect_is_one_forward_pass_in_eval_mode(classifier, capsys):
    images, seen = torch.rand(10, 3, 8, 8), []
    classifier.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
    classifier.train()
    frozen = next(m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    statistics = frozen.running_mean.clone()
    found = collect(classifier, images, batch_size=4, progress="title")
    assert seen == [4, 4, 2]
    assert classifier.training
    assert not frozen.training
    assert torch.equal(frozen.running_mean, statistics)
    assert "title" in capsys.readouterr().err
    with torch.no_grad():
        want = classifier.eval()(images)
    torch.testing.assert_close(found.logits, want.logits)
    torch.testing.assert_close(found.features, want.features)


class Brightest:
    """Reads the images: the largest pixel."""

    differentiable = transductive = False

    def __init__(self, calls):
        self.calls = calls

    @property
    def observes(self):
        return "brightest"

    def observe(self, look):
        self.calls.append(len(look.images))
        return look.images.requires_grad_().flatten(1).amax(1)  # may ask for gradients


def test_observers_of_one_key_look_once_at_each_batch_in_the_same_pass(classifier):
    images, calls, passes = torch.rand(10, 3, 8, 8), [], []
    classifier.register_forward_pre_hook(lambda _m, inputs: passes.append(len(inputs[0])))
    found = collect(classifier, images, batch_size=4, observers=[Brightest(calls), Brightest(calls), object()])
    assert calls == passes == [4, 4, 2]
    torch.testing.assert_close(found.observed["brightest"], images.flatten(1).amax(1))
    assert found.labels is None
    assert not found.observed["brightest"].requires_grad
    torch.testing.assert_close(found[2:5].observed["brightest"], found.observed["brightest"][2:5])


def test_collect_keeps_the_labels_of_labelled_images(classifier):
    labels = torch.arange(10) % 4
    images = Images("some", list("abcd"), labels, torch.zeros(10, 3, 8, 8, dtype=torch.uint8))
    found = collect(classifier, images, batch_size=4)
    assert found.labels.tolist() == labels.tolist()
    assert found.to(torch.float64).labels.dtype == torch.int64
    assert Outputs.cat([found, found[:2]]).labels.tolist() == [*labels.tolist(), 0, 1]


def test_a_bank_of_collected_outputs_can_guide(classifier):
    """Tensors made in inference mode would refuse the backward pass."""
    images = torch.rand(10, 3, 8, 8)
    score = knn.Score(k=2).fit(collect(classifier, images), torch.zeros(10).long())
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(score(classifier.eval()(x)).sum(), x)
    assert grad.abs().sum() > 0


def test_collect_of_nothing(classifier):
    with pytest.raises(OutskirtsError, match="at least one"):
        collect(classifier, torch.zeros(0, 3, 8, 8))


# --- rows --------------------------------------------------------------------------------------------------------------


def test_rows_hold_every_set_and_the_unweighted_means():
    lines = evaluate.evaluate({"energy": energy.Score(), "msp": msp.Score()}, ID, LABELS, SETS, method="plain", seed=3)
    assert json.loads(json.dumps(lines, allow_nan=False)) == lines
    by = {(r["score"], r["set"]): r for r in lines}
    assert len(by) == 2 * 6
    row = by["energy", "a"]
    assert (row["method"], row["seed"], row["group"], row["n_id"], row["n_ood"]) == ("plain", 3, "near", 300, 150)
    assert row["transductive"] is False
    assert row["id_accuracy"] == pytest.approx((ID.logits.argmax(1) == 0).double().mean().item())
    e = energy.Score()
    want = metrics.ood_metrics(e(ID), e(SETS["a"][1]))
    for m in REPORTED:
        assert row[m] == want[m]
        assert row[f"{m}_lo"] < row[m] < row[f"{m}_hi"]
        for mean, sets in {"mean-near": "ab", "mean-far": "c", "mean-all": "abc"}.items():
            assert by["energy", mean][m] == pytest.approx(np.mean([by["energy", s][m] for s in sets]))
            assert by["energy", mean]["group"] == mean
    assert by["energy", "mean-far"]["auroc_lo"] == by["energy", "c"]["auroc_lo"]


def test_a_group_without_sets_has_no_mean():
    lines = evaluate.evaluate({"energy": energy.Score()}, ID, LABELS, {"a": SETS["a"]}, method="plain", seed=0)
    assert [r["set"] for r in lines] == ["a", "mean-near", "mean-all"]


def test_transductive_numbers_are_marked_wherever_they_appear():
    scores = {
        "unified": unified.Score(k=5).fit(TRAIN, NONE, val=VAL, outliers=SETS["a"][1]),
        "paper": unified.Score(mode="transductive", k=5).fit(TRAIN, NONE),
    }
    found = score_sets(scores, ID, LABELS, SETS, method="plain", seed=0)
    assert all(r["transductive"] == (r["score"] == "paper") for r in rows(found))
    assert all(r["transductive"] for r in compare(found, found, pairs=[("unified", "paper")]))
    for s in found:
        if s.score == "paper":
            a, b = scores["paper"].pair(ID, SETS[s.set][1])
            assert torch.equal(s.id_scores, a)
            assert torch.equal(s.ood_scores, b)


def test_arrays_by_name():
    score = unified.Score(mode="transductive", k=5).fit(TRAIN, NONE)
    found = score_sets({"energy": energy.Score(), "paper": score}, ID, LABELS, SETS, method="plain", seed=1)
    arrays = scored.to_arrays(found)
    assert set(arrays) == {
        *(f"plain|1|energy|{s}" for s in ("a", "b", "c", "id")),
        *(f"plain|1|paper|{s}" for s in ("a", "b", "c", "id@a", "id@b", "id@c")),
    }
    assert all(x.dtype == np.float32 for x in arrays.values())
    np.testing.assert_array_equal(arrays["plain|1|energy|id"], energy.Score()(ID).numpy())


@dataclasses.dataclass
class Broken:
    """A user's score with a hole in it."""

    differentiable = False
    transductive = False

    def fit(self, train, labels, *, val=None, outliers=None):
        return self

    def __call__(self, outputs):
        x = outputs.logits[:, 0].clone()
        if len(x) == 90:
            x[7] = float("nan")
        return x


class Constant(Broken):
    def __call__(self, outputs):
        return torch.ones(len(outputs))


def test_a_set_whose_scores_are_not_finite_is_named_and_left_out_of_the_means(caplog):
    scored = score_sets({"broken": Broken()}, ID, LABELS, SETS, method="good", seed=2)
    assert caplog.messages == [
        "score 'broken' (good, seed 2) is left out on b, and from the means over sets: "
        "1 of 90 OOD scores are NaN or infinite, the first at image 7"
    ]
    lines = {r["set"]: r for r in rows(scored)}
    assert lines["b"]["excluded"].startswith("1 of 90 OOD scores are NaN")
    assert all(lines["b"][f"auroc{end}"] is None for end in ("", "_lo", "_hi"))
    assert lines["b"]["n_ood"] == 90
    others = [lines[s]["auroc"] for s in SETS if s != "b"]
    assert lines["mean-all"]["auroc"] == pytest.approx(np.mean(others))
    assert (lines["mean-all"]["n_sets"], lines["mean-all"]["n_excluded"]) == (len(SETS) - 1, 1)
    assert "good|2|broken|b" not in to_arrays(scored)
    json.dumps(rows(scored), allow_nan=False)


def test_a_score_of_nan_on_id_images_or_of_one_value_has_no_metrics_anywhere(caplog):
    broken = Outputs(ID.logits.clone().fill_(torch.nan), ID.features)
    lines = rows(score_sets({"energy": energy.Score()}, broken, LABELS, SETS, method="plain", seed=0))
    assert {r["set"] for r in lines} == {*SETS, "mean-near", "mean-far", "mean-all"}
    assert all(r["auroc"] is None for r in lines)
    assert next(r["n_excluded"] for r in lines if r["set"] == "mean-all") == len(SETS)
    lines = rows(score_sets({"constant": Constant()}, ID, LABELS, SETS, method="plain", seed=0))
    assert all(r["auroc"] is None for r in lines)
    assert caplog.messages[-1].endswith("every score is 1")


class Saturated(Broken):
    """The same value for every image of the one side that has `n` images."""

    def __init__(self, n):
        self.n = n

    def __call__(self, outputs):
        values = -outputs.logits.max(1).values
        return torch.full_like(values, -1.0) if len(values) == self.n else values


def test_a_set_or_the_id_images_of_one_value_are_named_and_left_out(caplog):
    (label, (_, one)), *_ = ((k, v) for k, v in SETS.items() if k == "b")
    scored = score_sets({"msp": Saturated(len(one))}, ID, LABELS, SETS, method="good", seed=1)
    assert caplog.messages == [
        f"score 'msp' (good, seed 1) is left out on {label}, and from the means over sets: every OOD score is -1"
    ]
    lines = {r["set"]: r for r in rows(scored)}
    assert lines["mean-all"]["n_excluded"] == 1
    found = rows(score_sets({"msp": Saturated(len(ID))}, ID, LABELS, SETS, method="good", seed=1))
    assert {r["excluded"] for r in found if r["set"] in SETS} >= {"every ID score is -1"}
    one = {"alone": ("near", ID[:1])}  # one image is no constant: sets of one image are warned of by their size
    assert not score_sets({"msp": energy.Score()}, ID, LABELS, one, method="good", seed=1)[0].excluded


def test_the_full_spectrum_names_only_what_the_usual_table_does_not_leave_out_too(caplog):
    usual = score_sets({"broken": Broken()}, ID, LABELS, SETS, method="good", seed=2, failed={"unfit": "needs more"})
    assert len(caplog.messages) == 2
    caplog.clear()
    told = {"method": "good", "seed": 2, "failed": {"unfit": "needs more"}, "usual": usual}
    wide = Outputs.cat([ID, ID])
    again = score_sets({"broken": Broken()}, wide, torch.cat([LABELS, LABELS]), SETS, **told)
    assert {s.score for s in again} == {"broken", "unfit"}
    assert not caplog.messages
    moved = Outputs(wide.logits.clone(), wide.features)
    moved.logits[-1] = torch.inf
    score_sets({"broken": Saturated(0)}, moved, torch.cat([LABELS, LABELS]), SETS, **told)
    (line,) = caplog.messages
    assert line.startswith("full spectrum: score 'broken' (good, seed 2) is left out on ")
    assert f"1 of {2 * len(ID)} ID scores" in line


def test_a_missing_set_is_a_row_and_is_counted():
    scored = score_sets({"energy": energy.Score()}, ID, LABELS, SETS, method="plain", seed=0)
    lines = {r["set"]: r for r in rows(scored, missing={"SVHN": ("far", "missing: no data/svhn")})}
    assert lines["SVHN"]["excluded"] == "missing: no data/svhn"
    assert lines["SVHN"]["auroc"] is None
    counts = {m: lines[m]["n_excluded"] for m in ("mean-near", "mean-far", "mean-all")}
    assert counts == {"mean-near": 0, "mean-far": 1, "mean-all": 1}
    assert lines["mean-all"]["auroc"] == next(r for r in rows(scored) if r["set"] == "mean-all")["auroc"]


def test_a_comparison_leaves_out_on_both_sides_what_one_cannot_rank():
    before = score_sets({"energy": Broken()}, ID, LABELS, SETS, method="plain", seed=0)
    after = score_sets({"energy": energy.Score()}, ID, LABELS, SETS, method="good", seed=0)
    lines = [r for r in compare(before, after) if r["metric"] == "auroc"]
    assert {r["set"] for r in lines} == {*SETS, "mean-near", "mean-far", "mean-all"} - {"b"}
    mean = next(r for r in lines if r["set"] == "mean-all")
    assert mean["n_excluded"] == 1
    assert mean["diff"] == pytest.approx(np.mean([r["diff"] for r in lines if r["set"] in SETS]))


def test_a_score_that_fails_is_named():
    with pytest.raises(OutskirtsError, match=r"'knn' \(good, seed 2\) on the ID test set: .* not fitted"):
        score_sets({"knn": knn.Score()}, ID, LABELS, SETS, method="good", seed=2)
    with pytest.raises(OutskirtsError, match="accepted: near, far"):
        score_sets({"energy": energy.Score()}, ID, LABELS, {"a": ("middle", ID)}, method="good", seed=2)


# --- differences -------------------------------------------------------------------------------------------------------


def only(lines, set="mean-all", metric="auroc"):
    (line,) = [r for r in lines if r["set"] == set and r["metric"] == metric]
    return line


def test_the_same_method_never_differs():
    lines = compare(scored_by(), scored_by("again"))
    assert len(lines) == 6 * len(REPORTED)
    assert all(r["diff"] == r["lo"] == r["hi"] == 0 and r["verdict"] == "no clear difference" for r in lines)
    assert {(r["method"], r["baseline"]) for r in lines} == {("again", "plain")}


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "improves"), (-1.0, "worsens")])
def test_direction(gain, verdict):
    lines = compare(scored_by(), [s for i in range(3) for s in scored_by("good", i, gain, 0.02)])
    assert all(r["verdict"] == verdict for r in lines if r["set"] == "mean-all")
    assert only(lines)["diff"] * gain > 0
    assert only(lines, metric="fpr95_id")["diff"] * gain < 0  # lower is better, and called so
    assert only(lines)["seeds"] == 3


def test_the_interval_is_t_over_seeds_and_bootstrap_over_images_in_quadrature():
    before = [s for i in range(3) for s in scored_by("plain", i, 0.0, 0.1)]
    after = [s for i in range(3) for s in scored_by("good", i, 0.3, 0.3)]
    line = only(compare(before, after), "a")
    b, a = ([s for s in x if s.set == "a"] for x in (before, after))
    diffs = [y.point["auroc"] - x.point["auroc"] for x, y in zip(b, a, strict=True)]
    seeds = stats.t.ppf(0.975, 2) * np.std(diffs, ddof=1) / np.sqrt(3)
    drawn = [y.replicates["auroc"] - x.replicates["auroc"] for x, y in zip(b, a, strict=True)]
    images = stats.norm.ppf(0.975) * np.mean(drawn, 0).std(ddof=1)
    assert line["diff"] == pytest.approx(np.mean(diffs))
    assert line["hi"] - line["diff"] == pytest.approx(np.hypot(seeds, images))
    assert line["diff"] - line["lo"] == pytest.approx(np.hypot(seeds, images))
    assert min(seeds, images) > 0


def test_the_interval_stays_where_a_difference_of_shares_can_be():
    """Two seeds, of which one gains nearly everything: the t interval alone would go far beyond 1."""
    lines = compare(scored_by(gain=-9.0), [s for i, g in enumerate((-9.0, 9.0)) for s in scored_by("good", i, g)])
    assert only(lines)["hi"] == 1
    assert only(lines)["lo"] == -1
    assert all(-1 <= r["lo"] <= r["diff"] <= r["hi"] <= 1 for r in lines)


def test_a_gain_that_depends_on_the_seed_is_no_claim():
    """Three seeds of which one loses: clear for each seed's images, not over seeds."""
    after = [s for i, gain in enumerate((0.9, 0.8, -0.5)) for s in scored_by("good", i, gain)]
    assert only(compare(scored_by(), after))["verdict"] == "no clear difference"
    for i, gains in enumerate((True, True, False)):
        line = only(compare(scored_by(), [s for s in after if s.seed == i]))
        assert (line["lo"] > 0) if gains else (line["hi"] < 0)
        assert line["verdict"] == "no clear difference"  # one training is no claim, as on the report's page
        assert line["seeds"] == 1


def test_the_rule_of_the_verdict_is_the_report_s(monkeypatch):
    seen = []
    monkeypatch.setattr(verdict, "call", lambda *facts, trained: seen.append(facts) or f"call {len(seen)}")
    lines = compare(scored_by(), scored_by("good", 0, 0.2))
    assert [r["verdict"] for r in lines] == [f"call {i + 1}" for i in range(len(lines))]
    assert seen == [(r["metric"], r["lo"], r["hi"], r["seeds"]) for r in lines]


def test_pairing_makes_the_interval_narrower_than_two_rows():
    before, after = scored_by(), scored_by("good", 0, 0.2)
    line, row = only(compare(before, after)), rows(before)[-1]
    assert row["set"] == "mean-all"
    assert (line["hi"] - line["lo"]) < 0.5 * (row["auroc_hi"] - row["auroc_lo"])


def test_one_baseline_serves_all_seeds_and_scores_can_be_crossed():
    after = [s for i in range(2) for s in scored_by("good", i, 0.5, 0.1)]
    every = [dataclasses.replace(s, seed=i) for i in range(2) for s in scored_by()]
    assert compare(scored_by(seed=7), after) == compare(every, after)
    crossed = compare(scored_by(score="msp"), after, pairs=[("msp", "energy")])
    assert {(r["baseline_score"], r["score"]) for r in crossed} == {("msp", "energy")}
    assert [r["diff"] for r in crossed] == [r["diff"] for r in compare(scored_by(), after)]


def test_bad_comparisons():
    two = [s for i in range(2) for s in scored_by("plain", i)]
    with pytest.raises(OutskirtsError, match="the same seeds"):
        compare(two, [s for i in (1, 2) for s in scored_by("good", i)])
    with pytest.raises(OutskirtsError, match="nothing to compare"):
        compare(scored_by(score="msp"), scored_by())
    with pytest.raises(OutskirtsError, match="no scores for the pair"):
        compare(scored_by(), scored_by("good"), pairs=[("energy", "knn")])
    with pytest.raises(OutskirtsError, match="other images"):
        compare(scored_by()[:2], scored_by("good"))
