"""SONA on tiny random components: requests, rows of the network, independence, prompts and classes, diffusers as oracle."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from outskirts.cli import main
from outskirts.data import Images, load
from outskirts.diffuse import Noise
from outskirts.errors import OutskirtsError
from outskirts.guide_sona import likeness
from outskirts.load_diffusion import load_diffusion
from outskirts.store import Store
from outskirts.synth.sona import Synthesizer
from tiny import listening, tiny_clip, tiny_pixel, tiny_stable_diffusion
from tones import CLASSES, tones, untrained


@pytest.fixture(scope="module")
def data():
    return tones(30)


@pytest.fixture(scope="module")
def classifier():
    return untrained()


@pytest.fixture(scope="module")
def pixel(tmp_path_factory):
    return str(listening(tiny_pixel(tmp_path_factory.mktemp("pixel"), classes=[*CLASSES, "x", "y"])))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return {
        kind: str(tiny_stable_diffusion(tmp_path_factory.mktemp(kind), prediction_type=kind))
        for kind in ("epsilon", "v_prediction")
    }


@pytest.fixture
def make(data, classifier, pixel):
    def made(diffusion=pixel, **settings):
        settings = {"words": ("x", "y"), "steps": 6, "scale": 1.0} | settings
        return Synthesizer(diffusion, **settings).fit(data, classifier)

    return made


def by_id(synthesizer, requests):
    return {o.request.id: o for o in synthesizer(requests)}


def near(a, b):
    """Equal pixels, up to the one grey level that another batch's rounding may cost."""
    return (a.image.int() - b.image.int()).abs().max() <= 1


def test_who_watches_sees_the_masks_of_every_step(make):
    synthesizer, seen = make(start=(4, 4)), []
    requests = synthesizer.requests(3)
    _, outliers, guide = synthesizer.sample(requests, lambda level, found, m: seen.append((level.t, found.x0, m)))
    assert [t for t, *_ in seen] == [level.t for level in synthesizer.levels[-4:]]
    shares = torch.stack([torch.stack([x.double().mean((1, 2, 3)) for x in m[:2]], 1) for *_, m in seen]).mean(0)
    told = torch.tensor([[f["mask_id"], f["mask_nuisance"]] for f in guide.facts()])
    torch.testing.assert_close(shares, told.double(), atol=1e-4, rtol=0)
    last = synthesizer.model.decode(seen[-1][1].clamp(-1, 1))
    torch.testing.assert_close(outliers, last, atol=0.1, rtol=0)  # but for the noise level of the last step
    plain, masks = make(start=(4, 4), global_guidance=True), []
    plain.sample(requests[:1], lambda _level, _found, m: masks.append(m))
    assert masks == [None] * 4


# Requests


def test_requests_visit_the_images_and_fix_level_and_word(make, data):
    synthesizer = make()
    requests = synthesizer.requests(60, seed=1)
    assert requests == synthesizer.requests(60, seed=1)
    assert requests[:9] == synthesizer.requests(9, seed=1)
    assert sorted(r.source for r in requests) == sorted([*range(30)] * 2)
    assert all(r.label == data.labels[r.source] for r in requests)
    assert {r.dials["T"] for r in requests} == {1, 2, 3, 4, 5, 6}
    assert {r.dials["word"] for r in requests} == {"x", "y"}
    other = synthesizer.requests(60, seed=2)
    assert [r.dials for r in other] != [r.dials for r in requests]
    fixed = make(start=(4, 4)).requests(9, seed=1)
    assert {r.dials["T"] for r in fixed} == {4}


def test_every_row_keeps_source_prompts_level_and_shares(make, sd, tmp_path):
    synthesizer = make(sd["epsilon"], words=("kite",))
    store = Store(tmp_path, made_by={}, dials=["T"])
    store.append(list(synthesizer(synthesizer.requests(4))))
    for row, r in zip(store.rows().to_pylist(), synthesizer.requests(4), strict=True):
        assert (row["source"], row["T"], row["prompt"]) == (r.source, r.dials["T"], "a photo of a kite")
        assert json.loads(row["dials"])["id_prompt"] == f"a photo of a {CLASSES[r.label]}"
        notes = json.loads(row["notes"])
        assert notes["guided_steps"] == notes["steps"] == r.dials["T"]
        assert notes["mask_id"] == pytest.approx(0.2, abs=1 / 64)
        assert {"mask_nuisance", "mask_ood", "energy"} <= notes.keys()


# Sampling


