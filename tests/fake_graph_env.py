"""A tiny environment that observes graphs: a chain of layers, some of them coupled."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from compress_env.graphs import ObservationGraph, to_dgl
from compress_env.observations.arrays import GraphArrays
from compress_env.spaces import GraphSpace

NUM_FEATURES, NUM_GLOBALS = 4, 2


def chain(num_nodes: int, seed: int = 0) -> GraphArrays:
    """A chain in which every second layer is coupled with the first, with random features."""
    rng = np.random.default_rng(seed)
    flow = [(node, node + 1) for node in range(num_nodes - 1)]
    coupling = [pair for node in range(2, num_nodes, 2) for pair in ((0, node), (node, 0))]
    return GraphArrays(
        node_features=rng.uniform(-1, 1, (num_nodes, NUM_FEATURES)).astype(np.float32),
        edges=np.array(flow + coupling, np.int64).reshape(-1, 2).T,
        edge_types=np.repeat([0, 1], [len(flow), len(coupling)]),
        globals=rng.uniform(-1, 1, NUM_GLOBALS).astype(np.float32),
    )


def membership(num_nodes: int) -> np.ndarray:
    """Group 0: every second layer; then one group for each other layer but the last."""
    groups = [list(range(0, num_nodes, 2))]
    groups += [[node] for node in range(1, num_nodes - 1, 2)]
    return np.array([[node in group for node in range(num_nodes)] for group in groups])


class FakeGraphEnv(gym.Env[ObservationGraph, np.ndarray]):
    """Rewards actions close to what the features show; episodes of three steps.

    A layer's bits should be its first two features, a group's number the mean of the third.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, num_nodes: int = 5) -> None:
        self._structure = chain(num_nodes)
        self.group_membership = membership(num_nodes)
        size = len(self.group_membership) + 2 * num_nodes
        self.observation_space = GraphSpace.like(self._structure)
        self.action_space = gym.spaces.Box(-1, 1, (size,), np.float32)

    def _observe(self) -> ObservationGraph:
        shape = self._structure.node_features.shape
        self._features = self.np_random.uniform(-1, 1, shape).astype(np.float32)
        structure = self._structure
        return to_dgl(
            GraphArrays(self._features, structure.edges, structure.edge_types, structure.globals)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationGraph, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[ObservationGraph, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        groups = self.group_membership / self.group_membership.sum(1, keepdims=True)
        target = np.concatenate([groups @ self._features[:, 2], self._features[:, :2].reshape(-1)])
        reward = -float(np.abs(action - target).mean()) if len(target) == len(action) else 0.0
        return self._observe(), reward, self._steps >= 3, False, {}


gym.register("FakeGraph-v0", "fake_graph_env:FakeGraphEnv")
