"""Outside words: lists, ID names and their near synonyms left out, close and far ones by CLIP text similarity."""

import json
import logging
import shutil

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.models import load_classifier
from outskirts.prompts import candidates, clip_text, outside, says, similarity, spoken, word_list
from tiny import tiny_clip, tiny_stable_diffusion


def embed(texts):
    """Letter counts stand for meaning."""
    counts = [[t.split()[-1].count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts]
    return torch.nn.functional.normalize(torch.tensor(counts).float(), dim=1)


@pytest.mark.parametrize(
    ("word", "classes", "stays"),
    [
        ("zebra", ["cat"], True),
        ("Cat", ["cat"], False),
        ("cats", ["cat"], False),
        ("puppies", ["Puppy"], False),
        ("foxes", ["fox"], False),
        ("a cat on a mat", ["cat"], False),
        ("catamaran", ["cat"], True),
        ("tabby_cat", ["tabby, tabby cat"], False),
        ("persian cat", ["tabby, tabby cat"], True),
        ("bus", ["buses"], False),
        ("glass", ["grass"], True),
        ("7", ["7"], False),
        ("17", ["7"], True),
    ],
)
def test_no_word_is_or_holds_an_id_name(word, classes, stays):
    assert (word in outside(word_list([word, "quokka"]), classes)) == stays


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *[
            ("wolves", "wolf"),
            ("timber wolves", "wolf"),
            ("werewolves", "werewolf"),
            ("mice", "mouse"),
            ("knives", "knife"),
        ],
        *[("geese", "goose"), ("loaves", "loaf"), ("leaves", "leaf"), ("firemen", "fireman"), ("people", "person")],
        *[
            ("oxen", "ox"),
            ("axes", "axe"),
            ("quizzes", "quiz"),
            ("emus", "emu"),
            ("wolf", "wolves"),
            ("cacti", "cactus"),
        ],
        *[("race car", "racecar"), ("racecar track", "race car"), ("race-cars", "racecar"), ("a racecar", "race_car")],
        *[
            ("T-shirts", "tshirt"),
            ("3s on paper", "3"),
            ("two tvs", "TV"),
            ("hot dogs stand", "hot dog"),
            ("cat's", "cat"),
        ],
    ],
)
def test_a_text_says_a_name_in_any_of_its_forms(text, name):
    assert says(text, name)
    assert outside(word_list([text, "quokka"]), [name]) == ["quokka"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *[("glass", "glas"), ("bus", "bu"), ("gas", "ga"), ("process", "proces"), ("as", "a"), ("princess", "prince")],
        *[("caves", "cafe"), ("saves", "safe"), ("slice", "louse"), ("13s", "3"), ("1 7", "17"), ("wolverine", "wolf")],
        *[("they go at night", "goat"), ("car", "race car"), ("omen", "oman"), ("scarlet", "car")],
    ],
)
def test_other_words_are_no_forms_of_a_name(text, name):
    assert not says(text, name)


@pytest.mark.parametrize(
    ("name", "n", "has"),
    [
        ("pack-cifar10", 10, "automobile"),
        ("cifar100-papers", 100, "aquarium fish"),
        ("imagenet100", 100, "stingray"),
        ("imagenet200", 200, "goldfish"),
        ("imagenet1k", 998, "tench"),
    ],
)
def test_names_of_a_benchmark_s_classes(name, n, has):
    words = word_list([f"benchmark:{name}"])
    assert len(words) == n
    assert has in words


def test_a_benchmark_s_words_are_outside_words():
    left = outside(word_list(["benchmark:cifar100"]), ["bus", "wolves", "aquarium_fish"])
    assert len(left) == 97


def test_names_that_mean_an_id_class_are_dropped_and_told(caplog):
    with caplog.at_level(logging.WARNING, "outskirts"):
        left = outside(word_list(["abcb", "zebra"]), ["bacb"], embed)
    assert left == ["zebra"]
    assert "near synonyms" in caplog.text
    assert "abcb" in caplog.text


