"""Training the small diffusion model: it learns, resumes exactly, and writes a folder that diffusers opens."""

import json

import pytest
import torch
from PIL import Image

from outskirts import fit_diffusion as module
from outskirts import fit_verbs
from outskirts.data import Images
from outskirts.diffuse import Noise, sample
from outskirts.errors import OutskirtsError
from outskirts.fit_diffusion import fit_diffusion
from outskirts.guide import cfg, clip
from outskirts.load_diffusion import load_diffusion
from outskirts.loop import accelerator
from outskirts.new_diffusion import codec_of
from outskirts.recipe import DiffusionSettings
from tiny import tiny_pixel


def two_tones(n=64):
    """Class 0 is dark, class 1 is light."""
    labels = torch.arange(n) % 2
    g = torch.Generator().manual_seed(0)
    pixels = 60 + 130 * labels[:, None, None, None] + torch.randint(-20, 21, (n, 1, 4, 4), generator=g)
    return Images("tones", ["dark", "light"], labels, pixels.to(torch.uint8).expand(-1, 3, -1, -1).contiguous())


def settings(**kwargs):
    return DiffusionSettings(**{"channels": (32,), "steps": 250, "batch_size": 32, "lr": 5e-3, "ema": 0.98} | kwargs)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_it_learns_its_classes(tmp_path, kind):
    fit_diffusion(two_tones(), tmp_path, settings(prediction_type=kind, steps=100), progress=False)
    model = load_diffusion(str(tmp_path))
    cond = model.condition(labels=[0] * 16 + [1] * 16)
    x = sample(clip(cfg(model, *cond, 1.0)), Noise(range(32), model.shape)(), model.levels(10))
    dark, light = model.decode(x).mean((1, 2, 3)).chunk(2)
    assert dark.mean().item() == pytest.approx(60 / 255, abs=0.1)
    assert light.mean().item() == pytest.approx(190 / 255, abs=0.1)
    assert {p.name for p in tmp_path.iterdir()} >= {"unet", "scheduler", "model_index.json", "loss.png", "log.json"}


