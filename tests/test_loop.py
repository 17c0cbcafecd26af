from pathlib import Path

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.loop import accelerator, augment, epoch_randomness, rate, require_same


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_augment_is_a_crop_of_the_padded_image():
    images = torch.rand(64, 3, 16, 16, generator=generator(1))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="reflect")
    for image, source in zip(augment(images, "flip-crop", generator()), padded, strict=True):
        crops = source.unfold(1, 16, 1).unfold(2, 16, 1)  # [3, 5, 5, 16, 16]
        found = (crops == image[:, None, None]).all(0).flatten(2).all(2).sum()
        found += (crops == image.flip(2)[:, None, None]).all(0).flatten(2).all(2).sum()
        assert found == 1


def test_shift_does_not_mirror_and_repeats_the_border():
    images = torch.rand(64, 3, 16, 16, generator=generator(1))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="replicate")
    moved = augment(images, "shift", generator())
    crops = padded.unfold(2, 16, 1).unfold(3, 16, 1)
    assert (crops == moved[:, :, None, None]).all(1).flatten(3).all(3).flatten(1).any(1).all()
    assert (moved != images).flatten(1).any(1).sum() > 30  # 24 of 25 are moved


def test_augment_draws_from_its_generator_only():
    images = torch.rand(8, 3, 8, 8, generator=generator(1))
    before = torch.get_rng_state()
    assert torch.equal(augment(images, "flip-crop", generator(3)), augment(images, "flip-crop", generator(3)))
    assert not torch.equal(augment(images, "flip-crop", generator(3)), augment(images, "flip-crop", generator(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert augment(images, "none", generator()) is images


def test_half_of_the_images_are_mirrored():
    ramp = torch.arange(8.0).expand(2000, 3, 8, 8)
    mirrored = augment(ramp, "flip-crop", generator()).diff(dim=3).mean((1, 2, 3)) < 0
    assert 0.45 < mirrored.float().mean() < 0.55


def test_rate_warms_up_and_follows_the_cosine():
    rates = [rate(i, 100, 0.1, last=1e-6, warmup=4) for i in range(101)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[52] == pytest.approx(1e-6 + (0.1 - 1e-6) / 2)
    assert rates[100] == pytest.approx(1e-6)


def test_epochs_have_their_own_randomness_and_leave_the_global_one():
    before = torch.get_rng_state()
    draws = []
    for epoch in (0, 1, 0):
        with epoch_randomness(5, epoch) as own:
            draws.append((torch.rand(3, generator=own), torch.rand(3)))
    assert torch.equal(draws[0][0], draws[2][0])
    assert torch.equal(draws[0][1], draws[2][1])
    assert not torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_field_that_differs_is_named(tmp_path):
    require_same({"a": [1, 2], "b": None}, {"a": (1, 2), "b": None}, tmp_path)
    for made, now, words in (
        (
            {"a": 1, "b": 2, "c": 3},
            {"a": 1, "c": 6, "b": 9},
            "c was 3, is 6; go back to that value, or use another folder",
        ),
        ({}, {"a": "x"}, 'a was not set, is "x"'),
        ({"a": None, "old": 1}, {"a": None}, "old was 1, is not set"),
        ({"images": "0" * 64}, {"images": "1" * 64}, 'images was "000000000000000..., is "111111111111111...;'),
    ):
        with pytest.raises(OutskirtsError) as e:
            require_same(made, now, tmp_path)
        assert words in str(e.value)
        assert "\n" not in str(e.value)
    with pytest.raises(OutskirtsError, match="delete it to start again"):
        require_same({"a": 1}, {"a": 2}, Path(__file__))


def test_precision_and_cpu_may_change_within_a_process():
    for device, precision in (("cpu", "fp32"), ("cpu", "bf16"), ("auto", "bf16"), ("cpu", "bf16"), ("auto", "fp32")):
        accel = accelerator(device, precision)
        assert accel.mixed_precision == {"fp32": "no", "bf16": "bf16"}[precision]
        assert accel.state._cpu == (device == "cpu")
        assert accel.device.type == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")


def test_a_device_that_cannot_be_trained_on_is_an_error():
    with pytest.raises(OutskirtsError, match="'cuda:77' is not available here"):
        accelerator("cuda:77")
    with pytest.raises(OutskirtsError, match="cannot train on device 'meta': this process trains on "):
        accelerator("meta")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_gpu_that_is_named_is_the_one_that_trains():
    for device in ("cuda:1", "cuda:0"):
        assert torch.zeros(1, device=accelerator(device).device).device == torch.device(device)