def test_imagenet_s_names_come_with_their_synonyms():
    words = word_list(["timm:imagenet"])
    assert len(words) == 998  # two names stand for two classes each
    assert words["tench"] == "tench, Tinca tinca"
    left = outside(words, ["Tinca tinca", "crane"])
    assert len(left) == 996
    assert not {"tench", "crane"} & set(left)


def test_lists_are_read_from_files_and_from_texts(tmp_path):
    (tmp_path / "words.txt").write_text("red barn, at dusk\n\n quokka \n")
    assert list(word_list([f"file:{tmp_path}/words.txt", "kite", "quokka"])) == ["red barn, at dusk", "quokka", "kite"]
    assert spoken("tabby_cat, Felis catus") == "tabby cat"


def test_close_and_far_are_the_ends_of_the_ranking():
    words, classes = ["aab", "abb", "xyz", "bbb", "ayz"], ["aaa", "zzz"]
    like = similarity(words, classes, embed)
    close, far = (candidates(words, classes, s, 0.4, embed) for s in ("close", "far"))
    for k in range(2):
        assert close[:, k].sum() == far[:, k].sum() == 2
        assert like[close[:, k], k].min() >= like[~close[:, k], k].max()
        assert like[far[:, k], k].max() <= like[~far[:, k], k].min()
    assert candidates(words, classes).all()
    assert candidates(words, classes, "close", 0.01, embed).sum(0).tolist() == [1, 1]


def test_clip_s_own_text_embeddings(tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    folder = tiny_clip(tmp_path)
    texts = ["a photo of a b", "c", "a photo of a longer thing than fits"]
    found = clip_text(str(folder), batch_size=2)(texts)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    out = CLIPModel.from_pretrained(folder)(**tokens, pixel_values=torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(found, out.text_embeds.detach())


def test_a_text_encoder_alone_is_no_whole_clip_model(tmp_path):
    from transformers import CLIPTextModelWithProjection

    folder = tiny_clip(tmp_path)
    CLIPTextModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path / "text")
    shutil.copytree(folder, tmp_path / "text", dirs_exist_ok=True, ignore=shutil.ignore_patterns("model*", "config*"))
    assert clip_text(str(tmp_path / "text"))(["a"]).shape == (1, 8)
    with pytest.raises(OutskirtsError, match=r"lacks visual_projection.weight, .*; give a whole CLIP model") as e:
        load_classifier(f"clip:{tmp_path / 'text'}", classes=["a", "b"])
    assert "\n" not in str(e.value)


def test_wrong_input_is_one_line(tmp_path):
    sd = tiny_stable_diffusion(tmp_path)
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"about": "", "source": "", "classes": {"n": 3, "sha256": "0"}, "parts": []}))
    for call, message in (
        (lambda: outside(word_list(["cats", "Dog"]), ["cat", "dog"]), "no outside word is left of 2"),
        (lambda: outside(word_list(["tac"]), ["cat"], embed), "near synonym"),
        (lambda: candidates(["a"], ["b"], "close"), "clip="),
        (lambda: candidates(["a"], ["b"], "near"), "accepted: random, close, far"),
        (lambda: word_list([f"file:{tmp_path}/nowhere.txt"]), "cannot read the word list"),
        (lambda: word_list(["timm:cifar"]), "timm:imagenet"),
        (lambda: word_list(["benchmark:cifar11"]), "no benchmark 'cifar11', did you mean"),
        (lambda: word_list([f"benchmark:{own}"]), "has no names of its 3 classes in its manifest; list them in a file"),
        (lambda: clip_text(str(tmp_path)), "cannot load CLIP"),
        (lambda: clip_text(str(sd / "text_encoder")), "lacks text_projection|cannot load CLIP"),
    ):
        with pytest.raises(OutskirtsError, match=message) as e:
            call()
        assert "\n" not in str(e.value)
