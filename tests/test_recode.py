"""A pass through a lossy format changes little and is asked for by name."""

import pytest
import torch

from outskirts.data import load, split
from outskirts.errors import OutskirtsError
from outskirts.fit_classifier import fit_classifier
from outskirts.recipe import ClassifierSettings, Recipe
from outskirts.recode import recode
from outskirts.run import run
from outskirts.store import Store

CODEC = "jpeg:20"


@pytest.mark.parametrize("codec", ["jpeg:75", "webp:80", "avif:58"])
def test_recoding_costs_a_little_and_keeps_the_shape(codec):
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([4 * x + 3 * y, 7 * x, 200 - 5 * y]).clamp(0, 255).to(torch.uint8)
    again = recode(image, codec)
    error = (again.float() - image.float()).abs()
    assert again.shape == image.shape
    assert error.max() > 0
    assert error.mean() < 6


@pytest.mark.parametrize("codec", ["png:9", "jpeg", "jpeg:0", "jpeg:high"])
def test_an_unknown_codec_is_refused(codec):
    with pytest.raises(OutskirtsError, match="accepted: jpeg:QUALITY"):
        recode(torch.zeros(3, 4, 4, dtype=torch.uint8), codec)


@pytest.fixture
def made(tmp_path):
    """Pixels of the outliers that a synthesizer makes in a run, whose ID images were in a lossy format or not."""
    settings = ClassifierSettings(arch="resnet_tiny", epochs=1, augment="none")
    parts = split(load("digits[0-1]"), (0.8, 0.2))
    fit_classifier(*parts, tmp_path / "classifier", settings, device="cpu", progress=False)

    def make(name, codec=CODEC, **options):
        fields = {"id": "digits[0-1]", "classifier": str(tmp_path / "classifier"), "n_outliers": 6, "recode": codec}
        recipe = Recipe("r", synth=name, synth_with=options, stages=("synth",), **fields)
        folder = tmp_path / f"{name}-{codec}-{options.get('recode')}"
        return Store(run(recipe, folder, progress=False).folder / "3-synth/store").images()[1].pixels

    return make


def test_what_is_generated_passes_through_the_format_once(made):
    plain, coded = made("noise", None), made("noise")
    assert torch.equal(coded, torch.stack([recode(x, CODEC) for x in plain]))
    assert not torch.equal(coded, plain)


@pytest.mark.parametrize("name", ["shuffle", "mix"])
def test_what_is_made_of_the_pixels_of_id_images_is_left_as_it_is(made, name):
    assert torch.equal(made(name), made(name, None))


def test_real_outliers_are_taken_as_they_are_or_brought_into_a_format_they_never_were_in(made):
    real = load("digits[7-9]").pixels[:6]
    assert torch.equal(made("real", images="digits[7-9]"), real)
    coded = torch.stack([recode(x, CODEC) for x in real])
    assert torch.equal(made("real", images="digits[7-9]", recode=True), coded)
