"""What every engine must give, and what the environment asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from compress_env.allocator import hand_back_freed_memory
from compress_env.evaluation.cache import BoundedCache, state_of, version
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan

# New plans between two looks for memory to hand back.
_PLANS_BETWEEN_RETURNS = 250


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

    What it remembers holds for the images and weights as they were then. That weights changed is
    seen where the engine has a layer graph as its attribute `graph`, as ours have.

    Args:
        engine: what runs the networks.
        images: float32 (images, channels, height, width), normalised, on the engine's device.
        labels: int64 (images,).
        cache_bytes: memory for evaluations, so that a plan seen again costs nothing; 0 for none.
    """

    def __init__(
        self, engine: Engine, images: torch.Tensor, labels: torch.Tensor, cache_bytes: int = 1 << 26
    ) -> None:
        self.engine = engine
        self.images = images
        self.labels = labels.cpu()
        self._known: BoundedCache[Evaluation] = BoundedCache(cache_bytes)
        self._plans = 0

    def evaluate(self, plan: CompressionPlan) -> Evaluation:
        """Run a plan's network on the images."""

        def run() -> Evaluation:
            logits = self.engine.logits(plan, self.images).detach().float().cpu()
            self._plans += 1
            if self._plans % _PLANS_BETWEEN_RETURNS == 0:
                hand_back_freed_memory()
            return Evaluation(logits, self.labels)

        graph = getattr(self.engine, "graph", None)
        weights = state_of(graph.module) if isinstance(graph, LayerGraph) else 0
        return self._known.get((plan.key(), version(self.images), weights), run)