@pytest.mark.parametrize("kind", ["pixel", "epsilon", "v_prediction"])
def test_the_network_sees_three_rows_a_step(make, pixel, sd, kind):
    synthesizer, calls = make({"pixel": pixel, **sd}[kind]), []
    requests = synthesizer.requests(8, seed=2)
    hook = synthesizer.model.unet.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    outliers = list(synthesizer(requests))
    hook.remove()
    assert sum(calls) == 3 * sum(r.dials["T"] for r in requests)
    assert len(calls) == max(r.dials["T"] for r in requests)
    side = 8 if kind == "pixel" else 16
    assert all(o.image.shape == (3, side, side) for o in outliers)


@pytest.mark.parametrize("kind", ["pixel", "epsilon"])
def test_an_outlier_is_the_same_in_any_order_and_batch(make, pixel, sd, kind):
    synthesizer = make({"pixel": pixel, **sd}[kind])
    requests = synthesizer.requests(5, seed=1)
    together, backwards = by_id(synthesizer, requests), by_id(synthesizer, requests[::-1])
    assert all(torch.equal(together[i].image, backwards[i].image) for i in together)
    plain = make({"pixel": pixel, **sd}[kind], scale=0.0)  # no masks, so rounding stays rounding
    together = by_id(plain, requests)
    assert all(near(next(iter(plain([r]))), together[r.id]) for r in requests[:3])
    assert not near(together[0], together[3])


