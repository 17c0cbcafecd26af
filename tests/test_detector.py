"""The detector: the conformal promise, the round trip through a folder, and refusals."""

import dataclasses
import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from outskirts import data
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.scores import energy, unified
from outskirts.threshold import Threshold
from texts import without_texts

# --- threshold ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "keep", "rank"),
    [(19, 0.95, 19), (20, 0.95, 20), (39, 0.95, 38), (99, 0.95, 95), (199, 0.9, 180), (9, 0.9, 9)],
)
def test_conformal_rank(n, keep, rank):
    scores = torch.randperm(n).double() + 1
    assert Threshold.from_id(scores, keep).value == rank  # ceil((n + 1) * keep), exact in decimal


@pytest.mark.parametrize(("n", "keep", "needed"), [(18, 0.95, 19), (98, 0.99, 99), (0, 0.5, 1)])
def test_too_few_images_for_the_promise(n, keep, needed):
    with pytest.raises(OutskirtsError, match=f"{n} held-out ID scores .* at least {needed},"):
        Threshold.from_id(torch.rand(n), keep)
    Threshold.from_id(torch.rand(needed), keep)


@pytest.mark.parametrize("keep", [0.0, 1.0, 95.0])
def test_keep_is_a_share(keep):
    with pytest.raises(OutskirtsError, match=r"e\.g\. 0\.95"):
        Threshold.from_id(torch.rand(1000), keep)


def test_not_finite_scores_make_no_threshold():
    with pytest.raises(OutskirtsError, match="1 of 30"):
        Threshold.from_id(torch.cat([torch.rand(29), torch.tensor([float("nan")])]))


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.95])
def test_ood_exactly_where_the_p_value_says_so(keep):
    """Ties included: is_ood if and only if p <= 1 - keep, in exact fractions."""
    scores, new = torch.randint(0, 30, (57,)).double(), torch.arange(-2, 33).float() / 1
    threshold = Threshold.from_id(scores, keep)
    for s, is_ood, p in zip(new, threshold.is_ood(new), threshold.p_value(new), strict=True):
        exact = Fraction(1 + int((scores >= s).sum()), 58)
        assert p.item() == pytest.approx(float(exact))
        assert bool(is_ood) == (exact <= 1 - Fraction(str(keep)))


def test_coverage_is_as_promised():
    """Mean share of ID kept over many draws: at least keep, and at most 1 / (n + 1) above it."""
    g = torch.Generator().manual_seed(0)
    kept = [
        (~Threshold.from_id(torch.randn(29, generator=g), 0.9).is_ood(torch.randn(200, generator=g))).double().mean()
        for _ in range(800)
    ]
    assert 0.9 - 0.006 < torch.stack(kept).mean() < 0.9 + 1 / 30 + 0.006


# --- detector ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="parts")
def _parts():
    torch.manual_seed(0)
    images = data.load("digits").take(900)
    net = small_resnet("resnet_tiny", 10)
    classifier = Classifier(net, classes=images.classes, size=images.size, source="resnet_tiny").frozen()
    train, val, held_out, test = data.split(images, (0.55, 0.15, 0.15, 0.15), seed=0)
    outliers = torch.rand(100, 3, *images.size, generator=torch.Generator().manual_seed(0))
    return classifier, train, val, held_out, test, outliers


def fit(parts, name="energy", **settings):
    classifier, train, val, held_out, _, outliers = parts
    return Detector.fit(classifier, find("scores", name)(**settings), train, held_out, val=val, outliers=outliers)


@pytest.mark.parametrize("name", without_texts())
def test_any_score_survives_a_folder(parts, name, tmp_path):
    detector, test = fit(parts, name), parts[4]
    detector.save(tmp_path / "d")
    again = Detector.load(tmp_path / "d")
    assert dataclasses.asdict(again.scorer) == dataclasses.asdict(detector.scorer)
    before, after = detector.verdicts(test), again.verdicts(test)
    for field in dataclasses.fields(before):
        assert torch.equal(getattr(before, field.name), getattr(after, field.name)), field.name
    assert again.threshold.value == detector.threshold.value
    files = {p.name for p in (tmp_path / "d").rglob("*") if p.is_file()}
    assert all(f.endswith((".safetensors", ".json")) for f in files)  # no pickle


def test_what_it_says_of_images(parts):
    detector, test = fit(parts, "energy"), parts[4]
    found = detector.verdicts(test, batch_size=50)
    is_ood, p_value = detector.decide(test)
    assert torch.equal(is_ood, found.is_ood)
    assert torch.equal(p_value, found.p_value)
    torch.testing.assert_close(detector.score(test), found.score)
    assert torch.equal(is_ood, found.score.double() > detector.threshold.value)
    assert 0.85 <= (~is_ood).double().mean() <= 1
    assert found.label.shape == (len(test),)
    assert (found.label >= 0).all()
    assert (found.label < 10).all()
    one = detector.verdicts(test.pixels[:1].float() / 255)  # a single image, as a tensor
    torch.testing.assert_close(one.score, found.score[:1], atol=1e-5, rtol=1e-5)


def test_from_parts_takes_scores_or_a_threshold(parts):
    classifier, scores = parts[0], torch.randn(200)
    one = Detector.from_parts(classifier, energy.Score(), scores, keep=0.9)
    other = Detector.from_parts(classifier, energy.Score(), Threshold.from_id(scores, 0.9))
    assert one.threshold.value == other.threshold.value


@pytest.mark.parametrize("mode", ["transductive", "stream"])
def test_a_score_that_needs_company_is_refused(parts, mode):
    with pytest.raises(OutskirtsError, match="needs a score that stays"):
        Detector.from_parts(parts[0], unified.Score(mode=mode), torch.randn(200))


def test_another_classifier_is_noticed(parts, tmp_path):
    fit(parts, "knn").save(tmp_path)
    weights = next((tmp_path / "classifier").glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, weights)
    with pytest.raises(OutskirtsError, match="not the one that the score was fitted on"):
        Detector.load(tmp_path)


def test_a_broken_folder_is_one_line(parts, tmp_path):
    with pytest.raises(OutskirtsError, match=r"no detector\.json"):
        Detector.load(tmp_path / "nowhere")
    fit(parts).save(tmp_path)
    config = json.loads((tmp_path / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps({**config, "settings": {"temperature": 2}}))
    with pytest.raises(OutskirtsError, match="cannot be read") as e:
        Detector.load(tmp_path)
    assert "\n" not in str(e.value)
    (tmp_path / "detector.json").write_text(json.dumps(config)[:40])
    with pytest.raises(OutskirtsError, match="cannot be read"):
        Detector.load(tmp_path)
    (tmp_path / "detector.json").write_text(json.dumps(config))
    (tmp_path / "score.safetensors").write_bytes(b"not tensors")
    with pytest.raises(OutskirtsError, match="cannot be read"):
        Detector.load(tmp_path)


def test_images_that_are_not_finite_are_named(parts):
    images = torch.rand(4, 3, 8, 8)
    images[2, 0, 0, 0] = float("nan")
    with pytest.raises(OutskirtsError, match=r"1 of 4 scores .* at image 2"):
        fit(parts).decide(images)
