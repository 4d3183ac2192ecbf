"""AMC: layer by layer, with actions bounded by the budget (He et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compress_agents.agents.layer_ddpg import LayerDDPG, Walk
from compress_agents.measuring import unwrap
from compress_env.observations.layer import NODE_COLUMNS
from compress_env.wrappers import PaddedGraph

__all__ = ["AMC"]

_NEXT = NODE_COLUMNS.index("is_next")


@dataclass(kw_only=True)
class AMC(LayerDDPG):
    """AMC for pruning, and for pruning and bits where there are bits to choose.

    *AMC: AutoML for model compression and acceleration on mobile devices*. A layer's state is its
    node features, what is known of the whole network, and the action before. The environment
    bounds every action so that the target stays in reach (the paper's algorithm 1). With
    ``--metric macs --bits 32`` this is the paper's own task; with more bits an action has two more
    entries.
    """

    environment: ClassVar[Mapping[str, Any]] = {"step_mode": "layer", "observation": "layer"}

    def play(self, env: Any, walk: Walk) -> float:
        """See `LayerDDPG`."""
        padded = PaddedGraph(env)
        size = 1 if len(unwrap(env).decoder.allowed) == 1 else 3
        observation, _ = padded.reset()
        before, done, total = np.zeros(size, np.float32), False, 0.0
        while not done:
            nodes = observation["node_features"].reshape(len(observation["node_mask"]), -1)
            own = nodes[nodes[:, _NEXT].argmax()]
            state = np.concatenate([own, observation["globals"], before]).astype(np.float32)
            before = walk.decide(state, size)
            action = np.zeros(3, np.float32)
            action[:size] = before
            observation, reward, terminated, truncated, _ = padded.step(action)
            total += float(reward)
            done = terminated or truncated
        return total
