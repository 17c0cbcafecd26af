"""Post-hoc scores whose formula pytorch-ood has right, against pytorch-ood; what it has only near, against the formula too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_ood import detector as po
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import blobs
from blobs import STD, D, K, close, fitted
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.scores import dice, rankfeat
from outskirts.types import Outputs


@pytest.fixture(scope="module", name="classifier")
def _classifier():
    return blobs.classifier()


@pytest.fixture(scope="module", name="parts")
def _parts(classifier):
    return blobs.parts(classifier)


def seen(score, classifier, images):
    """What an observer says of images."""
    return score(collect(classifier, images, observers=[score]))


def as_map(z):
    return z[..., None, None]


def on_map(head):
    return nn.Sequential(nn.Flatten(), head)


# --- one formula, one oracle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "gamma"), [(100, 0.1), (3, 0.1), (4, 1.0)])
def test_gen(parts, classifier, m, gamma):
    x = Outputs(parts[2].logits / 20, parts[2].features)  # theirs clips p at 1e-7
    theirs = po.GEN(None, gamma=gamma, M=m).predict_logits(x.logits)
    close(fitted("gen", parts, classifier, M=m, gamma=gamma)(x), min(m, K) * theirs, 2e-6)  # theirs is a mean


def test_gen_still_ranks_the_certain():
    logits = torch.zeros(3, 4)
    logits[:, 0] = torch.tensor([30.0, 40.0, 50.0])
    score = find("scores", "gen")()
    ours = score(Outputs(logits, logits))
    assert ours[0] > 1.5 * ours[1] > 2 * ours[2] > 0
    p = torch.exp(-torch.tensor([30.0, 40.0, 50.0], dtype=torch.float64))
    close(ours, (3 * p) ** 0.1 + 3 * p**0.1, 1e-5)


def test_she(parts, classifier):
    theirs = po.SHE(nn.Identity(), classifier.head).fit_features(parts[0].features, parts[0].labels)
    close(fitted("she", parts, classifier)(parts[3]), theirs.predict_features(parts[3].features), 1e-5)


def test_klm(parts, classifier):
    theirs = po.KLMatching(nn.Identity()).fit_logits(parts[1].logits)
    for x in parts[2:]:
        close(fitted("klm", parts, classifier)(x), theirs.predict_logits(x.logits), 2e-6)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_react(parts, classifier, p):
    theirs = po.ReAct(nn.Identity(), on_map(classifier.head), percentile=p)
    theirs.fit_feature_maps(as_map(parts[1].features), parts[1].labels)
    ours = fitted("react", parts, classifier, p=p)
    assert ours.c_ == pytest.approx(theirs.threshold, rel=1e-6)
    close(ours(parts[3]), theirs.predict_feature_maps(as_map(parts[3].features)), 2e-6)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_dice(parts, classifier, p):
    theirs = po.DICE(None, classifier.head.weight, classifier.head.bias, p).fit_features(
        parts[0].features, parts[0].labels
    )
    ours = fitted("dice", parts, classifier, p=p)
    assert (ours.weight_ == 0).double().mean().item() == pytest.approx(p, abs=0.01)
    close(ours(parts[3]), theirs.predict_features(parts[3].features), 2e-6)


def test_dice_is_a_matrix_product():
    """pytorch-ood makes B x K x D numbers, half a gigabyte for 64 x 1000 x 2048; here nothing is larger than its factors."""
    w, b, z = torch.randn(500, 1024), torch.zeros(500), torch.rand(64, 1024)
    theirs, ours = po.DICE(None, w, b, 0.9).fit_features(z, torch.zeros(64)), dice.Score()
    ours.weight_, ours.bias_ = theirs.masked_w, b
    x, sizes = Outputs(torch.zeros(64, 500), z), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        found = ours(x)
    assert max(sizes) <= w.numel()
    close(found, theirs.predict_features(z), 1e-4)


@pytest.mark.parametrize("p", [0.65, 0.9])
@pytest.mark.parametrize("name", ["ash-b", "ash-p", "ash-s", "scale"])
def test_ash_and_scale(parts, classifier, name, p):
    base, _, variant = name.partition("-")
    head = on_map(classifier.head)
    if variant:
        theirs = po.ASH(nn.Identity(), head, variant=name, percentile=p)
        ours = fitted(base, parts, classifier, variant=variant, p=p)
    else:
        theirs, ours = po.SCALE(nn.Identity(), head, percentile=p), fitted(base, parts, classifier, p=p)
    close(ours(parts[3]), theirs.predict_feature_maps(as_map(parts[3].features)), 5e-6)


@pytest.mark.parametrize("d", [4, 12, 23])
def test_vim(parts, classifier, d):
    w, b = classifier.head.weight, classifier.head.bias
    theirs = po.ViM(None, d, w, b).fit_features(parts[0].features, parts[0].labels)
    ours = fitted("vim", parts, classifier, d=d)
    assert ours.alpha_ == pytest.approx(theirs.alpha, rel=1e-4)
    u = -np.linalg.pinv(w.double().numpy()) @ b.double().numpy()
    train, z = (p.features.double().numpy() - u for p in (parts[0], parts[3]))
    rest = np.linalg.eigh(train.T @ train)[1][:, : D - d]
    alpha = parts[0].logits.double().amax(-1).mean().item() / np.linalg.norm(train @ rest, axis=-1).mean()
    x = parts[3]
    want = alpha * torch.from_numpy(np.linalg.norm(z @ rest, axis=-1)) - x.logits.logsumexp(-1)
    close(ours(x), want, 1e-6)
    torch.testing.assert_close(ours(x).float(), theirs.predict_features(x.features), atol=2e-3, rtol=9e-5)  # float32
    assert d != 12 or torch.equal(ours(x), fitted("vim", parts, classifier)(x))  # the default is D / 2


def test_gradnorm(parts, classifier):
    head, x = nn.Linear(D, K), parts[3]
    head.load_state_dict(classifier.head.state_dict())
    want = []
    for z in x.features:
        (grad,) = torch.autograd.grad(-F.log_softmax(head(z), -1).mean(), head.weight)  # to the uniform distribution
        want.append(-grad.abs().sum())
    ours = fitted("gradnorm", parts, classifier)(x)
    close(ours, torch.stack(want), 1e-5)
    close(ours, po.GradNorm(head, param_filter=lambda n: n == "weight").predict(x.features), 1e-5)


def test_odin_equals_pytorch_ood_on_normalised_images(classifier):
    """One step in [0, 1] is a step of eps / std in the normalised images of the published code."""
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for settings in ({}, {"eps": 0.02, "temperature": 1.0}):
        score = find("scores", "odin")(**settings)
        theirs = po.ODIN(classifier.net, norm_std=list(STD), **settings)
        close(seen(score, classifier, images), theirs.predict(classifier.preprocess(images)), 1e-6)
    plain = seen(find("scores", "odin")(eps=0.0, temperature=1.0), classifier, images)
    close(plain, -classifier(images).logits.softmax(-1).amax(-1), 1e-6)
    assert (seen(score, classifier, images) < plain).all()  # nudged towards its class, every image is surer


# --- RankFeat ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="resnet")
def _resnet():
    torch.manual_seed(0)
    return Classifier(small_resnet("resnet_tiny", 4), classes=list("abcd"), size=(16, 16)).frozen()


def test_rankfeat(resnet):
    images, net = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(2)), resnet.net
    theirs = po.RankFeat(lambda x: net.stages(net.stem(x)).contiguous(), lambda x: net.fc(net.pool(x).flatten(1)))
    ours = find("scores", "rankfeat")()
    assert rankfeat.last_map(resnet, images) == "stages"
    close(seen(ours, resnet, images), theirs.predict(resnet.preprocess(images)), 2e-6)


def test_rankfeat_of_two_blocks_averages_logits(resnet):
    """OpenOOD's fusion, written out with a singular value decomposition."""
    images, net = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2)), resnet.net

    def less(x):
        u, s, v = torch.linalg.svd(x.flatten(2), full_matrices=False)
        return (x.flatten(2) - s[:, :1, None] * u[:, :, :1] @ v[:, :1]).view_as(x)

    block2 = net.stages[:2](net.stem(resnet.preprocess(images)))
    heads = [net.fc(net.pool(x).flatten(1)) for x in (less(net.stages[2](block2)), net.stages[2](less(block2)))]
    score = find("scores", "rankfeat")(layers="stages,stages.1")
    close(seen(score, resnet, images), -((heads[0] + heads[1]) / 2).logsumexp(-1), 2e-6)


