"""Contexts: what is made of answers, files and word lists of the user, prompts that fit, and tiny models that look at images."""

import json

import pytest
import torch

from outskirts.answers import parse, prompt
from outskirts.captions import QUESTION, Captioner
from outskirts.contexts import ContextProvider, provider
from outskirts.data import Images
from outskirts.errors import OutskirtsError
from tiny import tiny_clip, tiny_stable_diffusion
from tiny_captioners import tiny_blip, tiny_llava

WORDS = {"cat": ["sofa", "rug", "lamp"], "dog": ["grass"]}


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=g, dtype=torch.uint8)
    return Images("pets", ["cat", "dog"], torch.arange(6) % 2, pixels)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("sofa, a rug, the lamp.", ["sofa", "rug", "lamp"]),
        ("sofa; rug\nI hope this helps!", ["sofa", "rug"]),
        ("Here are eight objects:\n1. Sofa\n2) a rug\n- lamp\n\u2022 plant", ["Sofa", "rug", "lamp", "plant"]),
        ("Objects: sofa, rug, and some pillows", ["sofa", "rug", "pillows"]),
        ("cat, sofa, two cats, catnip, tabby_cat, kitten", ["sofa", "catnip"]),
        ("Sofa, sofa, SOFA, rug", ["Sofa", "rug"]),
        ("p, q, r, s, t, u, v, w, x, y", ["p", "q", "r", "s", "t", "u", "v", "w"]),
        ("a cat", []),
        ("", []),
        (" ,;\n", []),
    ],
)
def test_answers_are_parsed(answer, found):
    assert parse(answer, "cat, kitten") == found


def test_captions_are_cut_into_things():
    caption = "a tabby cat sitting on a red sofa next to the window and a lamp"
    assert parse(caption, "cat", sentence=True) == ["red sofa", "window", "lamp"]
    assert parse(caption, "cat") == []


def test_prompts_are_cut_at_whole_words_by_tokens(tmp_path):
    from outskirts.load_diffusion import load_diffusion

    model = load_diffusion(str(tiny_stable_diffusion(tmp_path)))
    room = model.tokenizer.model_max_length - 2  # the letters of its words are its tokens
    context = "abc, def, ghi, jkl, mno, pqr"
    text = prompt("z {context}", context, model)
    assert len(model.words(text)) <= room < len(model.words(f"z {context}"))
    assert text == f"z {context[: len(text) - 2]}"
    assert context[len(text) - 2] == ","
    assert prompt("{context}", "abc", model) == "abc"
    with pytest.raises(OutskirtsError, match="leaves no room for 'abcdefghijklmnop' in 14 tokens"):
        prompt("{context}", "abcdefghijklmnop", model)


# Files and words of the user


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"0": "cat, sofa"}\n\n{"3": "1. grass\\n2. a dog", "4": "a cat"}\n'),
        (
            "a.jsonl",
            '{"image": "0", "text": "cat, sofa"}\n{"image": "3", "text": "grass"}\n{"image": "4", "text": "cat"}\n',
        ),
        ("a.csv", 'image,text\n0,"cat, sofa"\n3,grass\n4,cats\n'),
    ],
)
def test_files_of_answers(images, tmp_path, caplog, name, text):
    (tmp_path / name).write_text(text)
    contexts = provider(f"file:{tmp_path / name}", images)
    assert isinstance(contexts, ContextProvider)
    assert contexts.rows == [0, 3, 4]
    assert contexts(images, [3, 0, 4], [0, 0, 0]) == ["grass", "sofa", "background"]
    assert "answers for 3 of 6 images" in caplog.text
    assert "nothing but the class was said of 1 of 3 images (row 4 first)" in caplog.text


