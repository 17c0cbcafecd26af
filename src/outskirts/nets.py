"""Small residual networks for small images, as CIFAR papers use them: a 3x3 stem of stride 1 and no max-pooling.

He et al. 2016 (arXiv 1512.03385), basic blocks. Images of any size; the penultimate features are the globally averaged
last stage. Multiply-accumulates below are per 32x32 image.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean

STAGES = {
    "resnet18": ((64, 128, 256, 512), 2),  # 11.2 M parameters, 0.56 G
    "resnet_small": ((32, 64, 128), 1),  # 0.31 M parameters, 49 M
    "resnet_tiny": ((16, 32, 64), 1),  # 0.08 M parameters, 12 M; 0.8 M on the 8x8 digits
}
"""Width of each stage, and basic blocks in each."""


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.skip = nn.Identity()
        if stride != 1 or width_in != width:
            self.skip = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c2 h2 w2"]:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = nn.Sequential(*self._blocks(widths, blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _blocks(widths: tuple[int, ...], blocks: int):
        for width_in, width in pairwise((widths[0], *widths)):
            yield BasicBlock(width_in, width, stride=1 if width_in == width else 2)
            for _ in range(blocks - 1):
                yield BasicBlock(width, width, stride=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        return self.fc(self.pool(self.stages(self.stem(images))).flatten(1))


def small_resnet(arch: str, num_classes: int) -> ResNet:
    """A randomly initialised network (torch's global generator) for normalised images [B, 3, H, W] -> logits [B, K].

    `arch` is one of `resnet18`, `resnet_small`, `resnet_tiny`. Raises OutskirtsError for another name.
    """
    if arch not in STAGES:
        raise OutskirtsError(f"no network {arch!r}{did_you_mean(arch, STAGES)}; known: {', '.join(STAGES)}")
    widths, blocks = STAGES[arch]
    return ResNet(widths, blocks, num_classes)
