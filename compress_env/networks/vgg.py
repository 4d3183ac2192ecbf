"""VGG-16 with BatchNorm for small images (Simonyan and Zisserman, 2015, configuration D).

The version used on CIFAR: thirteen convolutions and a single linear layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVGG(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, each closed by a 2x2 max pooling."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        in_channels = 3
        for stage in stages:
            for channels in stage:
                modules.append(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
                modules.append(nn.BatchNorm2d(channels))
                modules.append(nn.ReLU())
                in_channels = channels
            # ceil_mode changes nothing at 32x32 and keeps one pixel of an 8x8 image to the end.
            modules.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*modules)
        self.linear = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Float32 images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def vgg16(num_classes: int = 10) -> CifarVGG:
    """VGG-16 with BatchNorm for small images: 14.7 M parameters, 313 M MACs at 32x32."""
    return CifarVGG(_STAGES, num_classes)
