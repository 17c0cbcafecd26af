"""Exported detectors say what the detector says: ONNX Runtime and torch.export against ours, for every score."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from outskirts import data
from outskirts import export as exporting
from outskirts.cli import main
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.export import NOT_TRACED, OUTPUTS, Judge, export
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.types import Observer
from texts import without_texts

TRACED = [n for n in without_texts() if n not in NOT_TRACED and not isinstance(find("scores", n)(), Observer)]
REFUSED = [n for n in without_texts() if n not in TRACED]


def linear(seed=0, k=4, size=(6, 6), hidden=16):
    """The smallest classifier there is with features: it traces in no time."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], hidden), nn.ReLU(), nn.Linear(hidden, k))
    return Classifier(net, classes="abcd"[:k], size=size).frozen()


def fit(classifier, name, n=300, **settings):
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, *classifier.size), generator=g, dtype=torch.uint8)
    images = data.Images("noise", list(classifier.classes), torch.arange(n) % classifier.num_classes, pixels)
    train, val, held_out = data.split(images, (0.5, 0.2, 0.3))
    outliers = 0.2 * torch.rand(60, 3, *classifier.size, generator=g)
    return Detector.fit(classifier, find("scores", name)(**settings), train, held_out, val=val, outliers=outliers)


class Every(nn.Module):
    """The scores of many detectors in one graph, for time; what is made of a score is the same for each."""

    def __init__(self, detectors):
        super().__init__()
        self.judges = nn.ModuleList(Judge(d) for d in detectors)

    def forward(self, images):
        outputs = self.judges[0].classifier(images)
        return [judge.judged(outputs)["score"] for judge in self.judges]


@pytest.fixture(scope="module", name="traced")
def _traced():
    classifier = linear()
    detectors = {name: fit(classifier, name) for name in TRACED}
    detectors["unified, fixed"] = fit(classifier, "unified", mode="fixed", w=0.4)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    every = Every(detectors.values()).eval()
    return detectors, torch.export.export(every, (torch.rand(2, 3, 6, 6),), dynamic_shapes=shapes, strict=False)


def agree(found, detector, images):
    """`found` [B] by name against the detector, decisions against the threshold at the score that was found."""
    wanted, outputs = detector.verdicts(images), detector.classifier(images)
    for name, value in (("logits", outputs.logits), ("features", outputs.features), ("score", wanted.score)):
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert torch.equal(found["is_ood"], detector.threshold.is_ood(found["score"]))
    assert torch.equal(found["p_value"], detector.threshold.p_value(found["score"]))


def test_every_score_in_torch_export_and_onnx_runtime(traced, tmp_path):
    detectors, program = traced
    file = tmp_path / "every.onnx"
    torch.onnx.export(program, verbose=False, optimize=False, input_names=["images"]).save(file)  # optimized below
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for n in (1, 2, 7):
        images = torch.rand(n, 3, 6, 6)
        found = program.module()(images), map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        for (name, detector), here, there in zip(detectors.items(), *found, strict=True):
            for score in (here, there):
                torch.testing.assert_close(
                    score, detector.score(images), atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_with_its_resize_and_its_bank_from_a_file(suffix, tmp_path):
    """Images of another size, antialiased on the way, through convolutions and a kNN bank."""
    torch.manual_seed(0)
    net = small_resnet("resnet_tiny", 4)
    classifier = Classifier(net, classes="abcd", size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).frozen()
    detector = fit(classifier, "knn", k=5)
    bank = detector.scorer.bank_
    file = tmp_path / "deep" / f"detector{suffix}"
    differences = export(detector, file, size=(21, 30))
    assert set(differences) == set(OUTPUTS)
    assert max(differences.values()) < 1e-4
    assert [p.name for p in file.parent.iterdir()] == [file.name]  # one whole file, nothing beside it
    assert detector.scorer.bank_ is bank  # tracing leaves the detector as it was
    images = torch.rand(3, 3, 21, 30)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(file)
        found = {
            n: torch.from_numpy(x)
            for n, x in zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images.numpy()}), strict=True)
        }
        facts = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"outskirts.json": ""}
        found = torch.export.load(file, extra_files=extra).module()(images)
        facts = json.loads(extra["outskirts.json"])
    agree(found, detector, images)
    assert found["is_ood"].dtype == torch.bool
    assert json.loads(facts["classes"]) == list("abcd")
    assert float(facts["threshold"]) == detector.threshold.value
    assert facts["images"] == "float32 [batch, 3, 21, 30], RGB in [0, 1]"


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_images_is_refused(name, tmp_path):
    detector = fit(linear(), "energy")
    object.__setattr__(detector, "scorer", find("scores", name)())
    with pytest.raises(OutskirtsError, match=rf"{name} .* cannot be exported; .* e\.g\. energy") as e:
        export(detector, tmp_path / "x.onnx")
    assert "\n" not in str(e.value)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    detector = fit(linear(), "energy")
    with pytest.raises(OutskirtsError, match=r"'x\.bin'; accepted: a file that ends in \.onnx or \.pt2"):
        export(detector, tmp_path / "x.bin")

    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.mean() > 0 else super().forward(-x)

    net = Branching(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 4))
    branching = Detector(Classifier(net, classes="abcd", size=(6, 6)), detector.scorer, detector.threshold)
    with pytest.raises(OutskirtsError, match="score energy cannot be exported") as e:
        export(branching, tmp_path / "x.pt2")
    assert "\n" not in str(e.value)
    with pytest.raises(OutskirtsError, match=r"takes any size, .* give the size"):
        export(
            Detector(Classifier(_AnySize(), classes="ab", size=None), detector.scorer, detector.threshold),
            tmp_path / "x.pt2",
        )
    monkeypatch.setattr(exporting, "LARGEST_ONNX", 100)
    with pytest.raises(OutskirtsError, match=r"do not fit in one ONNX file"):
        export(detector, tmp_path / "x.onnx")
    monkeypatch.setattr(
        exporting, "_pt2", lambda *_: lambda images: {k: v + 1e-3 for k, v in Judge(detector)(images).items()}
    )
    with pytest.raises(OutskirtsError, match=r"other values than the detector: logits differs by 0\.001"):
        export(detector, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


class _AnySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def test_ties_with_calibration_scores_are_counted_as_the_threshold_does():
    """p_value and is_ood at scores equal to calibration scores, where a strict inequality would show."""
    detector = fit(linear(), "energy")
    judge = Judge(detector)
    exact = detector.threshold.scores
    judge.scorer = lambda outputs: exact  # the scores themselves
    found = judge(torch.rand(len(exact), 3, 6, 6))
    assert torch.equal(found["p_value"], detector.threshold.p_value(exact))
    assert torch.equal(found["is_ood"], detector.threshold.is_ood(exact))
    assert np.diff(found["is_ood"].numpy().astype(int)).sum() == 1


def test_the_verb(tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(small_resnet("resnet_tiny", 4), classes="abcd", size=(8, 8), source="resnet_tiny").frozen()
    fit(classifier, "msp").save(tmp_path / "d")
    result = CliRunner().invoke(main, ["export", str(tmp_path / "d"), str(tmp_path / "d.pt2"), "--size", "9", "12"])
    assert result.output.endswith("d.pt2: differs from the detector by 0 at most\n"), result.output
    assert torch.export.load(tmp_path / "d.pt2").module()(torch.rand(3, 3, 9, 12))["is_ood"].shape == (3,)
    result = CliRunner().invoke(main, ["export", str(tmp_path / "d"), str(tmp_path / "d.onx")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: cannot export to 'd.onx'; accepted: a file that ends in .onnx")