def test_one_step_stays_with_the_source_and_many_leave_it(make, data):
    early, late = (by_id(s := make(start=(t, t), steps=20), s.requests(4)) for t in (1, 20))
    for i in range(4):
        source = data.pixels[early[i].request.source].int()
        change = [(o[i].image.int() - source).abs().float().mean() for o in (early, late)]
        assert 3 * change[0] < change[1]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_global_guidance_is_diffusers_img2img(make, sd, data, kind):
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    synthesizer = make(sd[kind], global_guidance=True, scale=3.0)
    loaded = StableDiffusionImg2ImgPipeline.from_pretrained(sd[kind], safety_checker=None, feature_extractor=None)
    scheduler = DDIMScheduler.from_config(loaded.scheduler.config, clip_sample=False)
    pipe = StableDiffusionImg2ImgPipeline(
        **{**loaded.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    for o in synthesizer(synthesizer.requests(3, seed=4)):
        r = o.request
        image = data.subset([r.source]).resized((16, 16)).pixels / 255
        with torch.no_grad():
            latent = synthesizer.model.encode(image)
        # their generator draws what ours does: the noise, one sample at a time
        g = torch.Generator().manual_seed(r.seed)
        theirs = pipe(
            r.prompt, latent, strength=min(1.0, (r.dials["T"] + 0.5) / 6), num_inference_steps=6, guidance_scale=3.0,
            generator=g, output_type="pt",
        ).images  # fmt: skip
        assert (theirs[0] * 255 - o.image).abs().max() < 0.6
    assert torch.equal(Noise([5], (2, 2))()[0], torch.randn(2, 2, generator=torch.Generator().manual_seed(5)))


def test_the_preset_flags_what_it_leaves_alone(make):
    synthesizer, plain = make(sega=True, steps=12, scale=5.0), make(steps=12, scale=0.0)
    requests = synthesizer.requests(12, seed=3)
    outliers, unguided = by_id(synthesizer, requests), by_id(plain, requests)
    late = [r.id for r in requests if r.dials["T"] <= 10]
    assert 0 < len(late) < 12
    for i, o in outliers.items():
        assert ("flag" in o.notes) == (i in late)
        assert o.notes["guided_steps"] == max(0, o.request.dials["T"] - 10)
        if i in late:
            assert near(o, unguided[i])
    assert any(not near(o, unguided[i]) for i, o in outliers.items() if i not in late)


def test_towards_null_takes_two_rows_and_no_word(make):
    synthesizer = make(toward="null", words=(), steps=4)
    requests, calls = synthesizer.requests(5), []
    synthesizer.model.unet.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    outliers = list(synthesizer(requests))
    assert sum(calls) == 2 * sum(r.dials["T"] for r in requests)
    assert all(o.request.prompt is None and "word" not in o.request.dials for o in outliers)
    assert all("mask_ood" not in o.notes and "flag" not in o.notes for o in outliers)


def test_close_words_are_those_clip_finds_alike(make, sd, tmp_path):
    words = tuple("defghijkmn")
    synthesizer = make(sd["epsilon"], words=words, strategy="close", clip=str(tiny_clip(tmp_path)), share=0.25)
    requests = synthesizer.requests(60)
    for label in range(3):
        drawn = {r.dials["word"] for r in requests if r.label == label}
        suited = {w for w, s in zip(synthesizer.words_, synthesizer.suits_[:, label].tolist(), strict=True) if s}
        assert drawn == suited


def test_a_pixel_model_compares_its_classes_by_the_mean_images_it_holds_of_them():
    """Against the means of the images that it was trained on, each less the mean of all."""
    digits = load("digits[0-6]")
    means = torch.stack([digits.pixels[digits.labels == k, 0].float().mean(0).flatten() for k in range(7)])
    means = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    model = load_diffusion("digits")
    found = likeness(model, [5, 6], range(5), model.levels(20)[0])
    torch.testing.assert_close(found, (means @ means.T)[5:, :5], atol=0.1, rtol=0)
    known = digits.subset(digits.labels < 5)
    known = Images("digits", digits.classes[:5], known.labels, known.pixels)
    s = Synthesizer("digits", words=("5", "6"), strategy="far", share=0.5).fit(known)
    assert {(r.label, r.prompt) for r in s.requests(60)} == {(y, "56"[int(found[:, y].argmin())]) for y in range(5)}


def test_how_far_the_classifier_sees_an_outlier_from_its_source(make, data, classifier):
    synthesizer = make(start=(4, 4))
    for o in synthesizer(synthesizer.requests(4)):
        images = torch.stack([data.pixels[o.request.source], o.image]).float() / 255
        a, b = classifier(images).features.detach()
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
        assert o.notes["feature_distance"] == pytest.approx(
            (2 - 2 * cosine) ** 0.5, abs=0.02
        )  # stored ones are rounded


def test_numbers_of_wordnet_are_said_as_names(data, sd):
    numbered = replace(data, classes=["n01440764", "n01443537", "n02123045"])
    synthesizer = Synthesizer(sd["epsilon"], words=("Tench", "tabby cat", "goldfish bowl", "kite"), steps=4).fit(
        numbered
    )
    assert synthesizer.words_ == ["kite"]
    said = {r.label: r.dials["id_prompt"] for r in synthesizer.requests(20)}
    assert said == {0: "a photo of a tench", 1: "a photo of a goldfish", 2: "a photo of a tabby"}


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": ()}, "no outside words"),
        ({"words": ("A", "b")}, "no class 'A'|no outside word is left"),
        ({"words": ("a", "b")}, "no outside word is left of 2"),
        ({"words": ("zebra",)}, "no class 'zebra' to write in"),
        ({"lam": 0.5}, "below 0.5"),
        ({"start": (0, 3)}, "1 <= from"),
        ({"start": (3, 9)}, "1 <= from"),
        ({"toward": "null"}, "leave words"),
        ({"prompt": "a photo"}, "must hold"),
        ({"toward": "null", "words": (), "global_guidance": True}, "global_guidance out"),
        ({"diffusion": "digits"}, "knows no class 'a'"),
    ],
)
def test_wrong_settings_are_one_line(make, settings, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        make(**settings)
    assert "\n" not in str(e.value)


def test_texts_are_compared_by_clip_alone(make, sd):
    with pytest.raises(OutskirtsError, match=r"give synth.clip=") as e:
        make(sd["epsilon"], strategy="close")
    assert "\n" not in str(e.value)


def test_schedules_that_cannot_be_entered_in_the_middle(make, pixel, tmp_path):
    folder = shutil.copytree(pixel, tmp_path / "m")
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    zero = {**config, "prediction_type": "epsilon", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for other, message in ((flow, "cannot start in its middle"), (zero, "begins at pure noise")):
        path.write_text(json.dumps(other))
        with pytest.raises(OutskirtsError, match=message) as e:
            make(str(folder))
        assert "\n" not in str(e.value)


def test_a_model_without_a_null_class_is_refused(data, pixel, tmp_path):
    folder = shutil.copytree(pixel, tmp_path / "m")
    facts = Path(folder) / "outskirts.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "null_label": None}))
    with pytest.raises(OutskirtsError, match="no null class"):
        Synthesizer(str(folder), toward="null").fit(data)
    unlabelled = replace(data, labels=torch.full((30,), -1))
    with pytest.raises(OutskirtsError, match="no labels"):
        Synthesizer(str(folder), toward="null").fit(unlabelled)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["synth.words=1,4"], "no outside word is left of 2"),
        (["synth.words=9"], "diffusion model 'digits' has no class '9' to write in; it knows 0, 1"),
        (["synth.words="], "no outside words; give synth.words="),
        (["synth.lam=0.5"], "lam is 0.5; give above 0 and below 0.5"),
        (["outliers=digits[5,6]", "methods={}", "own=outliers"], "those of outliers have none"),
        (["near=hard=store:nowhere"], "no store of outliers in nowhere"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_is_made(fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["run", "sona_digits", "--out", "x", *fields])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert message in done.output
    assert not list((tmp_path / "x").glob("1-*"))
