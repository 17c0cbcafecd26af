"""SynOOD on tiny random components: requests, what the UNet reads, independence of company, traces, diffusers as oracle, bad input."""

import json
from pathlib import Path

import pytest
import torch

from outskirts.diffuse import Noise
from outskirts.errors import OutskirtsError
from outskirts.evaluate import collect
from outskirts.load_diffusion import load_diffusion
from outskirts.scores.energy import Score as Energy
from outskirts.store import Store
from outskirts.synth.synood import STEPS, Synthesizer
from tiny import tiny_pixel, tiny_stable_diffusion
from tones import CLASSES, tones, untrained

WORDS = {"a": ["x", "y", "z"], "b": ["u"], "c": ["v", "w"]}


@pytest.fixture(scope="module")
def data():
    return tones(30)


@pytest.fixture(scope="module")
def classifier():
    return untrained()


@pytest.fixture(scope="module")
def pixel(tmp_path_factory):
    return str(tiny_pixel(tmp_path_factory.mktemp("pixel"), classes=CLASSES))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return str(tiny_stable_diffusion(tmp_path_factory.mktemp("sd"), in_channels=9))


@pytest.fixture
def make(data, classifier, pixel, sd):
    def made(kind="pixel", **settings):
        text = {"contexts": WORDS, "prompt": "{context}"} if kind == "sd" else {}
        settings = {"steps": 5, "tolerance": 0.0, "step": 10.0, "per_class": 4} | text | settings
        return Synthesizer({"pixel": pixel, "sd": sd}.get(kind, kind), **settings).fit(data, classifier)

    return made


def by_id(synthesizer, requests):
    return {o.request.id: o for o in synthesizer(requests)}


# Requests


def test_requests_visit_the_best_of_every_class_first(make, data):
    synthesizer = make()
    requests = synthesizer.requests(None, seed=1)
    assert len(requests) == 12
    assert [r.label for r in requests] == [0, 1, 2] * 4
    assert requests[:7] == synthesizer.requests(7, seed=1)
    again = synthesizer.requests(24, seed=1)
    assert [r.source for r in again] == [r.source for r in requests] * 2
    assert len({r.seed for r in again}) == 24
    assert {r.seed for r in synthesizer.requests(12, seed=2)}.isdisjoint(r.seed for r in requests)
    assert all(data.labels[r.source] == r.label for r in requests)


def test_a_list_of_the_user_selects(make, tmp_path):
    (tmp_path / "mine.txt").write_text("7\n3\n")
    synthesizer = make(select=f"file:{tmp_path / 'mine.txt'}", per_class=None)
    assert [r.source for r in synthesizer.requests(3)] == [7, 3, 7]
    assert len(make(select="all", per_class=None).requests()) == 30


def test_images_without_an_answer_are_no_sources(make, tmp_path):
    (tmp_path / "said.jsonl").write_text('{"4": "x, a"}\n{"9": "y"}\n')
    synthesizer = make("sd", contexts=f"file:{tmp_path / 'said.jsonl'}")
    outliers = by_id(synthesizer, synthesizer.requests())
    assert {o.request.source: o.request.prompt for o in outliers.values()} == {4: "x, a", 9: "y"}


def test_every_row_keeps_source_prompt_and_the_energy_of_every_pass(make, classifier, data, tmp_path):
    synthesizer = make("sd", passes=4)
    store = Store(tmp_path, made_by={}, dials=[])
    requests = synthesizer.requests(5)
    store.append(list(synthesizer(requests)))
    pixels = store.images()[1].pixels / 255
    energies = Energy()(classifier(pixels))
    expected = Energy()(collect(classifier, data)).double().quantile(0.95).item()
    for row, r, e in zip(store.rows().to_pylist(), requests, energies.tolist(), strict=True):
        notes = json.loads(row["notes"])
        assert row["source"] == r.source
        assert set(row["prompt"].split(", ")) == set(WORDS[CLASSES[r.label]])
        assert len(notes["energies"]) == notes["passes"] == 4
        assert notes["energy"] == pytest.approx(e, abs=1e-4)
        assert notes["energies"][-1] == pytest.approx(e, abs=0.05)  # before it was rounded to 8 bits
        assert notes["target"] == pytest.approx(expected)
        assert notes["t_start"] == 401  # the third last of 801, 601, 401, 201, 1


# Sampling


@pytest.mark.parametrize("kind", ["pixel", "sd"])
def test_an_outlier_is_the_same_in_any_order_and_batch(make, kind):
    synthesizer = make(kind)
    requests = synthesizer.requests(6, seed=1)
    together, backwards = by_id(synthesizer, requests), by_id(synthesizer, requests[::-1])
    assert all(torch.equal(together[i].image, backwards[i].image) for i in together)
    for r in requests:
        alone = next(iter(synthesizer([r])))
        assert (alone.image.int() - together[r.id].image.int()).abs().max() <= 1
        assert alone.request == together[r.id].request
    assert not torch.equal(together[0].image, together[3].image)


