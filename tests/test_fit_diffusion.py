"""Training the small diffusion model: it learns, resumes exactly, and writes a folder that diffusers opens."""

import json

import pytest
import torch

from outskirts import fit_diffusion as module
from outskirts.data import Images
from outskirts.denoisers import load_diffusion
from outskirts.diffuse import Noise, sample
from outskirts.errors import OutskirtsError
from outskirts.fit_diffusion import fit_diffusion
from outskirts.guide import cfg, clip
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
    fit_diffusion(two_tones(), tmp_path, settings(prediction_type=kind), progress=False)
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
    with pytest.raises(OutskirtsError, match="was made with"):
        fit_diffusion(two_tones(), tmp_path, settings(steps=4), progress=False)


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


def test_the_folder_is_diffusers(tmp_path):
    from diffusers import DDIMPipeline

    tiny_pixel(tmp_path)
    assert DDIMPipeline.from_pretrained(tmp_path).unet.config.num_class_embeds == 4
    assert json.loads((tmp_path / "outskirts.json").read_text())["null_label"] == 3


def test_wrong_input(tmp_path):
    with pytest.raises(OutskirtsError, match="cannot be halved"):
        fit_diffusion(two_tones(), tmp_path, settings(channels=(8, 8, 8, 8)), progress=False)
