"""CLIP as a classifier, negative labels and their score: against transformers, the papers' formulas written out, and numpy."""

import json
import logging
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from outskirts import data
from outskirts.clip import Residual, text_encoder
from outskirts.detector import Detector
from outskirts.errors import OutskirtsError
from outskirts.export import export
from outskirts.models import Classifier, load_classifier
from outskirts.negatives import Negatives, mine, read_words, remembered
from outskirts.nets import small_resnet
from outskirts.scores.neglabel import Score
from outskirts.types import Outputs
from texts import ADJECTIVES, NOUNS, clip_classifier, clip_folder, words

G = torch.Generator().manual_seed(0)


def outputs(n=6, k=4, d=8, scale=100.0):
    text, features = normalize(torch.randn(k, d, generator=G), dim=1), 10 * torch.randn(n, d, generator=G)
    return Outputs(scale * normalize(features, dim=1) @ text.T, features)


def labels(m, d=8):
    return Negatives(tuple(f"w{i}" for i in range(m)), 3 * torch.randn(m, d, generator=G))


# --- CLIP as a classifier ----------------------------------------------------------------------------------------------


def test_logits_and_features_are_clip_s_own():
    from transformers import CLIPModel, CLIPTokenizer

    names, images = ["cat", "tabby_dog, Canis", "d"], torch.rand(3, 3, 16, 16, generator=G)
    classifier = load_classifier(f"clip:{clip_folder()}?template=a nice {{}}", classes=names)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder()), CLIPTokenizer.from_pretrained(clip_folder())
    tokens = tokenizer(
        ["a nice cat", "a nice tabby dog", "a nice d"],
        padding="max_length",
        max_length=16,
        truncation=True,
        return_tensors="pt",
    )
    pixels = classifier.preprocess(images)
    ours, theirs = classifier(images), model(**tokens, pixel_values=pixels)
    torch.testing.assert_close(ours.logits, theirs.logits_per_image, atol=1e-5, rtol=1e-5)
    raw = model.get_image_features(pixels)
    torch.testing.assert_close(ours.features, getattr(raw, "pooler_output", raw))  # projected, not normalised
    assert (ours.features.norm(dim=1) - 1).abs().min() > 0.1
    assert (classifier.layer, classifier.feature_dim, classifier.net.template) == ("head", 8, "a nice {}")


def test_preprocessing_is_clip_s_own():
    from transformers import CLIPImageProcessor

    picture = torch.randint(80, 176, (3, 24, 48), generator=G, dtype=torch.uint8)  # theirs cuts what goes over the edge
    theirs = CLIPImageProcessor.from_pretrained(clip_folder())(picture, return_tensors="pt")["pixel_values"]
    ours = clip_classifier().preprocess(picture[None].float() / 255)
    assert (ours - theirs).abs().max() < 2 / 255 / 0.26  # theirs rounds to 8 bits after it has resized


def test_a_saved_classifier_needs_no_clip_model(tmp_path):
    classifier, images = clip_classifier(), torch.rand(2, 3, 20, 16, generator=G)
    classifier.save(tmp_path)
    facts = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(facts).replace(str(clip_folder()), "/nowhere"))
    again = load_classifier(tmp_path)
    assert again.fingerprint() == classifier.fingerprint()
    assert torch.equal(again(images).logits, classifier(images).logits)
    assert again.net.text_side == text_encoder(str(clip_folder())).fingerprint


def test_it_is_differentiable_and_training_leaves_the_texts():
    classifier, images = clip_classifier(), torch.rand(2, 3, 16, 16, generator=G).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(images).logits.logsumexp(1).sum(), images)
    assert (gradient != 0).float().mean() > 0.9
    assert not {n for n, _ in classifier.named_parameters() if "text" in n or "scale" in n}


def test_wordnet_numbers_are_said_by_name():
    numbers, names = (load_classifier(f"clip:{clip_folder()}", classes=c) for c in (["n01440764", "b"], ["tench", "b"]))
    assert torch.equal(numbers.net.head.text, names.net.head.text)
    assert numbers.classes == ("n01440764", "b")