@pytest.mark.parametrize("kind", ["pixel", "sd"])
def test_the_network_reads_so_many_rows(make, kind):
    synthesizer, calls = make(kind, passes=3, strength=0.6), []
    hook = synthesizer.model.unet.register_forward_pre_hook(lambda _m, args: calls.append(tuple(args[0].shape)))
    outliers = list(synthesizer(synthesizer.requests(4)))
    hook.remove()
    rows = 4 if kind == "pixel" else 8  # with text, two rows a step
    assert calls == [(rows, *((3, 8, 8) if kind == "pixel" else (9, 8, 8)))] * 9  # 3 of 5 steps, 3 times
    assert all(o.image.shape == (3, *([8, 8] if kind == "pixel" else [16, 16])) for o in outliers)


def test_the_start_mask_and_grey_picture_reach_the_unet(make, data):
    synthesizer, seen = make("sd", passes=2), []
    hook = synthesizer.model.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    requests = synthesizer.requests(2)
    list(synthesizer(requests))
    hook.remove()
    model, level = synthesizer.model, synthesizer.levels[-3]
    z_in = model.encode(data.subset([r.source for r in requests]).resized((16, 16)).pixels / 255)
    eps = Noise([r.seed for r in requests], model.shape)()
    z_T = level.abar**0.5 * z_in + (1 - level.abar) ** 0.5 * eps
    torch.testing.assert_close(seen[0][:, :4], torch.cat([z_T, z_T]))
    assert (seen[0][:, 4] == 1).all()
    grey = model.encode(torch.full((1, 3, 16, 16), 0.5))
    torch.testing.assert_close(seen[0][:, 5:], grey.expand(4, -1, -1, -1))
    assert not torch.allclose(seen[3][:, :4], seen[0][:, :4])  # the second pass starts elsewhere
    torch.testing.assert_close(seen[3][:, 4:], seen[0][:, 4:])


def test_the_published_step_is_in_units_of_the_decoder_s_input(make, classifier):
    """One update by hand from the first pass's latents: eps - step dL/du, u = z0 / scaling."""
    synthesizer, starts = make("sd", passes=2, step=3.0), []
    hook = synthesizer.model.unet.register_forward_pre_hook(lambda _m, args: starts.append(args[0][0, :4].clone()))
    request = synthesizer.requests(1)
    list(synthesizer(request))
    hook.remove()
    model, scaling, ends = synthesizer.model, synthesizer.model.vae.config.scaling_factor, []
    decode = model.decode
    model.decode = lambda z: ends.append(z.detach()) or decode(z)
    list(synthesizer(request))
    u = (ends[0] / scaling).requires_grad_()
    images = (model.vae.decode(u).sample / 2 + 0.5).clamp(0, 1)
    loss = (Energy()(classifier(images)) - synthesizer.state["target"]).square().sum()
    g = torch.autograd.grad(loss, u)[0]
    moved = (starts[3] - starts[0]) / (1 - synthesizer.levels[-3].abar) ** 0.5
    torch.testing.assert_close(moved, -3.0 * g[0], atol=1e-4, rtol=1e-3)


