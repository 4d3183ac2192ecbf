"""The networks that are measured and tested: those with an id of their own, and torchvision's.

This is the one list; the tests and `benchmarks.networks` both read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.models
from torch import nn

from compress_env.networks import NETWORKS

NUM_CLASSES = 10


@dataclass(frozen=True)
class ListedNetwork:
    """A network to measure or test.

    Attributes:
        name: what it is called in tables and test ids.
        factory: makes it for a number of classes, untrained.
        image_size: side of the images it is made for.
        small_image_size: the smallest side that is good enough for a test.
    """

    name: str
    factory: Callable[[int], nn.Module]
    image_size: int
    small_image_size: int

    def build(self, num_classes: int = NUM_CLASSES) -> nn.Module:
        """The network in evaluation mode, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.factory(num_classes).eval()


def _torchvision(name: str, image_size: int = 224, small: int = 32) -> ListedNetwork:
    # These two announce that they will change how they are initialised unless told.
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

    def factory(num_classes: int) -> nn.Module:
        network: nn.Module = getattr(torchvision.models, name)(
            weights=None, num_classes=num_classes, **more
        )
        return network

    return ListedNetwork(name, factory, image_size, small)


LISTED: dict[str, ListedNetwork] = {
    listed.name: listed
    for listed in (
        *(
            ListedNetwork(
                spec.name, spec.factory, spec.image_size, 16 if spec.image_size == 32 else 32
            )
            for spec in NETWORKS.values()
        ),
        _torchvision("densenet121"),
        _torchvision("googlenet"),
        _torchvision("inception_v3", 299, 80),
        _torchvision("regnet_y_400mf"),
        _torchvision("regnet_x_400mf"),
        _torchvision("resnext50_32x4d"),
        _torchvision("efficientnet_b0"),
        _torchvision("mobilenet_v3_small"),
        _torchvision("mobilenet_v3_large"),
        _torchvision("convnext_tiny"),
        _torchvision("squeezenet1_1"),
        _torchvision("mnasnet1_0"),
    )
}
"""The networks by name."""