def test_residual_is_the_paper_s():
    torch.manual_seed(0)
    project, F = Residual(512), 10 * normalize(torch.randn(5, 512, generator=G), dim=1)
    linear, norm, _ = project.delta
    x = F @ linear.weight.T + linear.bias
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(project(F), F + x.clamp(min=0), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in project.parameters()) == 263_680  # SynOOD: 0.18 % of a ViT-B/16
    assert 1.4 < (project.delta(F).norm(dim=1) / F.norm(dim=1)).mean() < 1.8  # and 16 on features of norm 1


# --- the score ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "groups", "tau"), [(12, 3, 0.01), (14, 4, 0.05), (5, 1, 0.01)])
def test_the_closed_form_is_the_loop_over_softmaxes(m, groups, tau):
    """NegLabel's release: drop the last M mod G, deal the rest out, one softmax a group, the mean of the ID classes' share."""
    o, negatives = outputs(), labels(m)
    score = Score(groups=groups, tau=tau).with_labels(negatives, 100.0)
    p = (o.logits / 100 / tau).double()
    q = (normalize(o.features.double(), dim=1) @ normalize(negatives.features.double(), dim=1).T) / tau
    q = q[:, : m - m % groups]
    q = q[:, torch.randperm(q.shape[1], generator=torch.Generator().manual_seed(0))].reshape(len(q), groups, -1)
    S = torch.stack([torch.cat([p, q[:, g]], 1).softmax(1)[:, : p.shape[1]].sum(1) for g in range(groups)]).mean(0)
    torch.testing.assert_close((-score(o).double()).sigmoid(), S, atol=1e-6, rtol=1e-5)  # ours is higher for OOD


def test_only_the_last_labels_are_dropped():
    o, negatives = outputs(), labels(11)
    score = Score(groups=3).with_labels(negatives, 100.0)
    moved = [torch.equal(score.tuned(torch.tensor([i]), torch.ones(1, 8))(o), score(o)) for i in range(11)]
    assert moved == [False] * 9 + [True] * 2


def test_where_softmax_has_saturated_images_still_differ():
    score = Score(groups=1).with_labels(Negatives(("w",), torch.eye(2)[1:]), 100.0)
    angle = torch.tensor([0.0, 0.1, 0.2, 1.4, 1.5, 1.57])  # from the only class to the only negative label
    features = torch.stack([angle.cos(), angle.sin()], 1)
    found = score(Outputs(100 * features[:, :1], features))
    assert (found.diff() > 0).all()
    assert (-found).sigmoid().unique().numel() < 6  # S itself ties
    torch.testing.assert_close(found, 100 * (angle.sin() - angle.cos()), atol=1e-3, rtol=1e-5)


def test_many_images_are_cut_into_chunks(monkeypatch):
    o, score = outputs(20), Score(groups=3).with_labels(labels(9), 100.0)
    whole = score(o)
    monkeypatch.setattr("outskirts.scores.neglabel.CHUNK", 30)
    assert torch.equal(score(o), whole)
    assert score(o[:0]).shape == (0,)


def test_the_nearest_label_by_name():
    negatives = labels(5)
    score = Score(groups=2).with_labels(negatives, 100.0)
    assert score.nearest(Outputs(torch.zeros(5, 3), 7 * negatives.features)) == list(negatives.words)


# --- words -------------------------------------------------------------------------------------------------------------


