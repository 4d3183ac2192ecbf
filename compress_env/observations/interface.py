"""What the environment hands to an observation, and what it wants of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import LayerGraph
from compress_env.observations.arrays import GraphArrays
from compress_env.observations.schema import GraphSchema
from compress_env.plan import CompressionPlan


@dataclass(frozen=True, eq=False)
class ObservationContext:
    """What does not change while an environment lives. Nothing in it is to be changed.

    Attributes:
        graph: the layer graph; `graph.module` is the traced dense network with its weights.
        costs: its complexity model.
        importance: float (atoms,), scores of the channels.
        ranks: int64 (atoms,), place of a channel in its group, 0 for the one that stays longest.
        fixed: bool (layers,), layers whose bits are not chosen by the agent.
        images: float32 (n, 3, H, W), the calibration images, normalised, on the device of the
            network.
        step_mode: what a step decides, `"network"` or `"layer"`.
    """

    graph: LayerGraph
    costs: ComplexityModel
    importance: np.ndarray
    ranks: np.ndarray
    fixed: np.ndarray
    images: torch.Tensor
    step_mode: str = "network"


@dataclass(frozen=True, eq=False)
class ObservedState:
    """What an observation is made from.

    Attributes:
        plan: the current plan.
        reduction: its reduction in the environment's metric.
        target_reduction: the reduction to reach.
        steps_left: share of the episode's steps that are left, 0 to 1.
        next_layer: the layer to be decided next in `layer` mode, else -1.
    """

    plan: CompressionPlan
    reduction: float
    target_reduction: float
    steps_left: float
    next_layer: int = -1


class Observation(Protocol):
    """Shows the current plan of one network as a graph."""

    @property
    def schema(self) -> GraphSchema:
        """Types and columns: the same for every network, so that an agent can move on."""

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Most nodes and edges that there can be; None where the structure never changes."""

    def observe(self, state: ObservedState) -> GraphArrays:
        """The observation of a state. Features and globals lie in [-10, 10]."""


ObservationFactory = Callable[[ObservationContext], Observation]
"""`context -> observation`: a class with such a constructor, or a function."""
