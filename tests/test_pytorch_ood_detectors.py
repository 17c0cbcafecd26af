"""Every detector of pytorch-ood as the score `pytorch_ood`, against the detector itself, called as its documentation says."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_ood import detector as po
from pytorch_ood.api import Detector as Theirs
from pytorch_ood.api import FeatureMapsDetector
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.images import Images
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.pytorch_ood_adaptor import ScoreDetector
from outskirts.scored import fit_score
from outskirts.sklearn_adaptor import OutlierDetector
from outskirts.types import Observer, Prepared

THEIRS = sorted(n for n, c in vars(po).items() if isinstance(c, type) and issubclass(c, Theirs))
STD = (0.2, 0.25, 0.3)
LAYERS = ["stages.0", "stages.1", "stages.2"]
OPTIONS = {
    "DICE": {"p": 0.5},
    "ViM": {"d": 16},
    "WeightedEBO": {"weights": [1.0, 0.5, 1.0, 2.0]},
    "MCM": {"text_embeddings": torch.eye(64)[:4].tolist()},
    "Gram": {"feature_layers": ["stem", *LAYERS]},
    "MultiMahalanobis": {"model": ["stem", *LAYERS], "alpha": [0.1, 0.2, 0.3, 0.4]},
    "NACUE": {"layers": LAYERS, "m_bins": 20},
    "RankFeat": {"backbone": "stages"},
}
"""Arguments without a default."""
LAYERED = ("Gram", "MultiMahalanobis", "NACUE", "RankFeat")
LEARNED = ("Gram", "MahalanobisODIN", "MultiMahalanobis", "NACUE")


def images_of(n, seed):
    pixels = torch.randint(0, 256, (n, 3, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Images("noise", list("abcd"), torch.zeros(n).long(), pixels)


@pytest.fixture(scope="module", name="resnet")
def _resnet():
    """Its batch norms do something, and it says each class of some images."""
    torch.manual_seed(0)
    net = small_resnet("resnet_tiny", 4)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2), m.running_var.uniform_(0.5, 1.5)
    made = Classifier(net, classes="abcd", size=(12, 12), mean=(0.4, 0.5, 0.6), std=STD, source="resnet_tiny").frozen()
    z = collect(made, images_of(80, 0)).features
    made.head.weight.data.normal_().mul_(3)
    made.head.bias.data = -made.head.weight @ z.mean(0)
    return made


@pytest.fixture(scope="module", name="train")
def _train(resnet):
    """80 images with the classes that the network says: SHE wants a correct image of each."""
    images = images_of(80, 0)
    images.labels[:] = collect(resnet, images).logits.argmax(1)
    assert images.labels.bincount(minlength=4).min() >= 10  # Gram holds a tenth of a class out
    return images


TEST = torch.rand(9, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def fit(score, classifier, train):
    """As a bench does."""
    if isinstance(score, Prepared):
        score.prepare(classifier, train, train.labels)
    outputs = collect(classifier, train.take(9) if isinstance(score, Observer) else train, observers=[score])
    return fit_score(score, outputs, val=outputs, classifier=classifier)


def says(score, classifier, images=TEST):
    return score(collect(classifier, images, observers=[score]))


def themselves(name, classifier, train):
    """The detector of `classifier`'s network in parts, as it is made and fitted without us."""
    cls, options = getattr(po, name), {k: v for k, v in OPTIONS.get(name, {}).items() if k not in ("feature_layers",)}
    net = copy.deepcopy(classifier.net).requires_grad_(name == "NACUE")  # it wants the gradients of layers
    rows, weight = nn.Sequential(net.pool, nn.Flatten()), net.fc.weight.detach()
    maps = issubclass(cls, FeatureMapsDetector)
    parts = {
        "model": net,
        "encoder": lambda x: rows(net.stages(net.stem(x))),
        "backbone": lambda x: net.pool(net.stages(net.stem(x))),
        "head": nn.Sequential(nn.Flatten(), net.fc) if maps else net.fc,
        "w": weight,
        "b": net.fc.bias.detach(),
        "norm_std": list(STD),
    }
    options = {k: torch.tensor(v) if k in ("weights", "text_embeddings") else v for k, v in options.items()}
    blocks = [net.stem, *net.stages]
    special = {
        "Gram": {"head": nn.Sequential(rows, net.fc), "feature_layers": blocks, "num_classes": 4},
        "MultiMahalanobis": {"model": blocks},
        "NACUE": {"layers": blocks[1:]},
        "RankFeat": {"backbone": lambda x: net.stages(net.stem(x)).contiguous(), "head": nn.Sequential(rows, net.fc)},
    }
    given = {**parts, **options, **special.get(name, {})}
    made = cls(**{k: v for k, v in given.items() if k in inspect.signature(cls).parameters})
    torch.manual_seed(0)  # Gram's split, and MCD's dropout
    pixels = classifier.preprocess(train.pixels / 255)
    return made.fit([(pixels, train.labels)])  # a DataLoader would draw from the same generator


@pytest.mark.parametrize("name", THEIRS)
def test_every_detector_says_what_it_says_itself(resnet, train, name):
    """A detector that a later pytorch-ood adds fails here unless it is supported."""
    score = find("scores", "pytorch_ood")(name, OPTIONS.get(name, {}))
    ours = says(fit(score, resnet, train), resnet)
    with torch.set_grad_enabled(name in ("NACUE", "GradNorm", "GradUncertainty", "MahalanobisODIN", "ODIN")):
        theirs = themselves(name, resnet, train)
        torch.manual_seed(0)
        want = theirs.predict(resnet.preprocess(TEST)).detach()
    assert ours.isfinite().all()
    assert len(ours.unique()) > 1 or name == "MCD"  # no dropout here
    scale = want.abs().max().item()
    torch.testing.assert_close(ours.double(), want.double(), atol=2e-4 * scale, rtol=2e-4)
    assert f"`{name}`" in (Path(__file__).parents[1] / "docs/interop.md").read_text(encoding="utf-8")


