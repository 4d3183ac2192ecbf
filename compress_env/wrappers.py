"""Wrappers that give other agents what they can take: padded arrays, a GraphInstance, levels."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from compress_env.graphs import NODE_TYPE, ObservationGraph, to_arrays
from compress_env.observations.arrays import pad, padded_space
from compress_env.spaces import GraphSpace

__all__ = ["DiscreteActions", "GraphInstanceObservation", "PaddedGraph"]


def _graph_space(env: gym.Env[Any, Any]) -> GraphSpace:
    space = env.observation_space
    if not isinstance(space, GraphSpace):
        raise ValueError(f"env must observe a GraphSpace, got {space}")
    return space


def _at_least(name: str, given: int | None, needed: int) -> int:
    if given is None:
        return needed
    if given < needed:
        raise ValueError(f"{name} must be at least {needed} for this environment, got {given}")
    return given


class PaddedGraph(
    gym.ObservationWrapper[dict[str, npt.NDArray[Any]], Any, ObservationGraph],
    gym.utils.RecordConstructorArgs,
):
    """Observes a dictionary of arrays of fixed size instead of a DGL graph.

    All entries are one-dimensional, matrices being stored row by row, because that is what
    Stable-Baselines3 and RLlib take without complaint; ``compress_agents.graph_networks.batching``
    takes a batch of them apart again.

    | key | shape | dtype | meaning |
    |---|---|---|---|
    | ``node_features`` | ``(max_nodes * F,)`` | float32 | one row per node, zero where padded |
    | ``node_types`` | ``(max_nodes,)`` | int8 | number of the node type, 0 where padded |
    | ``node_mask`` | ``(max_nodes,)`` | int8 | 1 for a node, 0 for padding |
    | ``edges`` | ``(max_edges * 2,)`` | int32 | source and destination in turn, 0 where padded |
    | ``edge_types`` | ``(max_edges,)`` | int8 | number of the edge type, 0 where padded |
    | ``edge_features`` | ``(max_edges * K,)`` | float32 | one row per edge, zero where padded |
    | ``edge_mask`` | ``(max_edges,)`` | int8 | 1 for an edge, 0 for padding |
    | ``globals`` | ``(G,)`` | float32 | what concerns the whole network |
    | ``group_layers`` | ``(max_groups * max_nodes,)`` | float32 | 1 where a layer is in a group |
    | ``group_mask`` | ``(max_groups,)`` | int8 | 1 for a coupling group, 0 for padding |

    ``node_types`` is there when there are several, ``edge_features`` when edges have any: the
    ``layer`` observation has neither, and its edge types are 0 data flow, 1 channel coupling. The
    last two are there when the environment has ``group_membership``, a bool array
    ``(groups, layers)``, and its nodes are these layers.

    Args:
        env: Observes a :class:`compress_env.spaces.GraphSpace`.
        max_nodes: Nodes to pad to; by default the most that ``env`` shows.
        max_edges: Edges to pad to; by default the most that ``env`` shows.
        max_groups: Coupling groups to pad to; by default those of ``env``.

    Raises:
        ValueError: If ``env`` does not observe graphs, or its graphs do not fit.
    """

    def __init__(
        self,
        env: gym.Env[ObservationGraph, Any],
        max_nodes: int | None = None,
        max_edges: int | None = None,
        max_groups: int | None = None,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, max_nodes=max_nodes, max_edges=max_edges, max_groups=max_groups
        )
        super().__init__(env)
        space = _graph_space(env)
        self._schema = space.schema
        self._max_nodes = _at_least("max_nodes", max_nodes, space.max_nodes)
        self._max_edges = _at_least("max_edges", max_edges, space.max_edges)
        padded = padded_space(space.schema, self._max_nodes, self._max_edges, bound=space.bound)
        self._groups = self._pad_groups(space.max_nodes, max_groups)
        group_spaces = {
            name: spaces.Box(0, 1, values.shape, values.dtype.type)
            for name, values in self._groups.items()
        }
        observation_space: Any = spaces.Dict({**padded.spaces, **group_spaces})
        self.observation_space = observation_space

    def _pad_groups(
        self, num_nodes: int, max_groups: int | None
    ) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int8]]:
        """What does not change within an environment: which layers are in which group."""
        membership = getattr(self.unwrapped, "group_membership", None)
        nodes = tuple(node.name for node in self._schema.nodes)
        if membership is None or nodes != (NODE_TYPE,) or membership.shape[1] != num_nodes:
            return {}
        num_groups = len(membership)
        max_groups = _at_least("max_groups", max_groups, num_groups)
        group_layers = np.zeros((max_groups, self._max_nodes), np.float32)
        group_layers[:num_groups, :num_nodes] = membership
        group_mask = np.zeros(max_groups, np.int8)
        group_mask[:num_groups] = 1
        return {"group_layers": group_layers.reshape(-1), "group_mask": group_mask}

    def observation(self, observation: ObservationGraph) -> dict[str, npt.NDArray[Any]]:
        """Pads one graph; see the class for keys and shapes. All arrays are new."""
        arrays = to_arrays(observation, self._schema)
        padded = pad(arrays, self._max_nodes, self._max_edges, self._schema)
        padded.update({name: values.copy() for name, values in self._groups.items()})
        return padded


class GraphInstanceObservation(
    gym.ObservationWrapper[spaces.GraphInstance, Any, ObservationGraph],
    gym.utils.RecordConstructorArgs,
):
    """Observes what ``gymnasium.spaces.Graph`` describes instead of a DGL graph.

    ``nodes`` is float32 ``(N, F + G)``: the F features of each node, then the G globals, the same
    in every row, since a ``GraphInstance`` has no other place for them. ``edges`` is int64
    ``(E,)``, the edge type, and ``edge_links`` int64 ``(E, 2)``, source and destination.

    Several node types are told apart by one more column for each of them in front, 1 for the
    node's own and 0 for the others. Where edges have features, ``edges`` is float32
    ``(E, T + K)``: a column for each of the T edge types, likewise, then the K features.

    Args:
        env: Observes a :class:`compress_env.spaces.GraphSpace`.

    Raises:
        ValueError: If ``env`` does not observe graphs.
    """

    def __init__(self, env: gym.Env[ObservationGraph, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = _graph_space(env)
        self._schema = schema = space.schema
        columns = schema.node_width + len(schema.globals)
        if len(schema.nodes) > 1:
            columns += len(schema.nodes)
        edge_space: spaces.Box | spaces.Discrete = spaces.Discrete(len(schema.edges))
        if schema.edge_width:
            shape = (len(schema.edges) + schema.edge_width,)
            edge_space = spaces.Box(-space.bound, space.bound, shape, np.float32)
        self.observation_space = spaces.Graph(
            node_space=spaces.Box(-space.bound, space.bound, (columns,), np.float32),
            edge_space=edge_space,
        )

    def observation(self, observation: ObservationGraph) -> spaces.GraphInstance:
        """Converts one graph. All arrays are new."""
        schema = self._schema
        arrays = to_arrays(observation, schema)
        parts = [arrays.node_features, np.tile(arrays.globals, (len(arrays.node_features), 1))]
        if len(schema.nodes) > 1:
            parts.insert(0, np.eye(len(schema.nodes), dtype=np.float32)[arrays.node_types])
        edges: npt.NDArray[Any] = arrays.edge_types
        if schema.edge_width:
            kinds = np.eye(len(schema.edges), dtype=np.float32)[arrays.edge_types]
            edges = np.concatenate([kinds, arrays.edge_features], axis=1)
        return spaces.GraphInstance(
            nodes=np.concatenate(parts, axis=1),
            edges=edges,
            edge_links=np.ascontiguousarray(arrays.edges.T),
        )


class DiscreteActions(
    gym.ActionWrapper[Any, npt.NDArray[np.int64], npt.NDArray[np.float32]],
    gym.utils.RecordConstructorArgs,
):
    """Takes one of a few levels per entry of the action instead of a real number.

    Level 0 is -1, the highest level is 1, and the levels between are evenly spaced. With an odd
    number of levels the middle one is 0, the plan that a person would try first.

    Args:
        env: Its action space is a one-dimensional ``Box(-1, 1)``.
        levels: Levels per entry, at least 2.

    Raises:
        ValueError: If ``env`` takes other actions, or ``levels`` is too small.
    """

    def __init__(self, env: gym.Env[Any, npt.NDArray[np.float32]], levels: int = 9) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, levels=levels)
        super().__init__(env)
        space = env.action_space
        if not (
            isinstance(space, spaces.Box)
            and len(space.shape) == 1
            and (space.low == -1).all()
            and (space.high == 1).all()
        ):
            raise ValueError(f"env must take a one-dimensional Box(-1, 1) action, got {space}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self._values = np.linspace(-1, 1, levels).astype(np.float32)
        action_space: Any = spaces.MultiDiscrete(np.full(space.shape, levels, np.int64))
        self.action_space = action_space

    def action(self, action: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Looks up the levels.

        Args:
            action: Integers of the shape of the action space, in ``[0, levels)``.

        Returns:
            float32 of the same shape, in [-1, 1].

        Raises:
            ValueError: If the shape or a level is wrong.
        """
        if not self.action_space.contains(np.asarray(action)):
            raise ValueError(f"action must be in {self.action_space}, got {action}")
        return self._values[np.asarray(action)]