def test_a_killed_training_continues_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    few = settings(steps=10)
    whole = fit_diffusion(two_tones(), tmp_path / "whole", few, progress=False)

    average, steps = module._average, []

    def dies_at_seven(*args):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        average(*args)

    monkeypatch.setattr(module, "_average", dies_at_seven)
    with pytest.raises(KeyboardInterrupt):
        fit_diffusion(two_tones(), tmp_path / "torn", few, progress=False)
    monkeypatch.setattr(module, "_average", average)
    torn = fit_diffusion(two_tones(), tmp_path / "torn", few, progress=False)
    for a, b in zip(whole.unet.parameters(), torn.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_settings_do_not_continue(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(module, "save", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit_diffusion(two_tones(), tmp_path, settings(steps=3), progress=False)
    with pytest.raises(OutskirtsError, match=r"checkpoint.pt .*: steps was 3, is 4; .* or delete it"):
        fit_diffusion(two_tones(), tmp_path, settings(steps=4), progress=False)
    with pytest.raises(OutskirtsError, match=r"images was .*, is "):
        fit_diffusion(two_tones(32), tmp_path, settings(steps=3), progress=False)


def test_a_finished_folder_is_loaded_or_refused_and_never_overwritten(tmp_path):
    first = fit_diffusion(two_tones(), tmp_path, settings(steps=2), progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = fit_diffusion(two_tones(), tmp_path, settings(steps=2), progress=False)
    for a, b in zip(first.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(a.half(), b.half())
    with pytest.raises(OutskirtsError, match="steps was 2, is 3; go back to that value, or use another folder"):
        fit_diffusion(two_tones(), tmp_path, settings(steps=3), progress=False)
    with pytest.raises(OutskirtsError, match="images was "):
        fit_diffusion(two_tones(32), tmp_path, settings(steps=2), progress=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    (tmp_path / "outskirts.json").unlink()
    with pytest.raises(OutskirtsError, match="channels was not set, is "):
        fit_diffusion(two_tones(), tmp_path, settings(steps=2), progress=False)


@pytest.mark.parametrize("flip", [False, True])
def test_a_step_draws_the_whole_batch_from_its_own_stream(flip):
    g = torch.Generator().manual_seed(7 * 1_000_003 + 3)
    expected = [torch.randint(64, (32,), generator=g)]
    expected.append(torch.rand(32, generator=g) < 0.5 if flip else torch.zeros(32, dtype=torch.bool))
    expected += [torch.randn(32, 3, 4, 4, generator=g), torch.randint(1000, (32,), generator=g)]
    expected.append(torch.rand(32, generator=g) < 0.1)
    drawn = module.draw(settings(seed=7, flip=flip), 3, 64, (3, 4, 4), 1000)
    for a, b in zip(drawn, expected, strict=True):
        assert torch.equal(a, b)
    halves = [drawn[2][rank::2] for rank in range(2)]  # as two processes share them: no noise twice
    assert len(torch.cat(halves).unique(dim=0)) == 32


def test_bfloat16_after_an_accelerator_in_single_precision(tmp_path):
    accelerator("cpu", "fp32")
    fit_diffusion(two_tones(), tmp_path, settings(steps=1, precision="bf16"), progress=False)
    assert load_diffusion(str(tmp_path)).classes == ("dark", "light")


@pytest.mark.parametrize("verb", ["fit_classifier", "fit_diffusion"])
def test_the_verbs_name_the_option_that_brings_images_to_one_size(tmp_path, verb):
    for i, (name, side) in enumerate((("a", 8), ("b", 9))):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (side, side), (i, 0, 0)).save(tmp_path / "in" / name / "x.png")
    options = {"classes": None, "size": (), "device": "cpu", "progress": False}
    with pytest.raises(OutskirtsError, match="--size H W"):
        getattr(fit_verbs, verb)(f"folder:{tmp_path}/in", str(tmp_path / "out"), [], **options)


def test_the_verb_takes_one_class_and_refuses_images_without_labels(tmp_path):
    options = {"size": (), "device": "cpu", "progress": False}
    fields = ["steps=1", "channels=8", "batch_size=4"]
    fit_verbs.fit_diffusion("digits", str(tmp_path / "one"), fields, classes="3", **options)
    assert load_diffusion(str(tmp_path / "one")).classes == ("3",)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "x.png")
    with pytest.raises(OutskirtsError, match="has no labels") as e:
        fit_verbs.fit_diffusion(f"folder:{tmp_path}/in", str(tmp_path / "none"), fields, classes=None, **options)
    assert "classifier" not in str(e.value)


def test_codec_model_works_on_the_grid(tmp_path):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=g, dtype=torch.uint8)
    images = Images("noise", ["a"], torch.zeros(40, dtype=torch.long), pixels)
    fit_diffusion(
        images, tmp_path, settings(steps=2, codec="patch-pca", patch=2, codec_components=6, flip=True), progress=False
    )
    model = load_diffusion(str(tmp_path))
    assert model.shape == (6, 4, 4)
    assert model.image_size == (8, 8)
    assert not model.clips
    assert model.decode(torch.zeros(1, 6, 4, 4)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("side", "grey", "device", "coded"), [(16, False, "cpu", True), (16, False, "cuda", False), (16, True, "cpu", False), (8, False, "cpu", False), (18, False, "cpu", False)])  # fmt: skip
def test_natural_images_get_the_codec_on_a_cpu(side, grey, device, coded):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1 if grey else 3, side, side), generator=g, dtype=torch.uint8).expand(
        -1, 3, -1, -1
    )
    codec, found_grey = codec_of(pixels, DiffusionSettings(), device)
    assert (codec is not None) == coded
    assert found_grey == grey


def test_the_folder_is_diffusers(tmp_path):
    from diffusers import DDIMPipeline

    tiny_pixel(tmp_path)
    assert DDIMPipeline.from_pretrained(tmp_path).unet.config.num_class_embeds == 4
    assert json.loads((tmp_path / "outskirts.json").read_text())["null_label"] == 3


def test_wrong_input(tmp_path):
    with pytest.raises(OutskirtsError, match="cannot be halved"):
        fit_diffusion(two_tones(), tmp_path, settings(channels=(8, 8, 8, 8)), progress=False)


@pytest.mark.parametrize("codec", ["none", "patch-pca"])
def test_start_goes_on_from_the_weights_and_the_codec_of_another_model(tmp_path, codec):
    g = torch.Generator().manual_seed(0)
    first = Images("a", ["x", "y"], torch.arange(40) % 2, torch.randint(0, 256, (40, 3, 8, 8), generator=g).byte())
    other = Images("b", ["x", "y"], torch.arange(40) % 2, first.pixels // 2)
    few = {"steps": 3, "codec": codec, "patch": 2, "codec_components": 6, "channels": (8, 8)}
    fit_diffusion(first, tmp_path / "first", settings(**few), progress=False)
    still = settings(**few | {"lr": 1e-12, "start": str(tmp_path / "first"), "seed": 5})
    fit_diffusion(other, tmp_path / "second", still, progress=False)
    a, b = load_diffusion(str(tmp_path / "first")), load_diffusion(str(tmp_path / "second"))
    for name, weight in a.unet.state_dict().items():
        torch.testing.assert_close(b.unet.state_dict()[name], weight, msg=name)
    if codec != "none":
        torch.testing.assert_close(b.codec.basis, a.codec.basis)
    wider = settings(**few | {"channels": (16, 16), "start": str(tmp_path / "first")})
    with pytest.raises(OutskirtsError, match=r"conv_in.weight is \(8.*where these settings.*\(16"):
        fit_diffusion(first, tmp_path / "third", wider, progress=False)