def test_all_35_are_there():
    assert len(THEIRS) == 35, "docs/interop.md and the README say how many there are"


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_without_default_is_asked_for_by_name(resnet, train, name):
    option = next(iter(OPTIONS[name]))
    with pytest.raises(OutskirtsError, match=rf"needs the option '{option}'; give options=.*{option}") as e:
        fit(find("scores", "pytorch_ood")(name), resnet, train)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize(
    ("names", "said"),
    [(["layer4"], r"no layer 'layer4'.*; the last ones .* pool, fc"), (7, r"=7 .* give names"), ([], "give names")],
)
def test_a_layer_that_is_not_there_is_told(resnet, train, name, names, said):
    option = next(iter(OPTIONS[name]))
    with pytest.raises(OutskirtsError, match=said) as e:
        fit(find("scores", "pytorch_ood")(name, {option: names}), resnet, train)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", [*LEARNED, "RankFeat"])
def test_what_was_learned_of_images_survives_a_folder(resnet, train, name, tmp_path):
    score = find("scores", "pytorch_ood")(name, OPTIONS.get(name, {}))
    detector = Detector.fit(resnet, score, train, images_of(40, 1))
    detector.save(tmp_path / "d")
    again = Detector.load(tmp_path / "d")
    torch.testing.assert_close(again.score(TEST), detector.score(TEST), atol=0, rtol=0)


def test_in_other_libraries_they_see_the_training_images_too(resnet, train):
    ours = says(fit(find("scores", "pytorch_ood")("MahalanobisODIN"), resnet, train), resnet)
    loader = DataLoader(TensorDataset(train.pixels / 255, train.labels), batch_size=30)
    there = ScoreDetector(resnet, find("scores", "pytorch_ood")("MahalanobisODIN")).fit(loader)
    torch.testing.assert_close(there(TEST), ours, atol=1e-5, rtol=1e-4)
    estimator = OutlierDetector(resnet, find("scores", "pytorch_ood")("MahalanobisODIN"), keep=0.8)
    for labels in (train.labels.numpy(), None):  # without, those that the classifier says: here the same
        found = estimator.fit(train.pixels.numpy(), labels=labels).score_samples(TEST.numpy())
        rows = estimator._rows(len(train))[0]
        part = fit(find("scores", "pytorch_ood")("MahalanobisODIN"), resnet, train.subset(rows))
        torch.testing.assert_close(-torch.from_numpy(found).float(), says(part, resnet), atol=1e-5, rtol=1e-4)


def test_what_must_learn_of_images_says_so(resnet, train):
    score = find("scores", "pytorch_ood")("MahalanobisODIN")
    outputs = collect(resnet, train, observers=[score])
    with pytest.raises(OutskirtsError, match=r"call prepare\(classifier, images, labels\) before collect"):
        fit_score(score, outputs)
    with pytest.raises(OutskirtsError, match="fitted on the training images; leave fit_on"):
        find("scores", "pytorch_ood")("Gram", fit_on="val")


class Branched(nn.Module):
    """No sequence of modules: functions between them, one of which writes into what it gets, and a way around."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        y = self.a(x)
        return self.fc((F.relu(self.b(F.max_pool2d(y, 2)), inplace=True) + y[..., ::2, ::2]).mean((2, 3)))


def test_layers_are_those_of_any_network():
    torch.manual_seed(0)
    net, images = Branched(), torch.rand(40, 3, 12, 12)
    c, y = Classifier(net, classes="abcd", size=(12, 12)).frozen(), None

    def a(x):
        nonlocal y
        y = net.a(x)
        return y

    def head(z):
        return net.fc((z.relu() + y[..., ::2, ::2]).mean((2, 3)))

    labels = torch.arange(40) % 4
    torch.manual_seed(0)
    theirs = po.Gram(head, [a, lambda z: net.b(F.max_pool2d(z, 2))], 4).to("cpu").fit([(images, labels)])
    ours = find("scores", "pytorch_ood")("Gram", {"feature_layers": ["a", "b"]})
    ours.prepare(c, images, labels)
    torch.testing.assert_close(says(ours, c, images[:9]), theirs.predict(images[:9]), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        want = po.RankFeat(lambda x: net.b(F.max_pool2d(a(x), 2)), head).predict(images)
    cut = find("scores", "pytorch_ood")("RankFeat", {"backbone": "b"})
    torch.testing.assert_close(says(cut, c, images), want, atol=1e-5, rtol=1e-5)


def test_the_network_is_left_as_it_was(train):
    torch.manual_seed(0)
    c = Classifier(small_resnet("resnet_tiny", 4), classes="abcd", size=(12, 12)).train()
    for name in LEARNED:
        score = find("scores", "pytorch_ood")(name, OPTIONS.get(name, {}))
        score.prepare(c, train, torch.arange(80) % 4)
        assert says(score, c).isfinite().all()
    assert c.training
    assert all(p.requires_grad and p.grad is None for p in c.parameters())
    net = Branched()
    net.aside = nn.Conv2d(3, 2, 1)
    net.a.register_forward_pre_hook(lambda _m, x: (net.aside(x[0]), None)[1])  # leads nowhere
    failing = Classifier(net, classes="abcd", size=(12, 12))
    with pytest.raises(OutskirtsError, match="NACUE: RuntimeError: "):
        find("scores", "pytorch_ood")("NACUE", {"layers": ["b", "aside"]}).prepare(failing, train, train.labels)
    assert not any(m._forward_hooks for classifier in (c, failing) for m in classifier.modules())