def test_lists_are_read_nouns_first_without_brackets_and_twice_named_words(tmp_path):
    for name, text in {
        "adj.all.txt": "[rhizoidal\nred\n\n kite ",
        "noun.b.txt": "kite\nanvil",
        "noun.a.txt": "oar\nanvil\n",
        "README": "no",
    }.items():
        (tmp_path / name).write_text(text)
    found = {"noun": ["oar", "anvil", "kite"], "adj": ["rhizoidal", "red"]}
    assert read_words([str(tmp_path)]) == found
    assert read_words([f"{tmp_path}/adj.all.txt", f"{tmp_path}/noun.a.txt", f"{tmp_path}/noun.b.txt"]) == found
    assert read_words([f"adj:{tmp_path}/noun.a.txt", f"{tmp_path}/README"]) == {"noun": ["no"], "adj": ["oar", "anvil"]}


def test_wordnet_where_it_is_installed(monkeypatch):
    def synset(file, *names):
        return SimpleNamespace(lexname=lambda: file, lemma_names=lambda: names)

    nouns = [synset("noun.time", "red_letter_day"), synset("noun.act", "theft"), synset("noun.food", "jam")]
    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = SimpleNamespace(all_synsets={"n": nouns, "a": [synset("adj.all", "theft", "dim")]}.__getitem__)
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    assert read_words(["wordnet"]) == {"noun": ["theft", "red letter day"], "adj": ["dim"]}


def test_mining_keeps_the_least_alike_of_each_part_of_speech():
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip_folder()), CLIPTokenizer.from_pretrained(clip_folder())
    text = clip_classifier("abcdefg").net.head.text
    encoder, share, quantile = text_encoder(str(clip_folder()), batch_size=7), 0.23, 0.8
    found = mine(
        {"noun": NOUNS, "adj": ADJECTIVES}, text, encoder.raw, template="the nice {}", share=share, quantile=quantile
    )
    wanted = []
    for some, prompt in ((NOUNS, "the nice {}"), (ADJECTIVES, "This is a {} photo")):
        tokens = tokenizer(
            [prompt.format(w) for w in some], padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        )
        raw = model.get_text_features(**tokens)
        raw = getattr(raw, "pooler_output", raw).detach().double().numpy()
        cosines = raw / np.linalg.norm(raw, axis=1, keepdims=True) @ text.double().numpy().T
        order = np.argsort(np.quantile(cosines, quantile, axis=1))  # one number a word, over the classes
        wanted += [some[i] for i in order[: int(share * len(some))]]
    assert list(found.words) == wanted
    assert len(wanted) == 9 + 4
    assert found.features.norm(dim=1).std() > 1e-4  # raw: the label side starts from them


def test_text_features_are_remembered_by_content(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OUTSKIRTS_CACHE", str(tmp_path / "cache"))
    encoder = text_encoder(str(clip_folder()))
    first = remembered(encoder)(["a", "b"])
    (file,) = (tmp_path / "cache" / "text").iterdir()
    torch.testing.assert_close(first, encoder.raw(["a", "b"]))
    for change, texts in ((False, ["b", "a"]), (True, ["a", "b"])):  # other texts, other weights
        other = text_encoder(str(clip_folder()))
        if change:
            other.model.text_projection.weight.mul_(2)
        torch.testing.assert_close(remembered(other)(texts), other.raw(texts))
    assert len(list(file.parent.iterdir())) == 3
    monkeypatch.setattr(type(encoder), "raw", lambda *_: pytest.fail("embedded again"))
    assert torch.equal(remembered(text_encoder(str(clip_folder())))(["a", "b"]), first)
    monkeypatch.undo()
    monkeypatch.setenv("OUTSKIRTS_CACHE", str(tmp_path / "cache"))
    file.write_bytes(b"torn")
    torch.testing.assert_close(remembered(encoder)(["a", "b"]), first)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTSKIRTS_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "outskirts"):
        torch.testing.assert_close(remembered(encoder)(["a", "b"]), first)
    assert "not kept" in caplog.text


# --- as a detector -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="detector")
def _detector():
    pixels = torch.randint(0, 256, (80, 3, 16, 16), generator=G, dtype=torch.uint8)
    images = data.Images("noise", list("abcd"), torch.arange(80) % 4, pixels)
    train, held_out = data.split(images, (0.5, 0.5))
    return Detector.fit(clip_classifier(), Score(words(), groups=3), train, held_out)


