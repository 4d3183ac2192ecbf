"""Observations as plain NumPy arrays: :class:`GraphArrays`, and padding to a fixed size.

Everything that an agent can be shown passes through here once: the DGL graph, the padded
dictionary and the memory shared between processes are made from the same arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from compress_env.observations.schema import GraphSchema, numbered_layer_schema


@dataclass(frozen=True, eq=False)
class GraphArrays:
    """One observation: node features, typed edges and globals.

    Attributes:
        node_features: float32 ``(N, F)``, one row per node, about [-1, 1]. Where node types have
            unequally many columns, F is the largest number, and the rest of a row is zero.
        edges: int64 ``(2, E)``, source row and destination row, values in ``[0, N)``.
        edge_types: int64 ``(E,)``, number of the edge type in the schema. Edges should be grouped
            by type in this order: the DGL form keeps one list per type, so only grouped edges come
            back in the order they went in.
        globals: float32 ``(G,)``, about [-1, 1].
        node_types: int64 ``(N,)``, number of the node type in the schema, not decreasing. By
            default all nodes are of type 0.
        edge_features: float32 ``(E, K)``, with K as F above. By default ``(E, 0)``.

    Raises:
        ValueError: If the shapes do not belong together.
    """

    node_features: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int64]
    edge_types: npt.NDArray[np.int64]
    globals: npt.NDArray[np.float32]
    node_types: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    edge_features: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0), np.float32)
    )

    def __post_init__(self) -> None:
        if self.node_features.ndim != 2:
            raise ValueError(f"node_features must be (N, F), got shape {self.node_features.shape}")
        if self.edges.ndim != 2 or self.edges.shape[0] != 2:
            raise ValueError(f"edges must be (2, E), got shape {self.edges.shape}")
        if self.edge_types.shape != self.edges.shape[1:]:
            raise ValueError(
                f"edge_types must be ({self.edges.shape[1]},), got shape {self.edge_types.shape}"
            )
        if self.globals.ndim != 1:
            raise ValueError(f"globals must be (G,), got shape {self.globals.shape}")
        num_nodes, num_edges = len(self.node_features), len(self.edge_types)
        if self.node_types.shape == (0,):
            object.__setattr__(self, "node_types", np.zeros(num_nodes, np.int64))
        if self.node_types.shape != (num_nodes,) or (np.diff(self.node_types) < 0).any():
            raise ValueError(f"node_types must be ({num_nodes},) and not decrease")
        if self.edge_features.shape == (0, 0):
            object.__setattr__(self, "edge_features", np.zeros((num_edges, 0), np.float32))
        if self.edge_features.ndim != 2 or len(self.edge_features) != num_edges:
            raise ValueError(
                f"edge_features must be ({num_edges}, K), got shape {self.edge_features.shape}"
            )

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphArrays):
            return NotImplemented
        return all(
            mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
            for mine, theirs in (
                (getattr(self, each.name), getattr(other, each.name)) for each in fields(self)
            )
        )


def padded_space(
    schema: GraphSchema, max_nodes: int, max_edges: int, *, bound: float
) -> spaces.Dict:
    """The space of what :func:`pad` returns.

    Every entry is one-dimensional (matrices are stored row by row): Stable-Baselines3 warns about
    matrices and RLlib refuses them.

    Args:
        schema: Types and columns of the graphs.
        max_nodes: Rows to pad to.
        max_edges: Edges to pad to.
        bound: Features and globals lie in ``[-bound, bound]``.
    """

    def whole(size: int, high: int, dtype: Any) -> spaces.Box:
        return spaces.Box(0, max(1, high), (size,), dtype)

    def real(size: int) -> spaces.Box:
        return spaces.Box(-bound, bound, (size,), np.float32)

    entries: dict[str, spaces.Space[Any]] = {
        "node_features": real(max_nodes * schema.node_width),
        "node_mask": whole(max_nodes, 1, np.int8),
        "edges": whole(max_edges * 2, max_nodes - 1, np.int32),
        "edge_types": whole(max_edges, len(schema.edges) - 1, np.int8),
        "edge_mask": whole(max_edges, 1, np.int8),
        "globals": real(len(schema.globals)),
    }
    if len(schema.nodes) > 1:
        entries["node_types"] = whole(max_nodes, len(schema.nodes) - 1, np.int8)
    if schema.edge_width:
        entries["edge_features"] = real(max_edges * schema.edge_width)
    return spaces.Dict(entries)


def pad(
    arrays: GraphArrays, max_nodes: int, max_edges: int, schema: GraphSchema | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Pads a graph with zeros to a fixed size.

    Args:
        arrays: The graph, N nodes and E edges.
        max_nodes: At least N.
        max_edges: At least E.
        schema: Types of the graph; by default nodes that are all layers.

    Returns:
        ``node_features`` float32 ``(max_nodes * F,)``, row by row; ``node_mask`` int8
        ``(max_nodes,)``, 1 for a node; ``edges`` int32 ``(max_edges * 2,)``, source and destination
        in turn; ``edge_types`` int8 and ``edge_mask`` int8 ``(max_edges,)``; ``globals`` float32
        ``(G,)``. With several node types also ``node_types`` int8 ``(max_nodes,)``; where edges
        have features also ``edge_features`` float32 ``(max_edges * K,)``. All arrays are new.

    Raises:
        ValueError: If the graph does not fit.
    """
    num_nodes, num_features = arrays.node_features.shape
    num_edges = len(arrays.edge_types)
    if num_nodes > max_nodes:
        raise ValueError(f"max_nodes must be at least {num_nodes}, got {max_nodes}")
    if num_edges > max_edges:
        raise ValueError(f"max_edges must be at least {num_edges}, got {max_edges}")
    schema = schema or numbered_layer_schema(num_features, len(arrays.globals))

    def padded(values: npt.NDArray[Any], rows: int, dtype: Any) -> npt.NDArray[Any]:
        result = np.zeros((rows, *values.shape[1:]), dtype)
        result[: len(values)] = values
        return result.reshape(-1)

    entries = {
        "node_features": padded(arrays.node_features, max_nodes, np.float32),
        "node_mask": padded(np.ones(num_nodes), max_nodes, np.int8),
        "edges": padded(arrays.edges.T, max_edges, np.int32),
        "edge_types": padded(arrays.edge_types, max_edges, np.int8),
        "edge_mask": padded(np.ones(num_edges), max_edges, np.int8),
        "globals": np.array(arrays.globals, np.float32),
    }
    if len(schema.nodes) > 1:
        entries["node_types"] = padded(arrays.node_types, max_nodes, np.int8)
    if schema.edge_width:
        features = arrays.edge_features.reshape(num_edges, schema.edge_width)
        entries["edge_features"] = padded(features, max_edges, np.float32)
    return entries


def unpad(padded: Mapping[str, npt.NDArray[Any]]) -> GraphArrays:
    """The inverse of :func:`pad`: drops the padding. All arrays are new."""
    nodes = padded["node_mask"] > 0
    kept = padded["edge_mask"] > 0
    num_nodes, num_edges = len(nodes), len(kept)
    node_types = padded.get("node_types", np.zeros(num_nodes))[nodes]
    edge_features = padded.get("edge_features", np.zeros(0))
    width = len(edge_features) // max(num_edges, 1)
    return GraphArrays(
        node_features=padded["node_features"].reshape(num_nodes, -1)[nodes].astype(np.float32),
        edges=np.ascontiguousarray(padded["edges"].reshape(-1, 2)[kept].T, np.int64),
        edge_types=padded["edge_types"][kept].astype(np.int64),
        globals=np.array(padded["globals"], np.float32),
        node_types=node_types.astype(np.int64),
        edge_features=edge_features.reshape(num_edges, width)[kept].astype(np.float32),
    )
