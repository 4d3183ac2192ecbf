"""What every engine must give, and what the environment asks of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch

from compress_env.plan import CompressionPlan


class Engine(Protocol):
    """Something that can run the network that a plan describes."""

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs, float32 (images, classes), for normalised images (images, C, H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outputs of a compressed network on labelled images.

    Attributes:
        logits: float32 (images, classes), on the CPU.
        labels: int64 (images,), on the CPU.
    """

    logits: torch.Tensor
    labels: torch.Tensor

    @property
    def predictions(self) -> torch.Tensor:
        """The class with the largest output, int64 (images,)."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0 to 1."""
        return float((self.predictions == self.labels).double().mean())


class Evaluator:
    """Evaluates plans on one set of images, and remembers the latest ones.

    Args:
        engine: what runs the networks.
        images: float32 (images, channels, height, width), normalised, on the engine's device.
        labels: int64 (images,).
        remembered: how many evaluations are kept, so that a plan seen again costs nothing.
    """

    def __init__(
        self, engine: Engine, images: torch.Tensor, labels: torch.Tensor, remembered: int = 1024
    ) -> None:
        self.engine = engine
        self.images = images
        self.labels = labels.cpu()
        self.remembered = remembered
        self._known: OrderedDict[bytes, Evaluation] = OrderedDict()

    def evaluate(self, plan: CompressionPlan) -> Evaluation:
        """Run a plan's network on the images."""
        key = plan.key()
        known = self._known.get(key)
        if known is None:
            logits = self.engine.logits(plan, self.images).detach().float().cpu()
            known = Evaluation(logits, self.labels)
            self._known[key] = known
            if len(self._known) > self.remembered:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known
