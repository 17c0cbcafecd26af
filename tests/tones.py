"""Noisy images whose grey level says their class, and an untrained classifier of them: what synthesizers are tested on."""

import torch

from outskirts.images import Images
from outskirts.models import Classifier
from outskirts.nets import small_resnet

CLASSES = ["a", "b", "c"]


def tones(n: int) -> Images:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    pixels = (60 * labels[:, None, None, None] + torch.randint(0, 80, (n, 3, 8, 8), generator=g)).to(torch.uint8)
    return Images("tones", CLASSES, labels, pixels)


def untrained() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = small_resnet("resnet_tiny", 3)
    return Classifier(net, classes=CLASSES, size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3).frozen()