# --- any of pytorch-ood's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detector", "options", "ours"),
    [
        ("KNN", {"k": 5}, ("knn", {"k": 5})),
        ("SHE", {}, ("she", {})),
        ("ViM", {"d": 12}, ("vim", {})),
        ("ASH", {"variant": "ash-s", "percentile": 0.9}, ("ash", {"variant": "s"})),
        ("SCALE", {"percentile": 0.85}, ("scale", {})),
        ("MaxLogit", {}, ("maxlogit", {})),
        ("KLMatching", {}, ("klm", {})),
    ],
)
def test_pytorch_ood_by_name(parts, classifier, detector, options, ours):
    score = fitted(
        "pytorch_ood",
        parts,
        classifier,
        detector=detector,
        options=options,
        fit_on="val" if detector == "KLMatching" else "train",
    )
    close(fitted(ours[0], parts, classifier, **ours[1])(parts[3]), score(parts[3]), 1e-3)


@pytest.mark.parametrize("detector", ["ODIN", "GradNorm"])
def test_pytorch_ood_s_gradients_are_taken_in_the_same_pass(classifier, detector):
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    score, odin = find("scores", "pytorch_ood")(detector), find("scores", "odin")()
    seen = collect(classifier, images, batch_size=4, observers=[score, odin])
    assert score(seen).isfinite().all()
    if detector == "ODIN":
        close(score(seen), odin(seen), 1e-6)
