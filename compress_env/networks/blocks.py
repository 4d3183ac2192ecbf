"""What the networks have in common."""

from __future__ import annotations

from torch import nn


def conv_bn(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution without bias that keeps the size but for its stride, and its BatchNorm."""
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]
