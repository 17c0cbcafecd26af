"""SynOOD's tunings of CLIP: the losses written out, what they may move, and the toy experiment."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from outskirts.clip import Cosine, Residual
from outskirts.clip_settings import ClipTuneSettings
from outskirts.clip_tune import Pairs, batches, image_loss, label_loss, nearest, tune
from outskirts.errors import OutskirtsError
from outskirts.metrics import ood_metrics
from outskirts.negatives import Negatives
from outskirts.scores.neglabel import Score
from outskirts.types import Outputs

SETTINGS = ClipTuneSettings()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- pairs and losses --------------------------------------------------------------------------------------------------


def test_an_outlier_has_the_label_of_the_largest_cosine():
    features, negatives = 7 * randn(40, 6), normalize(randn(5, 6, seed=1), dim=1)
    rows, labels = nearest(features, negatives)
    cosines = [[torch.cosine_similarity(f, n, dim=0).item() for n in negatives] for f in features]
    assert rows.tolist() == list(range(40))
    assert labels.tolist() == [max(range(5), key=row.__getitem__) for row in cosines]


def test_a_label_takes_its_nearest_outliers_up_to_the_cap():
    features, negatives = 7 * randn(60, 6), normalize(randn(4, 6, seed=1), dim=1)
    _, all_labels = nearest(features, negatives)
    cosine = (normalize(features, dim=1) @ negatives.T).max(1).values
    rows, labels = nearest(features, negatives, cap=5)
    assert torch.equal(labels, all_labels[rows])
    for k in range(4):
        of = (all_labels == k).nonzero()[:, 0]
        best = of[cosine[of].argsort(descending=True)][:5]
        assert set(rows[labels == k].tolist()) == set(best.tolist())
    assert len(rows) < 60


def test_losses_are_the_paper_s_written_out():
    known, made, text, E = randn(3, 4), randn(2, 4, seed=1), normalize(randn(2, 4, seed=2), dim=1), randn(3, 4, seed=3)
    y, t = torch.tensor([0, 1, 1]), torch.tensor([2, 0])

    def logits(x, texts):
        return [20 * torch.cosine_similarity(x.double(), w.double(), dim=0) for w in texts]

    def minus_log_softmax(x, texts, i):
        z = logits(x, texts)
        return math.log(sum(math.exp(v) for v in z)) - z[i].item()

    texts = [*text, *E]
    of_known = sum(minus_log_softmax(x, texts, i) for x, i in zip(known, y.tolist(), strict=True)) / 3
    of_made = sum(minus_log_softmax(x, texts, 2 + i) for x, i in zip(made, t.tolist(), strict=True)) / 2
    assert image_loss(known, y, made, t, text, E, 20.0).item() == pytest.approx((of_known + of_made) / 2, rel=1e-5)
    of_labels = sum(minus_log_softmax(x, list(E), i) for x, i in zip(made, t.tolist(), strict=True)) / 2
    assert label_loss(made, t, E, 20.0).item() == pytest.approx(of_labels, rel=1e-5)


def test_an_epoch_sees_the_larger_population_once():
    pairs = Pairs(randn(10, 2), torch.zeros(10).long(), randn(4, 2), torch.zeros(4).long())
    known, made = zip(*batches(pairs, 6, torch.Generator().manual_seed(0), mixed=True), strict=True)
    assert [len(i) for i in known] == [len(j) for j in made] == [3, 3, 3, 1]
    assert sorted(torch.cat(known).tolist()) == list(range(10))
    assert sorted(torch.cat(made).bincount().tolist()) == [2, 2, 3, 3]
    known, made = zip(*batches(pairs, 3, torch.Generator().manual_seed(0), mixed=False), strict=True)
    assert not torch.cat(known).numel()
    assert sorted(torch.cat(made).tolist()) == list(range(4))


# --- tuning ------------------------------------------------------------------------------------------------------------


def toy(norm=10.0, seed=0, D=64, K=20, M=200, n=1000):
    """Images of 20 classes, and near ones, .55 of a class and .45 of one of 200 other labels; CLIP's gap lies between them and the texts."""
    g = torch.Generator().manual_seed(seed)
    T = normalize(torch.randn(K + M, D, generator=g), dim=1)
    gap = 2 * normalize(torch.randn(D, generator=g), dim=0)

    def images(x):
        return norm * normalize(x + gap + 0.5 * torch.randn(n, D, generator=g) / D**0.5, dim=1)

    def population():
        y, z, known = (torch.randint(high, (n,), generator=g) for high in (K, M, K))
        return images(T[known]), known, images(0.55 * T[y] + 0.45 * T[K + z])

    return T[:K], T[K:], population(), population()


