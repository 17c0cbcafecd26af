"""Scores against closed forms, pytorch-ood, scikit-learn and GOOD's formulas transcribed."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, Entropy, MaxLogit, MaxSoftmax
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn.functional import normalize

from outskirts.errors import OutskirtsError
from outskirts.scores import energy, entropy, knn, maxlogit, msp, unified
from outskirts.types import Outputs


def outputs(n, *, seed=0, shift=0.0, scale=1.0, k=5, d=8):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g)
    features[:, 0] += 3 - shift
    features[:, 1] += shift
    return Outputs(scale * torch.randn(n, k, generator=g) + 3 - shift, features)


TRAIN, LABELS = outputs(300), torch.zeros(300, dtype=torch.long)
VAL, NEAR, FAR = outputs(400, seed=1), outputs(300, seed=2, shift=0.6), outputs(300, seed=3, shift=4)


# --- of logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "theirs", "offset"),
    [(energy, EnergyBased, 0), (maxlogit, MaxLogit, 0), (entropy, Entropy, 0), (msp, MaxSoftmax, 1)],
)
def test_equals_pytorch_ood(module, theirs, offset):
    x = outputs(64, scale=3)
    ours = module.Score()(x)
    torch.testing.assert_close(ours, offset + theirs(nn.Identity()).predict(x.logits), atol=2e-6, rtol=1e-5)


def test_closed_forms():
    uniform = Outputs(torch.full((1, 4), 2.0), torch.ones(1, 3))
    assert energy.Score()(uniform).item() == pytest.approx(-2 - math.log(4))
    assert msp.Score()(uniform).item() == pytest.approx(0.75)
    assert entropy.Score()(uniform).item() == pytest.approx(math.log(4))
    assert maxlogit.Score()(uniform).item() == -2


def test_energy_gradient_is_minus_softmax():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(energy.Score()(Outputs(logits, logits)).sum(), logits)
    torch.testing.assert_close(grad, -logits.softmax(-1))  # GOOD eq. 5
    assert grad.dtype == torch.float64


def test_msp_still_ranks_the_certain():
    """Where 1 - max p rounds to 0 in float32, the images are still told apart."""
    logits = torch.zeros(3, 2)
    logits[:, 0] = torch.tensor([20.0, 30.0, 40.0])
    x = Outputs(logits, torch.ones(3, 1))
    assert (1 - logits.softmax(-1).amax(-1)).eq(0).sum() >= 2
    torch.testing.assert_close(msp.Score()(x), torch.exp(-logits[:, 0]))


@pytest.mark.parametrize("module", [energy, maxlogit, entropy, msp])
def test_half_precision_is_computed_in_float32(module):
    x = outputs(16, scale=3)
    half = module.Score()(x.to(torch.bfloat16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, module.Score()(x.to(torch.bfloat16).to(torch.float32)))


@pytest.mark.parametrize("module", [energy, maxlogit, entropy, msp])
def test_gradients_stay_finite_where_softmax_underflows(module):
    logits = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(module.Score()(Outputs(logits, logits)).sum(), logits)
    assert grad.isfinite().all()


# --- kNN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 300])
def test_knn_equals_scikit_learn(k, monkeypatch):
    monkeypatch.setitem(knn.CHUNK, "cpu", 300 * 13)  # thirteen queries at a time
    bank, x = normalize(TRAIN.features, dim=-1).double(), normalize(FAR.features, dim=-1).double()
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(bank.numpy())
    want = brute.kneighbors(x.numpy())[0][:, -1]
    np.testing.assert_allclose(knn.Score(k=k).fit(TRAIN, LABELS)(FAR).numpy(), want, atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_kth_largest_equals_a_sort(ties):
    """A bank large enough for the two-step search, with a rest that fills no group."""
    x = torch.randn(9, 64 * 5 * knn.GROUP + 11, generator=torch.Generator().manual_seed(0))
    x = x.mul(2).round() if ties else x
    for k in (1, 5, 80):
        assert x.shape[1] // knn.GROUP >= 4 * k
        column = knn._kth_largest(x, k)
        assert torch.equal(x.gather(1, column[:, None]).squeeze(1), x.sort(descending=True).values[:, k - 1])


def test_knn_gradient_points_from_the_one_neighbour():
    """GOOD eq. 7: (phi - phi_k) / |phi - phi_k| through the normalisation, written out."""
    score = knn.Score(k=4).fit(TRAIN, LABELS)
    z = FAR.features[:10].double().requires_grad_()
    distance = score(Outputs(FAR.logits[:10], z))
    (grad,) = torch.autograd.grad(distance.sum(), z)
    phi = normalize(z, dim=-1).detach()
    bank = score.bank_.double()
    row = (phi[:, None] - bank).norm(dim=-1).argsort(dim=-1)[:, 3]
    along = (phi - bank[row]) / (phi - bank[row]).norm(dim=-1, keepdim=True)
    want = (along - (along * phi).sum(-1, keepdim=True) * phi) / z.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(grad, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(distance.detach(), (phi - bank[row]).norm(dim=-1))


def test_knn_of_a_stored_image_is_zero_and_its_gradient_finite():
    score = knn.Score(k=1).fit(TRAIN, LABELS)
    z = TRAIN.features[:5].clone().requires_grad_()
    distance = score(Outputs(TRAIN.logits[:5], z))
    (grad,) = torch.autograd.grad(distance.sum(), z)
    assert distance.max() <= 1.1e-6
    assert grad.isfinite().all()


def test_knn_ignores_the_length_of_features():
    score = knn.Score(k=5).fit(TRAIN, LABELS)
    torch.testing.assert_close(score(Outputs(FAR.logits, 7 * FAR.features)), score(FAR), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("k", [0, 301])
def test_knn_k_must_be_in_the_bank(k):
    with pytest.raises(OutskirtsError, match=f"k={k} neighbours in a bank of 300") as e:
        knn.Score(k=k).fit(TRAIN, LABELS)
    assert "\n" not in str(e.value)


def test_knn_bad_use_is_told():
    with pytest.raises(OutskirtsError, match="not fitted"):
        knn.Score()(FAR)
    with pytest.raises(OutskirtsError, match="auto, torch, faiss"):
        knn.Score(k=3, backend="annoy").fit(TRAIN, LABELS)(FAR)


def test_faiss_finds_the_same_or_says_it_is_missing():
    if find_spec("faiss"):
        score = knn.Score(k=7, backend="faiss").fit(TRAIN, LABELS)
        torch.testing.assert_close(score(FAR), knn.Score(k=7, backend="torch").fit(TRAIN, LABELS)(FAR))
    else:
        with pytest.raises(OutskirtsError, match=r"outskirts\[faiss\]"):
            knn.Score(k=7, backend="faiss").fit(TRAIN, LABELS)


@pytest.mark.skipif(not find_spec("faiss"), reason="needs faiss")
def test_a_large_bank_gets_an_index_that_finds_the_same_and_can_be_saved(monkeypatch):
    monkeypatch.setattr("outskirts.scores._faiss.LARGE", 4000)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=g)
    features = centres[torch.arange(4100) % 20] + 0.3 * torch.randn(4100, 16, generator=g)
    outputs = Outputs(torch.randn(4100, 2, generator=g), features)
    train, test = outputs[:4000], outputs[4000:]
    for make in (knn.Score(k=10), unified.Score(k=10, mode="fixed", w=1.0)):
        large, small = (s.fit(t, LABELS, val=test) for s, t in ((make, train), (replace(make), train[:3999])))
        assert len(large.index_) > 0
        assert len(small.index_) == 0
        exact = replace(make, backend="torch").fit(train, LABELS, val=test)
        assert len(exact.index_) == 0
        torch.testing.assert_close(large(test), exact(test), atol=1e-3, rtol=0)
        again = replace(make)
        vars(again).update({k: v.clone() if torch.is_tensor(v) else v for k, v in vars(large).items()})
        torch.testing.assert_close(again(test[:1]), large(test)[:1])


@pytest.mark.parametrize("score", [knn.Score(k=5), unified.Score(k=5, mode="fixed", w=0.5)])
def test_a_score_saved_before_there_was_an_index_still_scores(score):
    score = score.fit(TRAIN, LABELS, val=VAL)
    expected = score(FAR)
    del score.index_
    torch.testing.assert_close(score(FAR), expected)


@pytest.mark.skipif(not find_spec("faiss"), reason="needs faiss")
def test_cells_with_fewer_rows_than_k_are_not_the_answer(monkeypatch):
    monkeypatch.setattr("outskirts.scores._faiss.LARGE", 300)
    monkeypatch.setattr("outskirts.scores._faiss.LOOKED_INTO", 1)
    few = knn.Score(k=250).fit(TRAIN, LABELS)
    torch.testing.assert_close(few(FAR), knn.Score(k=250, backend="torch").fit(TRAIN, LABELS)(FAR))


def test_auto_scale_makes_the_gradients_alike():
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh()), nn.Linear(16, 5)

    def classifier(images):
        features = body(images)
        return Outputs(head(features), features)

    images = torch.rand(40, 3, 3, 3)
    with torch.no_grad():
        score = knn.Score(k=3).fit(classifier(torch.rand(50, 3, 3, 3)), torch.zeros(50).long())

    def median_gradient(target):
        x = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(target(classifier(x)).sum(), x)
        return grad.flatten(1).norm(dim=1).median().item()

    s = knn.auto_scale(classifier, images, energy.Score(), score, batch_size=7)
    assert median_gradient(lambda o: s * score(o)) == pytest.approx(median_gradient(energy.Score()), rel=1e-4)
    with pytest.raises(OutskirtsError, match="give a number"):
        knn.auto_scale(lambda x: classifier(0 * x), images, energy.Score(), score)


# --- unified -----------------------------------------------------------------------------------------------------------


def good_unified(e_id, e_ood, d_id, d_ood):
    """GOOD's detection/evaluate.py, transcribed to numpy: scores of the ID and the OOD test set."""
    e_id, e_ood, d_id, d_ood = (np.asarray(x, dtype=np.float64) for x in (e_id, e_ood, d_id, d_ood))
    pooled = np.concatenate([d_ood, d_id])
    edges = np.linspace(pooled.min(), pooled.max(), 11)
    p = (np.histogram(d_ood, edges)[0] + 1e-9) / (len(d_ood) + 1e-8)
    q = (np.histogram(d_id, edges)[0] + 1e-9) / (len(d_id) + 1e-8)
    w = 1 - np.exp(-0.5 * np.sum(p * np.log(p / q)))
    low, high = min(e_id.min(), e_ood.min()), max(e_id.max(), e_ood.max())
    return [(1 - w) * (e - low) / (high - low) + w * d for e, d in ((e_id, d_id), (e_ood, d_ood))]


