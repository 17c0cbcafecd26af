"""Every score that is found, on inputs at the edge: degenerate, extreme, too few; alone or in a batch; from a file."""

import pytest
import torch
from pytorch_ood import detector as po
from torch import nn

from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.scored import fit_score
from outskirts.types import Observer, Outputs
from texts import without_texts

NAMES = without_texts()
SETTINGS = {"knn": {"k": 3}, "unified": {"k": 3}}
MADE = {name: find("scores", name)(**SETTINGS.get(name, {})) for name in NAMES}
READ_IMAGES = [name for name, score in MADE.items() if isinstance(score, Observer)]


def classifier_of(k=4, d=6):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, d, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, k))
    return Classifier(net, classes=[str(c) for c in range(k)], size=(8, 8)).frozen()


def outputs(classifier, n, *, seed=0, features=None, by=1.0):
    g = torch.Generator().manual_seed(seed)
    labels, size = torch.arange(n) % classifier.num_classes, classifier.feature_dim
    z = by * (torch.randn(n, size, generator=g) + 2 * classifier.head.weight[labels]).relu()
    z = z if features is None else torch.full((n, size), features)
    noted = {MADE[name].observes: torch.randn(n, generator=g) for name in READ_IMAGES}
    return Outputs(classifier.head(z), z, labels, noted)


def finite_or_told(name, train, val, test, classifier, outliers=None):
    """Every score is finite, or one line says why not: it is returned."""
    try:
        score = find("scores", name)(**SETTINGS.get(name, {}))
        score = fit_score(score, train, val=val, outliers=outliers or val[:20], classifier=classifier)
        found = score(test)
    except OutskirtsError as e:
        assert "\n" not in str(e)  # noqa: PT017 -- either outcome is right
        return str(e)
    assert found.shape == (len(test),)
    assert found.isfinite().all()
    return ""


@pytest.mark.parametrize("name", NAMES)
class TestEdges:
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_constant_features(self, name, value):
        c = classifier_of()
        train, val, test = (outputs(c, n, features=value) for n in (60, 40, 30))
        told = finite_or_told(name, train, val, test, c)
        assert not told or name in ("unified", "vim")  # no range of energies, no residual
        # the features of the test set may still vary
        finite_or_told(name, train, val, outputs(c, 30, seed=3), c)

    def test_two_classes(self, name):
        c = classifier_of(k=2)
        assert not finite_or_told(name, *(outputs(c, n, seed=n) for n in (60, 40, 30)), c)

    def test_a_class_without_training_images(self, name):
        c = classifier_of()
        train, val, test = (outputs(c, n, seed=n) for n in (80, 40, 30))
        left = train.labels != 1
        assert not finite_or_told(name, train[left], val[val.labels != 1], test, c)

    def test_one_image_of_each_class(self, name):
        c = classifier_of()
        train, val, test = (outputs(c, n, seed=n) for n in (4, 40, 30))
        told = finite_or_told(name, train, val, test, c)
        assert not told or name in ("vim", "knn", "unified")

    @pytest.mark.parametrize("n", [12, 63, 65])
    def test_more_features_than_images(self, name, n):
        c = classifier_of(d=64)
        train, val, test = (outputs(c, m, seed=m) for m in (n, 40, 30))
        told = finite_or_told(name, train, val, test, c)
        assert not told or (name == "vim" and n == 12)  # 32 directions hold 12 images

    @pytest.mark.parametrize("by", [1e-12, 1e4])
    def test_tiny_and_huge_features(self, name, by):
        c = classifier_of()
        train, val, test = (outputs(c, n, seed=n, by=by) for n in (60, 40, 30))
        told = finite_or_told(name, train, val, test, c)
        assert not told or (by < 1 and name in ("unified", "vim"))  # nothing varies: no range of energies, no residual

    def test_labels_of_nothing_known(self, name):
        c = classifier_of()
        train, val, test = (outputs(c, n, seed=n) for n in (60, 40, 30))
        unknown = Outputs(train.logits, train.features, torch.full((60,), -1))
        told = finite_or_told(name, unknown, val, test, c)
        if name in ("mahalanobis", "rmd", "she", "openmax"):
            assert "-1 to -1" in told

    def test_rows_of_label_minus_one_are_left_out(self, name):
        """Fitted without rows that are not ID, as if they were not there, where labels are read at all."""
        c = classifier_of()
        train, test = (outputs(c, n, seed=n) for n in (60, 30))
        if name in ("mahalanobis", "rmd", "she", "openmax"):
            mixed = Outputs.cat([train, Outputs(7 + test.logits, 7 + test.features, torch.full((30,), -1))])
            a, b = (fit_score(find("scores", name)(), part)(test) for part in (train, mixed))
            torch.testing.assert_close(a, b)

    def test_half_precision_is_not_scored_in_half_precision(self, name):
        c = classifier_of()
        train, val, test = (outputs(c, n, seed=n) for n in (60, 40, 30))
        score = find("scores", name)(**SETTINGS.get(name, {}))
        score = fit_score(score, train, val=val, outliers=val[:20], classifier=c)
        found = score(test.to(torch.bfloat16))
        assert found.dtype in (torch.float32, torch.float64) or name in [*READ_IMAGES, "pytorch_ood"]
        assert found.isfinite().all()


