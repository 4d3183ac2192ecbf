"""MobileNet-v1 (Howard et al., 2017) and MobileNet-v2 (Sandler et al., 2018).

For small images the first convolution (v1, v2) and the second stage (v2) have stride 1 instead
of 2; nothing else differs from the papers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress_env.networks.blocks import conv_bn

# (output channels, stride) of every depthwise-separable block.
_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# (expansion, output channels, blocks, stride of the first block) of every stage.
_V2_CIFAR_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


class MobileNetV1(nn.Module):
    """A 3x3 convolution followed by thirteen depthwise-separable blocks.

    Args:
        num_classes: outputs of the linear layer.
        stem_stride: stride of the first convolution: 2 for 224x224 images, 1 for small ones.
    """

    def __init__(self, num_classes: int, stem_stride: int) -> None:
        super().__init__()
        modules = [*conv_bn(3, 32, 3, stem_stride), nn.ReLU()]
        in_channels = 32
        for channels, stride in _V1_BLOCKS:
            modules += [*conv_bn(in_channels, in_channels, 3, stride, in_channels), nn.ReLU()]
            modules += [*conv_bn(in_channels, channels, 1), nn.ReLU()]
            in_channels = channels
        self.features = nn.Sequential(*modules)
        self.linear = nn.Linear(in_channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; added to the input where the shapes allow it."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        modules: list[nn.Module] = []
        if expansion != 1:
            modules += [*conv_bn(in_channels, hidden, 1), nn.ReLU6()]
        modules += [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        modules += conv_bn(hidden, channels, 1)
        self.branch = nn.Sequential(*modules)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Float32 features (N, C, H, W) to the next ones."""
        out: Tensor = self.branch(x)
        return x + out if self.residual else out


class CifarMobileNetV2(nn.Module):
    """MobileNet-v2 with a total stride of 8."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = [*conv_bn(3, 32, 3), nn.ReLU6()]
        in_channels = 32
        for expansion, channels, blocks, stride in _V2_CIFAR_STAGES:
            for block in range(blocks):
                modules.append(
                    InvertedResidual(in_channels, channels, stride if block == 0 else 1, expansion)
                )
                in_channels = channels
        modules += [*conv_bn(in_channels, 1280, 1), nn.ReLU6()]
        self.features = nn.Sequential(*modules)
        self.linear = nn.Linear(1280, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def mobilenet_v1(num_classes: int = 10) -> MobileNetV1:
    """MobileNet-v1 for small images (first convolution with stride 1)."""
    return MobileNetV1(num_classes, stem_stride=1)


def mobilenet_v1_imagenet(num_classes: int = 1000) -> MobileNetV1:
    """MobileNet-v1 for 224x224 images: 4.2 M parameters and 569 M MACs."""
    return MobileNetV1(num_classes, stem_stride=2)


def mobilenet_v2(num_classes: int = 10) -> CifarMobileNetV2:
    """MobileNet-v2 for small images."""
    return CifarMobileNetV2(num_classes)
