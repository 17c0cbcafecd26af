"""Our scores in pytorch-ood's own loops, beside its own detectors."""

from dataclasses import replace

import pytest
import torch
from pytorch_ood.api import RequiresFittingException
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import EnergyBased
from pytorch_ood.metrics import OODMetrics
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.find import find
from outskirts.metrics import ood_metrics
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.pytorch_ood_adaptor import ScoreDetector
from outskirts.scored import fit_score
from texts import without_texts

G = torch.Generator().manual_seed(0)
PIXELS = torch.rand(160, 3, 8, 8, generator=G)
LABELS = torch.arange(160) % 4
TRAIN = TensorDataset(PIXELS[:100], LABELS[:100])
TEST = TensorDataset(PIXELS[100:], LABELS[100:])
DARK, FLAT = (
    TensorDataset(x, torch.full((len(x),), -1))
    for x in (PIXELS[:50] / 3, PIXELS[:40].mean((2, 3), True) + 0 * PIXELS[:40])
)


@pytest.fixture(scope="module", name="classifier")
def _classifier():
    torch.manual_seed(0)
    return Classifier(small_resnet("resnet_tiny", 4), classes="abcd", size=(8, 8)).frozen()


class Logits(nn.Module):
    """What pytorch-ood's own detectors take: images -> logits."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x).logits


class Two(Benchmark):
    ood_names = ["dark", "flat"]  # noqa: RUF012

    def train_set(self):
        return TRAIN

    def test_sets(self, known=True, unknown=True):
        return [ConcatDataset([TEST, ood]) for ood in (DARK, FLAT)]


@pytest.mark.parametrize("name", [n for n in without_texts() if n != "pytorch_ood"])
def test_every_score_says_the_same_there_and_here(classifier, name):
    score = find("scores", name)
    train, val, beyond = (DataLoader(x, batch_size=33) for x in (TRAIN, TEST, DARK))
    detector = ScoreDetector(classifier, score()).fit(train, val=val, outliers=beyond)
    found = torch.cat([detector(x) for x, _ in DataLoader(FLAT, batch_size=7)])
    outputs = [collect(classifier, x.tensors[0], observers=[detector.score]) for x in (TRAIN, TEST, DARK, FLAT)]
    ours = fit_score(
        score(),
        replace(outputs[0], labels=TRAIN.tensors[1]),
        val=replace(outputs[1], labels=TEST.tensors[1]),
        outliers=outputs[2],
        classifier=classifier,
    )
    torch.testing.assert_close(found, ours(outputs[3]).detach(), atol=1e-4, rtol=1e-4)
    assert not found.requires_grad


def test_energy_is_theirs(classifier):
    theirs, ours = EnergyBased(Logits(classifier)), ScoreDetector(classifier, "energy")
    torch.testing.assert_close(ours(PIXELS), theirs(PIXELS).detach(), atol=1e-5, rtol=1e-5)
    assert not ours.requires_fit


def test_in_their_benchmark_and_metrics(classifier):
    knn = ScoreDetector(classifier, find("scores", "knn")(k=5)).fit(DataLoader(TRAIN, batch_size=64))
    detectors = [ScoreDetector(classifier, "energy"), EnergyBased(Logits(classifier)), knn]
    rows = Two().evaluate(detectors, loader_kwargs={"batch_size": 16}, device="cpu")
    assert [row["Dataset"] for row in rows] == ["dark"] * 3 + ["flat"] * 3
    for (ours, theirs, neighbours), ood in ((rows[:3], DARK), (rows[3:], FLAT)):
        for name in ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
        wanted = ood_metrics(knn(TEST.tensors[0]), knn(ood.tensors[0]))
        assert neighbours["AUROC"] == pytest.approx(
            wanted["auroc"], abs=1e-3
        )  # in other batches: a pair may change places
        assert neighbours["FPR95TPR"] == pytest.approx(wanted["fpr95_ood"], abs=0.02)
    metrics = OODMetrics()
    for x, y in DataLoader(ConcatDataset([TEST, DARK]), batch_size=16):
        metrics.update(knn(x), y)
    assert metrics.compute()["AUROC"] == pytest.approx(rows[2]["AUROC"], abs=1e-6)


def test_outliers_in_the_loader_are_left_out_of_the_fit(classifier):
    mixed = DataLoader(ConcatDataset([DARK, TRAIN, FLAT]), batch_size=25)  # some batches hold outliers alone
    one, other = (ScoreDetector(classifier, find("scores", "knn")(k=3)).fit(x) for x in (mixed, DataLoader(TRAIN, 25)))
    torch.testing.assert_close(one.score.bank_, other.score.bank_)
    with pytest.raises(OutskirtsError, match="no images with a label of 0 or more"):
        ScoreDetector(classifier, "knn").fit(DataLoader(DARK))


def test_what_does_not_work_is_told(classifier):
    with pytest.raises(RequiresFittingException):
        ScoreDetector(classifier, "knn")(PIXELS)
    with pytest.raises(OutskirtsError, match=r"images from -2\.1 to 2\.1; .* leave Normalize out"):
        ScoreDetector(classifier, "energy")(torch.linspace(-2.1, 2.1, 192).view(1, 3, 8, 8))
    with pytest.raises(OutskirtsError, match="whole test sets"):
        ScoreDetector(classifier, find("scores", "unified")(mode="transductive"))