def test_a_detector_says_the_same_from_its_folder(detector, tmp_path):
    images = torch.rand(5, 3, 18, 16, generator=G)
    detector.save(tmp_path)
    again = Detector.load(tmp_path)
    assert torch.equal(again.score(images), detector.score(images))
    assert again.threshold.value == detector.threshold.value
    assert again.scorer.labels_.split("\n") == detector.scorer.labels_.split("\n")
    assert {f.suffix for f in tmp_path.rglob("*") if f.is_file()} == {".json", ".safetensors"}


def test_a_detector_is_exported(detector, tmp_path):
    assert export(detector, tmp_path / "d.pt2")["score"] < 1e-4


def test_wrong_input_is_one_line(tmp_path):
    clip = f"clip:{clip_folder()}"
    few = tmp_path / "few.txt"
    few.write_text("\n".join(NOUNS[:6]))
    (tmp_path / "empty.txt").write_text("\n\n")
    shutil.copytree(clip_folder(), tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["visual_projection.weight"], weights["text_projection.weight"]  # as in Stable Diffusion's text encoder
    save_file(weights, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    plain = Classifier(small_resnet("resnet_tiny", 4), classes="abcd", size=(8, 8))

    def fit(classifier=None, **settings):
        return Score(**settings).fit(outputs(), torch.zeros(6).long(), classifier=classifier or clip_classifier())

    for call, message in (
        (lambda: load_classifier(clip), "no classes of its own"),
        (lambda: load_classifier(clip, classes=["cat", " "]), "no classes of its own"),
        (lambda: load_classifier(f"{clip}?template=a photo", classes=["a"]), "one {}"),
        (lambda: load_classifier(f"{clip}?templat=a {{}}", classes=["a"]), "unknown option 'templat'"),
        (lambda: load_classifier(f"clip:{tmp_path}", classes=["a"]), "cannot load CLIP model"),
        (
            lambda: load_classifier(f"clip:{tmp_path}/half", classes=["a"]),
            "lacks text_projection.weight, visual_projection.weight; give a whole",
        ),
        (lambda: text_encoder(str(tmp_path / "half")), "lacks text_projection.weight; give a whole"),
        (lambda: fit(), "no word to mine"),
        (lambda: fit(words=str(tmp_path / "empty.txt")), "no word to mine"),
        (lambda: fit(words=str(tmp_path / "nowhere.txt")), "cannot read the word list"),
        (lambda: fit(words="wordnet"), "wordnet is not installed"),
        (lambda: fit(words=str(few)), "no word is left: 0.15 of the words"),
        (lambda: fit(words=words()), "9 negative labels for 100 groups; give more words"),
        (lambda: fit(words=words(), classifier=plain), "needs a CLIP classifier, clip:FOLDER-or-ID; this one is a"),
        (lambda: fit(words=words(), clip=str(tmp_path)), "cannot load CLIP"),
        (lambda: Score(groups=2).with_labels(labels(4), 100.0)(outputs(d=5)), "labels of 8 features, the images 5"),
        (lambda: Score()(outputs()), "not fitted"),
        (lambda: Score(groups=0), "at least one group"),
        (lambda: Score(share=0), "shares above 0"),
    ):
        with pytest.raises(OutskirtsError, match=message) as e:
            call()
        assert "\n" not in str(e.value)


def test_another_clip_model_is_noticed(tmp_path):
    from transformers import CLIPModel

    other = tmp_path / "other"
    shutil.copytree(clip_folder(), other)
    model = CLIPModel.from_pretrained(other)
    model.text_projection.weight.data.mul_(1.01)
    model.save_pretrained(other)
    with pytest.raises(OutskirtsError, match="is not the CLIP model that the classifier was made from"):
        Score(words(), clip=str(other), groups=3).fit(outputs(), torch.zeros(6).long(), classifier=clip_classifier())