def test_words_of_a_class_are_drawn_by_the_seed(images, tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    for contexts in (WORDS, f"words:{tmp_path / 'words.json'}"):
        give = provider(contexts, images, most=2)
        said = give(images, [0, 2, 4, 1] * 9, list(range(36)))
        assert said[1] == give(images, [2], [1])[0]  # whatever stands beside it
        assert set(said[3::4]) == {"grass"}
        cats = {t for i, t in enumerate(said) if i % 4 != 3}
        assert all(len(set(t.split(", ")) & set(WORDS["cat"])) == 2 for t in cats)
        assert len(cats) == 6


def test_a_fixed_text_and_a_function(images):
    assert provider("text:an empty room", images)(images, [1, 2], [0, 0]) == ["an empty room"] * 2
    assert provider("python:test_contexts:mine", images)(images, [1, 2], [5, 6]) == ["row 1 seed 5", "row 2 seed 6"]


def test_imagenet_s_numbers_stand_for_its_names():
    images = Images("x", ["n01440764", "n02123045"], torch.tensor([0, 1]), files=["a.jpg", "b.jpg"])
    with pytest.raises(OutskirtsError, match="names the class 'n02123045'"):
        provider("text:a tabby cat", images)
    assert provider("text:a sofa", images)(images, [0], [0]) == ["a sofa"]


def mine(images, rows, seeds):
    return [f"row {r} seed {s}" for r, s in zip(rows, seeds, strict=True)]


@pytest.mark.parametrize(
    ("contexts", "options", "message"),
    [
        (None, {}, "contexts is None; give file:PATH"),
        ("sofa", {}, "give file:PATH"),
        ("clip", {}, "with clip= and"),
        ("text:a dog on a sofa", {}, "names the class 'dog'"),
        ("text:a sofa", {"clip": "some/clip"}, "give both, or neither"),
        ("text:a sheep-dog, sheepdogs", {"synonyms": {"dog": "sheepdog"}}, "names the class 'dog'"),
        ("text:a puppy", {"synonyms": {"dog": "puppy, pup"}}, "names the class 'dog'"),
        ("text:a sofa", {"synonyms": {"dgo": "puppy"}}, "did you mean 'dog'"),
        ({"cat": ["sofa"]}, {}, "no list of words for class 'dog'"),
        ({**WORDS, "dog": []}, {}, "no list of words for class 'dog'"),
        ({**WORDS, "dog": ["hot dogs"]}, {}, "holds 'hot dogs', which names it"),
        ({**WORDS, "dgo": ["sofa"]}, {}, "no class, did you mean 'dog'"),
        ("python:test_contexts:nothing", {}, "cannot be imported"),
        ("words:missing.json", {}, "cannot read 'missing.json'"),
        ("hf:missing/folder/of/mine", {}, "cannot load 'missing/folder/of/mine'"),
    ],
)
def test_wrong_contexts_are_one_line(images, contexts, options, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        provider(contexts, images, **options)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"0": "sofa"}\nsofa', "line 2 is no JSON"),
        ("a.jsonl", "[1]", "no JSON object"),
        ("a.jsonl", '{"0": 3}', "the answer for '0' is 3"),
        ("a.jsonl", '{"9": "sofa"}', "names no image of pets"),
        ("a.csv", "name,words\n0,sofa", "columns name, words"),
    ],
)
def test_wrong_files_are_one_line(images, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(OutskirtsError, match=message) as e:
        provider(f"file:{tmp_path / name}", images)
    assert "\n" not in str(e.value)


# Models that look


def test_clip_finds_the_words_most_like_an_image(images, tmp_path):
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    name, words = str(tiny_clip(tmp_path)), ("lamp", "rug", "cats", "sofa", "grass")
    give = provider(None, images, clip=name, vocabulary=words, most=3)
    said = give(images, [0, 1, 2], [0, 0, 0])
    assert give(images, [2], [9]) == [said[2]]

    model, tokenizer = CLIPModel.from_pretrained(name), CLIPTokenizer.from_pretrained(name)
    shown = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in images.pixels[:3]]
    pixels = CLIPImageProcessor.from_pretrained(name)(shown, return_tensors="pt")
    tokens = tokenizer([f"a photo of a {w}" for w in words], padding="max_length", max_length=16, truncation=True, return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        like = model(**pixels, **tokens).logits_per_image
    synonym = give.close  # a random text encoder finds most texts alike
    for row, text in enumerate(said):
        label = int(images.labels[row])
        best = [words[i] for i in like[row].argsort(descending=True) if not synonym[i, label] and not (label == 0 and words[i] == "cats")]  # fmt: skip
        assert text == ", ".join(best[:3])


def test_a_captioner_says_the_same_of_an_image_whatever_stands_beside_it(images, tmp_path):
    give = provider(f"hf:{tiny_blip(tmp_path)}", images)
    assert isinstance(give, Captioner)
    assert not give.asks
    together, alone = give(images, [0, 1, 2], [0, 0, 0]), give(images, [1], [7])
    assert together[1] == alone[0]
    assert all(together)


def test_llava_is_asked_to_leave_the_class_out(images, tmp_path, monkeypatch):
    give = provider(f"hf:{tiny_llava(tmp_path)}", images)
    assert give.asks
    seen = []
    generate = give.model.generate
    monkeypatch.setattr(give.model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    assert len(give(images, [0, 1], [0, 0])) == 2
    for inputs, name in zip(seen, ("cat", "dog"), strict=True):
        question = give.processor.tokenizer(QUESTION.replace("{class}", name), return_tensors="pt").input_ids
        assert torch.equal(inputs["input_ids"][:, -question.shape[1] :], question)
    assert (seen[0]["input_ids"] == give.model.config.image_token_id).sum() == 4  # one a patch