@pytest.mark.parametrize("ood", [NEAR, FAR], ids=["near", "far"])
def test_transductive_equals_good(ood):
    score = unified.Score(mode="transductive", k=5).fit(TRAIN, LABELS)
    d = knn.Score(k=5).fit(TRAIN, LABELS)
    e = energy.Score()
    want = good_unified(e(VAL), e(ood), d(VAL), d(ood))
    for ours, theirs in zip(score.pair(VAL, ood), want, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def normal(mean, sd, n, seed):
    return mean + sd * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergences_as_measured():
    """specs: ID N(.44, .07), near N(.50, .08), far N(.75, .08). Equal bins 0.54 and about 21, smoothed quantile bins .31 and 2.27."""
    reference, near, far = normal(0.44, 0.07, 5000, 0), normal(0.50, 0.08, 1000, 1), normal(0.75, 0.08, 1000, 2)
    assert unified.equal_bins_kl(near, reference) == pytest.approx(0.54, abs=0.2)
    assert unified.equal_bins_kl(far, reference) > 12
    assert unified.smoothed_kl(near, reference) == pytest.approx(0.31, abs=0.06)
    assert unified.smoothed_kl(far, reference) == pytest.approx(2.27, abs=0.05)
    assert abs(unified.smoothed_kl(reference, reference)) < 1e-9
    assert unified.smoothed_kl(far, reference) < math.log(10)  # bounded, whatever the distance


def test_transductive_is_told_by_the_instance():
    for mode in unified.MODES:
        score = unified.Score(mode=mode, w=0.5 if mode == "fixed" else None)
        assert score.transductive == (mode == "transductive")
        assert score.differentiable == (mode in ("synthetic", "fixed"))


def test_synthetic_is_frozen_and_clipped():
    score = unified.Score(k=5).fit(TRAIN, LABELS, val=VAL, outliers=NEAR)
    e, d, w = energy.Score()(FAR), knn.Score(k=5).fit(TRAIN, LABELS)(FAR), score.w_
    both = torch.cat([energy.Score()(VAL), energy.Score()(NEAR)])
    scaled = ((e - both.min()) / (both.max() - both.min())).clamp(0, 1)
    assert scaled.max() == 1  # the far set leaves the range
    assert 0 < w < 1
    torch.testing.assert_close(score(FAR), (1 - w) * scaled + w * d, atol=1e-6, rtol=1e-5)
    further = unified.Score(k=5).fit(TRAIN, LABELS, val=VAL, outliers=FAR)
    assert further.w_ > w  # outliers further out give the distance more weight


@pytest.mark.parametrize(("w", "part"), [(0.0, "energy"), (1.0, "distance")])
def test_fixed_ends(w, part):
    score = unified.Score(mode="fixed", w=w, k=5).fit(TRAIN, LABELS, val=VAL)
    alone = energy.Score() if part == "energy" else knn.Score(k=5).fit(TRAIN, LABELS)
    assert torch.corrcoef(torch.stack([score(FAR), alone(FAR)]))[0, 1].item() == pytest.approx(1, abs=1e-5)


def test_stream_follows_the_shift():
    score = unified.Score(mode="stream", k=5, window=300).fit(TRAIN, LABELS, val=VAL)
    fresh = outputs(2000, seed=9)
    score.update(fresh[:199])
    assert score.w_ == 0  # too few images to say anything
    score.update(fresh[:300])
    calm, before = score.w_, score(FAR)
    assert 0 < calm < 0.05
    assert (score.p_value(fresh) <= 0.05).double().mean().item() == pytest.approx(0.05, abs=0.025)
    score.update(FAR)
    assert score.w_ > 0.4
    assert not torch.allclose(score(FAR), before)
    # the scale has moved and the threshold with it: p-values of ID images stay where they were
    assert (score.p_value(fresh) <= 0.05).double().mean().item() == pytest.approx(0.05, abs=0.025)
    torch.testing.assert_close(score.threshold().is_ood(score(FAR)), score.p_value(FAR) <= 0.05)
    score.update(fresh[:300])
    assert score.w_ == pytest.approx(calm)  # what has left the window is forgotten


def test_scoring_does_not_move_the_stream():
    score = unified.Score(mode="stream", k=5).fit(TRAIN, LABELS, val=VAL).update(NEAR)
    w = score.w_
    score(FAR)
    score.p_value(FAR)
    assert score.w_ == w
    assert len(score.window_) == len(NEAR)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "oracle"}, "synthetic, fixed, transductive, stream"),
        ({"mode": "fixed"}, "needs w"),
        ({"w": 0.5}, "find it themselves"),
        ({"mode": "fixed", "w": 2.0}, "0 to 1"),
        ({"window": 20}, "at least 200"),
    ],
)
def test_unified_bad_settings(settings, told):
    with pytest.raises(OutskirtsError, match=told):
        unified.Score(**settings)


def test_unified_bad_use():
    with pytest.raises(OutskirtsError, match="outliers=Outputs"):
        unified.Score(k=5).fit(TRAIN, LABELS, val=VAL)
    with pytest.raises(OutskirtsError, match="val=Outputs"):
        unified.Score(k=5).fit(TRAIN, LABELS, outliers=NEAR)
    with pytest.raises(OutskirtsError, match="not fitted"):
        unified.Score()(VAL)
    with pytest.raises(OutskirtsError, match="call pair"):
        unified.Score(mode="transductive", k=5).fit(TRAIN, LABELS)(VAL)
    with pytest.raises(OutskirtsError, match="only mode='transductive'"):
        unified.Score(k=5).fit(TRAIN, LABELS, val=VAL, outliers=NEAR).pair(VAL, NEAR)
    with pytest.raises(OutskirtsError, match="use mode='stream'"):
        unified.Score(k=5).fit(TRAIN, LABELS, val=VAL, outliers=NEAR).update(NEAR)
    flat = Outputs(torch.zeros(300, 5), VAL.features[:300])
    with pytest.raises(OutskirtsError, match="no range"):
        unified.Score(mode="fixed", w=0.1, k=5).fit(TRAIN, LABELS, val=flat)
