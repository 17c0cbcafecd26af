"""Scores that read images, gradients or maps look in the one pass that all scores share."""

import pytest
import torch
from torch import nn

from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.nets import small_resnet

IMAGES = torch.rand(10, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def resnet():
    torch.manual_seed(0)
    return Classifier(small_resnet("resnet_tiny", 4), classes="abcd", size=(12, 12))


def counting(classifier):
    """How many images pass through the network, a list that grows."""
    passed = []
    classifier.net.register_forward_pre_hook(lambda _m, inputs: passed.append(len(inputs[0])))
    return passed


@pytest.mark.parametrize(
    ("observers", "passes"),
    [
        ([("rankfeat", {})], 1),
        ([("rankfeat", {"layers": "stages"}), ("rankfeat", {})], 1),
        ([("rankfeat", {"layers": "stages,stages.1"})], 2),
        ([("odin", {})], 2),
        ([("odin", {}), ("odin", {"eps": 0.01, "temperature": 10.0})], 3),
        ([("rankfeat", {}), ("odin", {}), ("odin", {})], 2),
    ],
)
def test_passes_are_shared(observers, passes):
    c = resnet()
    scores = [find("scores", name)(**settings) for name, settings in observers]
    collect(c, IMAGES[:1], observers=scores)  # where RankFeat's layer is found
    passed = counting(c)
    found = collect(c, IMAGES, batch_size=4, observers=scores)
    assert sum(passed) == passes * len(IMAGES)
    for score in scores:
        torch.testing.assert_close(score(found), score(collect(c, IMAGES, observers=[score])), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("ambient", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_outputs_are_the_same_with_a_graph_and_without(ambient):
    c = resnet().train()
    for p in c.net.stem.parameters():
        p.requires_grad = False
    scores = [find("scores", name)() for name in ("odin", "rankfeat")]
    with ambient():
        plain, seen = collect(c, IMAGES), collect(c, IMAGES.clone(), observers=scores)
    for a, b in ((plain.logits, seen.logits), (plain.features, seen.features)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    if ambient is not torch.inference_mode:
        assert not any(x.is_inference() for x in (seen.logits, seen.features, *seen.observed.values()))
    assert not any(x.requires_grad for x in (seen.logits, seen.features, *seen.observed.values()))
    assert c.training
    assert {p.requires_grad for p in c.net.stem.parameters()} == {False}
    assert {p.requires_grad for p in c.net.stages.parameters()} == {True}
    assert all(p.grad is None for p in c.parameters())


class Noting:
    """Notes what it is shown."""

    differentiable = transductive = False

    def __init__(self, name, **wishes):
        self.observes, self.shown = name, []
        vars(self).update(wishes)

    def observe(self, look):
        self.shown.append(look)
        return look.images.detach().flatten(1).sum(1)


def test_each_sees_what_it_asks_for():
    c, plain, slope = resnet().frozen(), Noting("plain"), Noting("slope", gradient=True)
    watcher = Noting("watcher", watches=lambda classifier, images: ["stages.1", "fc"])
    collect(c, IMAGES, batch_size=6, observers=[plain, slope, watcher])
    assert [len(look.images) for look in plain.shown] == [6, 4]
    assert not plain.shown[0].outputs.logits.requires_grad
    look = slope.shown[0]
    (gradient,) = torch.autograd.grad(look.outputs.logits.sum(), look.images)
    assert gradient.abs().sum() > 0
    maps = watcher.shown[0].maps
    torch.testing.assert_close(maps["fc"], watcher.shown[0].outputs.logits)
    torch.testing.assert_close(maps["stages.1"], c.net.stages[:2](c.net.stem(IMAGES[:6])))
    for names, said in ((["stagez"], "no layer 'stagez', did you mean 'stages'; the last"), (["two"], "gives a tuple")):
        c.net.add_module("two", nn.Identity())
        c.net.stem.register_forward_hook(lambda *_: (c.net.two((1, 2)), None)[1])
        with pytest.raises(OutskirtsError, match=said):
            collect(c, IMAGES, observers=[Noting("other", watches=lambda *_, names=names: names)])


class Net(nn.Module):
    """A map, `end`, and the head, `fc`."""

    def __init__(self, end, c=6):
        super().__init__()
        self.conv, self.fc, self.end = nn.Conv2d(3, c, 3), nn.Linear(c, 4), end

    def forward(self, x):
        return self.fc(self.end(self.conv(x)))


TAILS = {
    "mean": lambda y: y.mean((2, 3)),
    "relu in place": lambda y: y.relu_().mean((2, 3)),
    "largest": lambda y: y.amax((2, 3)),
    "norm after the mean": lambda y: nn.functional.layer_norm(y.mean((2, 3)), (6,)),
    "gated": lambda y: (y * y.sigmoid()).mean((2, 3)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("width", [1, 12])
def test_rankfeat_takes_the_shared_map_only_where_the_mean_and_the_head_follow(tail, width):
    """Written out with a singular value decomposition, of maps with more channels than places and with fewer."""
    torch.manual_seed(1)
    images = torch.rand(7, 3, 4, 4) if width == 1 else IMAGES[:7]

    class End(nn.Module):
        def forward(self, y):
            return TAILS[tail](y)

    c, score = Classifier(Net(End()), classes="abcd", size=None), find("scores", "rankfeat")()
    collect(c, images[:1], observers=[score])
    passed = counting(c)
    found = score(collect(c, images, observers=[score]))
    assert sum(passed) == (7 if tail == "mean" else 14)
    x = c.net.conv(images).detach()
    u, s, v = torch.linalg.svd(x.flatten(2), full_matrices=False)
    less = (x.flatten(2) - s[:, :1, None] * u[:, :, :1] @ v[:, :1]).view_as(x)
    want = -c.net.fc(TAILS[tail](less)).logsumexp(-1).detach()
    torch.testing.assert_close(found, want, atol=2e-5, rtol=2e-5)