@pytest.fixture(scope="module", name="resnet")
def _resnet():
    torch.manual_seed(0)
    net = small_resnet("resnet_tiny", 4)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):  # as if trained: a batch norm that does something
            m.running_mean.uniform_(-0.2, 0.2), m.running_var.uniform_(0.5, 1.5)
    return Classifier(net, classes=list("abcd"), size=(12, 12), source="resnet_tiny").frozen()


def images_of(n, seed):
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def labelled(found):
    return Outputs(found.logits, found.features, torch.arange(len(found)) % 4, found.observed)


def test_an_image_scores_the_same_in_every_batch(resnet):
    """From pixels: what reads the images, gradients and maps too."""
    train, val = (labelled(collect(resnet, images_of(n, n), observers=MADE.values())) for n in (80, 60))
    scores = {
        name: fit_score(
            find("scores", name)(**SETTINGS.get(name, {})), train, val=val, outliers=val[:30], classifier=resnet
        )
        for name in NAMES
    }
    test = images_of(12, 0)
    whole = collect(resnet, test, observers=scores.values())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for images, back in ((test, slice(None)), (test[order], order.argsort())):
        for size in (1, 5):
            part = collect(resnet, images, batch_size=size, observers=scores.values())
            for name, score in scores.items():
                torch.testing.assert_close(score(part)[back], score(whole), atol=2e-5, rtol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ash", {"variant": "s", "p": 0.5}),
        ("rankfeat", {"layers": "stages,stages.1"}),
        ("odin", {"eps": 0.01, "temperature": 10.0}),
        ("mahalanobis", {"shrinkage": 0.2}),
        *(("pytorch_ood", {"detector": d}) for d in ("KNN", "SHE", "ReAct", "OpenMax", "ODIN", "fDBD", "NNGuide")),
        ("pytorch_ood", {"detector": "ViM", "options": {"d": 16}}),
        ("pytorch_ood", {"detector": "KLMatching", "fit_on": "val"}),
    ],
)
def test_settings_and_state_survive_a_folder(resnet, name, settings, tmp_path):
    score = find("scores", name)(**settings)
    sets = (images_of(n, n) for n in (80, 40, 20))
    train, val, held_out = (labelled(collect(resnet, images, observers=[score])) for images in sets)
    if settings.get("detector") == "SHE":  # it wants a correct image of each class
        train = Outputs(nn.functional.one_hot(train.labels, 4).float(), resnet.head.weight[train.labels], train.labels)
    fit_score(score, train, val=val, classifier=resnet)
    detector, test = Detector.from_parts(resnet, score, score(held_out)), images_of(9, 6)
    detector.save(tmp_path / "d")
    again = Detector.load(tmp_path / "d")
    assert type(again.scorer) is type(score)
    assert {k: getattr(again.scorer, k) for k in settings} == settings
    torch.testing.assert_close(again.score(test), detector.score(test), atol=0, rtol=0)


