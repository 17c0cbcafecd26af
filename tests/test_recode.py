"""A pass through a lossy format changes little and is asked for by name."""

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.recode import recode


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
