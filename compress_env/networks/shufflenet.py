"""ShuffleNet-v1 (Zhang et al., 2018) and ShuffleNet-v2 (Ma et al., 2018) for small images.

The stem is a 3x3 convolution with stride 1 and there is no max pooling after it; the rest is as
in the papers, v1 with three groups, both at width 1x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress_env.networks.blocks import conv_bn

_STAGE_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Transpose the channels of ``x`` (N, C, H, W), seen as a (groups, C / groups) table."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added or concatenated to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        # A stride-2 unit concatenates its input, so its branch makes only the rest.
        branch_channels = channels - in_channels if stride == 2 else channels
        hidden = channels // 4
        # The stem has too few channels to be divided (section 3.2 of the paper).
        first_groups = 1 if in_channels == _STEM_CHANNELS else groups
        self.compress = nn.Sequential(*conv_bn(in_channels, hidden, 1, groups=first_groups))
        self.depthwise = nn.Sequential(*conv_bn(hidden, hidden, 3, stride, groups=hidden))
        self.expand = nn.Sequential(*conv_bn(hidden, branch_channels, 1, groups=groups))
        self.stride = stride
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Float32 features (N, C, H, W) to the next ones."""
        out = F.relu(self.compress(x))
        out = channel_shuffle(out, self.groups)
        out = self.expand(self.depthwise(out))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), out), 1))
        return F.relu(x + out)


class CifarShuffleNetV1(nn.Module):
    """Stages of 240, 480 and 960 channels after a stem of 24, each halving the resolution."""

    def __init__(self, num_classes: int, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, _STEM_CHANNELS, 3), nn.ReLU())
        units: list[nn.Module] = []
        in_channels = _STEM_CHANNELS
        for channels, blocks in zip((240, 480, 960), _STAGE_BLOCKS, strict=True):
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                units.append(ShuffleUnitV1(in_channels, channels, stride, groups))
                in_channels = channels
        self.units = nn.Sequential(*units)
        self.linear = nn.Linear(in_channels, num_classes)
        # With PyTorch's smaller default, short trainings of grouped convolutions stall.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.units(self.stem(x)), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


class ShuffleUnitV2(nn.Module):
    """Half of the channels passes untouched, the other half is filtered; then a shuffle."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        branch_in = in_channels if stride == 2 else half
        self.branch = nn.Sequential(
            *conv_bn(branch_in, half, 1),
            nn.ReLU(),
            *conv_bn(half, half, 3, stride, groups=half),
            *conv_bn(half, half, 1),
            nn.ReLU(),
        )
        self.stride = stride
        if stride == 2:
            self.shortcut = nn.Sequential(
                *conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
                *conv_bn(in_channels, half, 1),
                nn.ReLU(),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Float32 features (N, C, H, W) to the next ones."""
        if self.stride == 2:
            out = torch.cat((self.shortcut(x), self.branch(x)), 1)
        else:
            kept, filtered = x.chunk(2, 1)
            out = torch.cat((kept, self.branch(filtered)), 1)
        return channel_shuffle(out, 2)


class CifarShuffleNetV2(nn.Module):
    """Stages of 116, 232 and 464 channels and a last 1x1 convolution to 1024."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, _STEM_CHANNELS, 3), nn.ReLU())
        units: list[nn.Module] = []
        in_channels = _STEM_CHANNELS
        for channels, blocks in zip((116, 232, 464), _STAGE_BLOCKS, strict=True):
            for block in range(blocks):
                units.append(ShuffleUnitV2(in_channels, channels, 2 if block == 0 else 1))
                in_channels = channels
        self.units = nn.Sequential(*units)
        self.last = nn.Sequential(*conv_bn(in_channels, 1024, 1), nn.ReLU())
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 images (N, 3, H, W) to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.last(self.units(self.stem(x))), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def shufflenet_v1(num_classes: int = 10) -> CifarShuffleNetV1:
    """ShuffleNet-v1 1x with three groups, for small images."""
    return CifarShuffleNetV1(num_classes)


def shufflenet_v2(num_classes: int = 10) -> CifarShuffleNetV2:
    """ShuffleNet-v2 1x for small images."""
    return CifarShuffleNetV2(num_classes)