@pytest.fixture(scope="module", name="experiment")
def _experiment():
    """AUROC of NegLabel on new images: as it is, and after each tuning of 1000 + 1000 others."""
    found = {}
    for norm in (10.0, 1.0):
        text, negatives, (known, y, made), (new, _, near) = toy(norm)
        plain = Score(groups=10).with_labels(Negatives(tuple(map(str, range(200))), negatives), 100.0)
        rows, labels = nearest(made, negatives)
        pairs, head = Pairs(known, y, made[rows], labels), Cosine(text, math.log(100))

        def auroc(score, project=nn.Identity(), head=head, sets=(new, near)):  # noqa: B008
            outputs = [Outputs(head(project(x)), project(x)) for x in sets]
            return ood_metrics(*map(score, outputs))["auroc"]

        found["plain", norm] = auroc(plain)
        t = tune(pairs, text, negatives, 100.0, SETTINGS, 0, side="projection")
        found["projection", norm] = auroc(plain, t.project)
        t = tune(pairs, text, negatives, 100.0, SETTINGS, 0, side="labels")
        found["labels", norm] = auroc(plain.tuned(pairs.used, t.labels))
        found["cosine"] = torch.cosine_similarity(t.labels, negatives[pairs.used]).mean().item()
    return found


def test_the_toy_experiment(experiment):
    """A closed experiment: the projection tells near images apart, but only where it reads raw features, as long as CLIP's.

    The label side moves its labels and changes little: most near images are nearest to another label than their own.
    """
    assert experiment["plain", 10.0] == pytest.approx(experiment["plain", 1.0], abs=1e-3)  # cosines do not know lengths
    assert 0.83 < experiment["plain", 10.0] < 0.89
    assert experiment["projection", 10.0] > 0.95
    assert experiment["projection", 1.0] < 0.75
    assert abs(experiment["labels", 10.0] - experiment["plain", 10.0]) < 0.03
    assert 0.95 < experiment["cosine"] < 0.99


def small():
    text, negatives, (known, y, made), _ = toy(n=60, D=16, M=30, K=4)
    rows, labels = nearest(made, normalize(negatives, dim=1))
    return Pairs(known, y, made[rows], labels), text, 3 * negatives


def test_joint_tuning_lowers_both_losses_and_a_seed_is_all_that_is_random():
    pairs, text, negatives = small()
    settings = ClipTuneSettings(batch_size=20, epochs=6)
    first, again, other = (tune(pairs, text, negatives, 100.0, settings, s, side="joint") for s in (0, 0, 1))
    assert isinstance(first.project, Residual)
    assert first.epochs[-1]["loss_image"] < first.epochs[0]["loss_image"]
    assert first.epochs[-1]["loss_label"] < first.epochs[0]["loss_label"]
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert not any(p.requires_grad for p in first.project.parameters())


def test_the_first_step_of_each_side():
    """Adam moves every weight by its rate; SGD moves E by its rate times the gradient; the other side stays."""
    pairs, text, negatives = small()
    settings = ClipTuneSettings(batch_size=1000, epochs=1, label_epochs=1, weight_decay=0.0)
    start = negatives[pairs.used].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(label_loss(pairs.made, pairs.targets, start, 100.0), start)
    t = tune(pairs, text, negatives, 100.0, settings, 0, side="labels")
    torch.testing.assert_close(t.labels, start.detach() - 0.02 * gradient, atol=1e-5, rtol=1e-5)
    assert isinstance(t.project, nn.Identity)
    torch.manual_seed(0)
    fresh = Residual(16)
    t = tune(pairs, text, negatives, 100.0, settings, 0, side="projection")
    moved = [(a - b).abs() for a, b in zip(fresh.parameters(), t.project.parameters(), strict=True)]
    assert t.labels is None
    assert all(m.max() < 1.01e-3 for m in moved)
    assert torch.cat([m.flatten() for m in moved]).median() > 0.99e-3


def test_only_the_labels_that_outliers_have_move():
    pairs, text, negatives = small()
    plain = Score(groups=3).with_labels(Negatives(tuple(map(str, range(30))), negatives), 100.0)
    before = plain.negatives_.clone()
    t = tune(pairs, text, negatives, 100.0, SETTINGS, 0, side="labels")
    tuned = plain.tuned(pairs.used, t.labels)
    others = torch.ones(30, dtype=torch.bool).index_fill(0, pairs.used, False)
    assert 0 < others.sum() < 30
    assert torch.equal(tuned.negatives_[others], before[others])
    assert (tuned.negatives_[~others] != before[~others]).any(1).all()
    torch.testing.assert_close(tuned.negatives_.norm(dim=1), torch.ones(30))
    assert torch.equal(plain.negatives_, before)


def test_one_label_for_all_outliers_is_told(caplog):
    pairs, text, negatives = small()
    one = replace(pairs, rows=torch.zeros_like(pairs.rows))
    t = tune(one, text, negatives, 100.0, ClipTuneSettings(weight_decay=0.0), 0, side="labels")
    assert torch.equal(t.labels, negatives[:1])
    assert "one negative label" in caplog.text


def test_a_loss_that_breaks_is_one_line():
    pairs, text, negatives = small()
    with pytest.raises(OutskirtsError, match=r"the loss of labels is not finite after epoch 1; lower lr"):
        tune(pairs, text, negatives * torch.nan, 100.0, SETTINGS, 0, side="labels")


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"seeds": ()}, {"share": 1.5}, {"held_out": 0.7}, {"lr": 0.0}])
def test_settings_are_checked(wrong):
    with pytest.raises(OutskirtsError, match=next(iter(wrong))):
        ClipTuneSettings(**wrong)
