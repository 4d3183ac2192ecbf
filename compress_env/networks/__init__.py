"""The networks of the papers, by name, and any other by ``module.path:factory``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import nn

from . import cifar_resnet, mobilenet, shufflenet, torchvision_networks, vgg

__all__ = ["NETWORKS", "NetworkSpec", "build_network"]


@dataclass(frozen=True)
class NetworkSpec:
    """What is known about a network before it is built.

    Attributes:
        name: the word for it on the command line and in ``gym.make(network=...)``.
        title: its part of the environment's id: ``JointPruneQuant-<title>-v0``.
        factory: makes it, untrained, for a number of classes; an importable function.
        image_size: side in pixels of the images it is made for (smaller ones work as well).
        default_dataset: the data set of its environment id when none is named.
        source: the paper it comes from.
    """

    name: str
    title: str
    factory: Callable[[int], nn.Module]
    image_size: int
    default_dataset: str
    source: str


def _small(name: str, title: str, factory: Callable[[int], nn.Module], source: str) -> NetworkSpec:
    return NetworkSpec(name, title, factory, 32, "digits", source)


def _large(name: str, title: str, factory: Callable[[int], nn.Module], source: str) -> NetworkSpec:
    return NetworkSpec(name, title, factory, 224, "imagenet", source)


_RESNET = "He et al., Deep Residual Learning for Image Recognition, 2016"
_VGG = "Simonyan and Zisserman, Very Deep Convolutional Networks, 2015"
_MOBILE1 = "Howard et al., MobileNets, 2017"
_MOBILE2 = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018"
_SHUFFLE1 = "Zhang et al., ShuffleNet, 2018"
_SHUFFLE2 = "Ma et al., ShuffleNet V2, 2018"

NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        _small("resnet20", "ResNet20", cifar_resnet.resnet20, _RESNET),
        _small("resnet32", "ResNet32", cifar_resnet.resnet32, _RESNET),
        _small("resnet44", "ResNet44", cifar_resnet.resnet44, _RESNET),
        _small("resnet56", "ResNet56", cifar_resnet.resnet56, _RESNET),
        _small("resnet110", "ResNet110", cifar_resnet.resnet110, _RESNET),
        _small("vgg16", "VGG16", vgg.vgg16, _VGG),
        _small("mobilenet_v1", "MobileNetV1", mobilenet.mobilenet_v1, _MOBILE1),
        _small("mobilenet_v2", "MobileNetV2", mobilenet.mobilenet_v2, _MOBILE2),
        _small("shufflenet_v1", "ShuffleNetV1", shufflenet.shufflenet_v1, _SHUFFLE1),
        _small("shufflenet_v2", "ShuffleNetV2", shufflenet.shufflenet_v2, _SHUFFLE2),
        _large(
            "resnet18_imagenet", "ResNet18ImageNet", torchvision_networks.resnet18_imagenet, _RESNET
        ),
        _large(
            "resnet50_imagenet", "ResNet50ImageNet", torchvision_networks.resnet50_imagenet, _RESNET
        ),
        _large("vgg16_imagenet", "VGG16ImageNet", torchvision_networks.vgg16_imagenet, _VGG),
        _large(
            "mobilenet_v1_imagenet",
            "MobileNetV1ImageNet",
            mobilenet.mobilenet_v1_imagenet,
            _MOBILE1,
        ),
        _large(
            "mobilenet_v2_imagenet",
            "MobileNetV2ImageNet",
            torchvision_networks.mobilenet_v2_imagenet,
            _MOBILE2,
        ),
        _large(
            "shufflenet_v2_imagenet",
            "ShuffleNetV2ImageNet",
            torchvision_networks.shufflenet_v2_imagenet,
            _SHUFFLE2,
        ),
    )
}
"""Every network with an environment id of its own, by name."""


def build_network(name: str, num_classes: int) -> nn.Module:
    """An untrained network for RGB images.

    Args:
        name: a key of :data:`NETWORKS`, or ``"module.path:factory"``: a callable that takes
            ``num_classes`` (or nothing) and returns an ``nn.Module``. The module is looked up
            where Python imports from, then in the current folder.
        num_classes: outputs of the last layer, at least 2.

    Raises:
        ValueError: the name is not known, cannot be imported or does not give a network.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if ":" in name:
        return _build_imported(name, num_classes)
    if name not in NETWORKS:
        raise ValueError(
            f"network must be one of {', '.join(NETWORKS)} or 'module.path:factory', got {name!r}"
        )
    return NETWORKS[name].factory(num_classes)


def _build_imported(name: str, num_classes: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    factory = getattr(_import(module_name, name), attribute, None)
    if not callable(factory):
        raise ValueError(f"network {name!r}: {module_name} has no callable {attribute!r}")
    try:
        network = factory(**_class_argument(factory, num_classes))
    except Exception as error:  # the user's own code
        raise ValueError(f"network {name!r}: calling the factory failed: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name!r} must give an nn.Module, got {type(network).__name__}")
    return network


def _class_argument(factory: Callable[..., object], num_classes: int) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters.values()
    takes_it = any(
        parameter.name == "num_classes" or parameter.kind is inspect.Parameter.VAR_KEYWORD
        for parameter in parameters
    )
    return {"num_classes": num_classes} if takes_it else {}


def _import(module_name: str, name: str) -> ModuleType:
    folder = os.getcwd()
    # An installed command does not import from the current folder, `python -m` does.
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        return importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"network {name!r}: cannot import {module_name!r}: {error}") from error
    finally:
        if added:
            sys.path.remove(folder)