def test_what_a_network_lacks_is_told(resnet):
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), classes=list("abcd"), size=(4, 4))
    with pytest.raises(OutskirtsError, match=r"needs a map .* name a module with layers="):
        collect(flat, torch.rand(2, 3, 4, 4), observers=[find("scores", "rankfeat")()])
    with pytest.raises(OutskirtsError, match="no layer 'layer9'"):
        collect(resnet, images_of(2, 0), observers=[find("scores", "rankfeat")(layers="layer9")])
    with pytest.raises(OutskirtsError, match="'fc' gives no map"):
        collect(resnet, images_of(2, 0), observers=[find("scores", "rankfeat")(layers="fc")])
    found = labelled(collect(resnet, images_of(40, 0)))
    for name in ("react", "dice", "ash", "scale", "vim"):
        with pytest.raises(OutskirtsError, match="no classifier was given"):
            fit_score(find("scores", name)(), found, val=found)
    for name in ("react", "klm", "temperature"):
        with pytest.raises(OutskirtsError, match="val=Outputs"):
            fit_score(find("scores", name)(), found, classifier=resnet)
    with pytest.raises(OutskirtsError, match="labels of val"):
        fit_score(find("scores", "temperature")(), found, val=Outputs(found.logits, found.features))
    for name in READ_IMAGES:
        with pytest.raises(OutskirtsError, match="observers="):
            find("scores", name)()(found)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        *((name, {"p": 90}, "a share") for name in ("react", "dice", "ash", "scale")),
        ("mahalanobis", {"shrinkage": 1.5}, "a share"),
        ("ash", {"variant": "x"}, "b, p, s"),
        ("gen", {"gamma": 0.0}, "above 0"),
        ("openmax", {"tail": 0}, "at least 1"),
        ("pytorch_ood", {"detector": "OpenMaxx"}, "did you mean 'OpenMax'"),
        ("pytorch_ood", {"detector": "MaxLogit", "fit_on": "test"}, "train, val"),
    ],
)
def test_bad_settings(name, settings, told):
    with pytest.raises(OutskirtsError, match=told) as e:
        find("scores", name)(**settings)
    assert "\n" not in str(e.value)


def test_mcd_draws_its_dropout_in_the_same_pass_and_leaves_the_network_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    c, images = Classifier(net, classes=list("abcd"), size=(8, 8)).frozen(), images_of(6, 1)
    score = find("scores", "pytorch_ood")("MCD", {"samples": 4})
    seen = collect(c, images, observers=[score])
    assert not any(m.training for m in c.modules())
    torch.manual_seed(0)
    torch.testing.assert_close(score(seen), po.MCD(net, samples=4).predict(c.preprocess(images)))
    torch.testing.assert_close(score(collect(c, images, observers=[score])), score(seen), atol=0, rtol=0)
    assert score(seen).min() > 0


def test_what_fails_while_images_are_looked_at_is_told_when_the_score_is_fitted(resnet):
    score = find("scores", "pytorch_ood")("ODIN", {"epsilon": 0.1})
    seen = labelled(collect(resnet, images_of(8, 0), observers=[score]))
    for use in (lambda: fit_score(score, seen, classifier=resnet), lambda: score(seen)):
        with pytest.raises(OutskirtsError, match=r"pytorch-ood's ODIN: TypeError: .*epsilon"):
            use()


def test_pytorch_ood_s_own_errors_are_one_line(resnet):
    found = labelled(collect(resnet, images_of(40, 0)))
    for detector, options, said in (("MaxLogit", {"k": 3}, "TypeError"), ("Mahalanobis", {}, "AssertionError")):
        wrong = Outputs(found.logits, found.features, found.labels + 1)
        with pytest.raises(OutskirtsError, match=f"pytorch-ood's {detector}: {said}") as e:
            fit_score(find("scores", "pytorch_ood")(detector, options), wrong)
        assert "\n" not in str(e.value)
