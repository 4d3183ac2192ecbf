"""Torchvision's networks for 224x224 images, built without weights.

Plain functions rather than torchvision's own, so that the number of classes is the first
argument everywhere and that importing this package does not import torchvision.
"""

from __future__ import annotations

import importlib

from torch import nn


def _build(name: str, num_classes: int) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    network: nn.Module = getattr(models, name)(num_classes=num_classes)
    return network


def resnet18_imagenet(num_classes: int = 1000) -> nn.Module:
    """ResNet-18."""
    return _build("resnet18", num_classes)


def resnet50_imagenet(num_classes: int = 1000) -> nn.Module:
    """ResNet-50."""
    return _build("resnet50", num_classes)


def vgg16_imagenet(num_classes: int = 1000) -> nn.Module:
    """VGG-16 with BatchNorm."""
    return _build("vgg16_bn", num_classes)


def mobilenet_v2_imagenet(num_classes: int = 1000) -> nn.Module:
    """MobileNet-v2."""
    return _build("mobilenet_v2", num_classes)


def shufflenet_v2_imagenet(num_classes: int = 1000) -> nn.Module:
    """ShuffleNet-v2 1x."""
    return _build("shufflenet_v2_x1_0", num_classes)
