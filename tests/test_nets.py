import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from outskirts.errors import OutskirtsError
from outskirts.nets import STAGES, small_resnet


@pytest.mark.parametrize("arch", STAGES)
@pytest.mark.parametrize("side", [8, 15, 32])
def test_any_size_gives_logits(arch, side):
    net = small_resnet(arch, 7).eval()
    assert net(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_resnet18_has_the_published_size():
    # He et al. with a 3x3 stem: convolutions, BatchNorm pairs and the last layer, counted by hand
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    convs = 3 * 64 * 9 + sum(9 * (a * b + 3 * b * b) + (a * b if a != b else 0) for a, b in stages)
    norms = 2 * (64 + sum(4 * b + (b if a != b else 0) for a, b in stages))
    assert sum(p.numel() for p in small_resnet("resnet18", 10).parameters()) == convs + norms + 512 * 10 + 10


def test_cost_and_size_as_documented():
    def macs(arch, side):
        with FlopCounterMode(display=False) as counter:
            small_resnet(arch, 10)(torch.rand(1, 3, side, side))
        return counter.get_total_flops() / 2e6

    assert 540 < macs("resnet18", 32) < 570
    assert 45 < macs("resnet_small", 32) < 52
    assert 0.7 < macs("resnet_tiny", 8) < 0.9
    assert sum(p.numel() for p in small_resnet("resnet_tiny", 7).parameters()) < 80_000


def test_unknown_name_is_one_line():
    with pytest.raises(OutskirtsError, match="did you mean 'resnet18'"):
        small_resnet("resnet8", 10)