def test_no_parameter_gets_a_gradient(make):
    synthesizer = make("sd")
    list(synthesizer(synthesizer.requests(2)))
    model = synthesizer.model
    for module in (model.unet, model.vae, model.text_encoder, synthesizer.classifier):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_one_pass_is_diffusers_inpainting_pipeline(make, sd, data):
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    synthesizer = make("sd", passes=1, guidance_scale=3.0)
    model, level = synthesizer.model, synthesizer.levels[-3]
    config = DDIMScheduler.load_config(sd, subfolder="scheduler")
    scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    pipe = StableDiffusionInpaintPipeline(
        model.vae, model.text_encoder, model.tokenizer, model.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    for o in synthesizer(synthesizer.requests(2, seed=4)):
        r = o.request
        image = data.subset([r.source]).resized((16, 16)).pixels / 255
        with torch.no_grad():
            eps = Noise([r.seed], model.shape)()
            z_T = level.abar**0.5 * model.encode(image) + (1 - level.abar) ** 0.5 * eps
            theirs = pipe(
                r.prompt, image, torch.ones(1, 1, 16, 16), latents=z_T, masked_image_latents=model.blank[:, 1:], strength=0.6,
                num_inference_steps=5, guidance_scale=3.0, height=16, width=16, output_type="pt",
            ).images  # fmt: skip
        assert (theirs[0] * 255 - o.image).abs().max() < 0.6


def test_passes_bring_outliers_nearer_to_the_target(make):
    outliers = list((s := make(passes=6))(s.requests(12)))
    far = torch.tensor([[abs(e - o.notes["target"]) for e in o.notes["energies"]] for o in outliers])
    assert far[:, -1].mean() < 0.8 * far[:, 0].mean()
    stopped = list((s := make(passes=6, tolerance=float(far[:, 0].median())))(s.requests(12)))
    assert {o.notes["passes"] for o in stopped} >= {1}
    assert max(o.notes["passes"] for o in stopped) > 1


def test_pixel_models_get_the_step_that_ends_nearest(make):
    synthesizer = make(step=None, probe=4, passes=2)
    ends = [
        synthesizer.learn(synthesizer.requests(4), s).losses.sqrt().mean() for s in (synthesizer.state["step"], *STEPS)
    ]
    assert ends[0] == min(ends)
    assert max(ends) > ends[0]
    assert make(step=None, passes=1).state["step"] == make("sd", step=None).state["step"] == 5.0
    assert make(step=0.25).state["step"] == 0.25


def test_what_fit_found_is_taken_over(make, data, classifier):
    synthesizer = make()
    state = {**synthesizer.state, "target": -1.25, "step": 0.5}
    again = Synthesizer(synthesizer.diffusion).fit(data, classifier, state=state)
    assert again.loss_.keywords == {"target": -1.25}
    assert again.state == state
    assert make(target=-3.0).state["target"] == -3.0
    assert make(loss="release").state["target"] == -5.0


def test_values_that_are_not_finite_fail_alone(make):
    synthesizer = make(step=1e38, passes=3)
    judge, calls = synthesizer.loss_, []

    def one_breaks(outputs):
        calls.append(len(outputs.logits))
        value = judge(outputs)
        return value * torch.tensor([float("inf")] + [0.0] * (len(value) - 1))

    synthesizer.loss_ = one_breaks
    outliers = by_id(synthesizer, synthesizer.requests(3))
    assert "not finite" in outliers[0].notes["failed"]
    assert outliers[1].image is not None
    assert outliers[2].image is not None


# The models


def test_an_inpainting_model_serves_every_synthesizer(sd, make, data, classifier):
    from outskirts.synth.dream import Synthesizer as Dream

    assert load_diffusion(sd).shape == (4, 8, 8)
    dream = Dream(sd, steps=2).fit(data, classifier)
    assert next(iter(dream(dream.requests(1)))).image.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "biggest"}, "give compressed, all or file:PATH"),
        ({"select": "all"}, "goes with select=compressed"),
        ({"select": "file:x.txt", "per_class": 100}, "give synth.per_class=none"),
        ({"per_class": 0}, "above 0"),
        ({"prompt": "a photo"}, "must hold"),
        ({"loss": "msp", "target": -3.0}, "leave target out"),
        ({"strength": 1.5}, "at most 1"),
        ({"passes": 0}, "passes"),
        ({"contexts": "text:sky"}, "is a pixel model"),
        ({"guidance_scale": 2.0}, "is a pixel model"),
        ({"kind": "sd", "contexts": None}, "no contexts, and"),
        ({"kind": "sd", "contexts": "text:an a"}, "names the class 'a'"),
        ({"kind": "missing"}, "no diffusion model 'missing'"),
    ],
)
def test_wrong_settings_are_one_line(make, settings, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        make(**settings)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (9, {"contexts": "text:an a"}, "names the class 'a'"),
        (9, {"contexts": {"a": ["sky"], "b": ["two bs"]}}, "of class 'b' holds 'two bs'"),
        (9, {"contexts": "text:sky", "synonyms": {"z": "y"}}, "synonyms of 'z', no class"),
        (4, {"contexts": "text:sky"}, "no in-painting model .its UNet reads 4 channels"),
    ],
)
def test_what_names_and_configurations_tell_is_told_before_anything_is_loaded(tmp_path, channels, settings, message):
    model = str(tiny_stable_diffusion(tmp_path, in_channels=channels))
    synthesizer = Synthesizer(model, **settings)
    with pytest.raises(OutskirtsError, match=message) as e:
        synthesizer.check({"vae": None}, ["a", "b"])
    assert "\n" not in str(e.value)
    assert not hasattr(synthesizer, "model")
    Synthesizer("random:inpaint", contexts="text:sky").check({"vae": None}, ["a", "b"])


def test_models_that_cannot_serve_are_one_line(make, sd, tmp_path, pixel):
    plain = str(tiny_stable_diffusion(tmp_path / "plain"))
    other = str(tiny_stable_diffusion(tmp_path / "other", in_channels=8))
    flow = Path(tiny_stable_diffusion(tmp_path / "flow", in_channels=9))
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (flow / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    text = {"contexts": WORDS, "prompt": "{context}"}
    for model, message in (
        (plain, "no in-painting model"),
        (other, "reads 8 channels"),
        (str(flow), "cannot start in its middle"),
    ):
        with pytest.raises(OutskirtsError, match=message) as e:
            make(model, **text)
        assert "\n" not in str(e.value)
    facts = Path(tiny_pixel(tmp_path / "pixel", classes=CLASSES)) / "outskirts.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "null_label": None}))
    with pytest.raises(OutskirtsError, match="no null class"):
        make(str(facts.parent))
