"""Observations as plain NumPy arrays: :class:`GraphArrays`, and padding to a fixed size.

Everything that an agent can be shown passes through here once: the DGL graph, the padded
dictionary and the memory shared between processes are made from the same arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

EDGE_TYPES: tuple[str, ...] = ("flow", "coupling")
"""Default names of the edge types; an edge type is stored as its position in this tuple."""


@dataclass(frozen=True, eq=False)
class GraphArrays:
    """One observation: node features, typed edges and globals.

    Attributes:
        node_features: float32 ``(N, F)``, one row per layer, about [-1, 1].
        edges: int64 ``(2, E)``, source row and destination row, values in ``[0, N)``.
        edge_types: int64 ``(E,)``, 0 for data flow, 1 for channel coupling (each coupling is stored
            in both directions). Edges should be grouped by type in this order: the DGL form keeps
            one list per type, so only grouped edges come back in the order they went in.
        globals: float32 ``(G,)``, about [-1, 1].

    Raises:
        ValueError: If the shapes do not belong together.
    """

    node_features: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int64]
    edge_types: npt.NDArray[np.int64]
    globals: npt.NDArray[np.float32]

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

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphArrays):
            return NotImplemented
        return all(
            mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.node_features, other.node_features),
                (self.edges, other.edges),
                (self.edge_types, other.edge_types),
                (self.globals, other.globals),
            )
        )


def padded_space(
    num_node_features: int,
    num_globals: int,
    max_nodes: int,
    max_edges: int,
    *,
    bound: float,
    num_edge_types: int = len(EDGE_TYPES),
) -> spaces.Dict:
    """The space of what :func:`pad` returns.

    Every entry is one-dimensional (matrices are stored row by row): Stable-Baselines3 warns about
    matrices and RLlib refuses them.

    Args:
        num_node_features: F, at least 1.
        num_globals: G, at least 1.
        max_nodes: Rows to pad to.
        max_edges: Edges to pad to.
        bound: Features and globals lie in ``[-bound, bound]``.
        num_edge_types: Edge types lie in ``[0, num_edge_types)``.
    """

    def whole(size: int, high: int, dtype: Any) -> spaces.Box:
        return spaces.Box(0, max(1, high), (size,), dtype)

    def real(size: int) -> spaces.Box:
        return spaces.Box(-bound, bound, (size,), np.float32)

    return spaces.Dict(
        {
            "node_features": real(max_nodes * num_node_features),
            "node_mask": whole(max_nodes, 1, np.int8),
            "edges": whole(max_edges * 2, max_nodes - 1, np.int32),
            "edge_types": whole(max_edges, num_edge_types - 1, np.int8),
            "edge_mask": whole(max_edges, 1, np.int8),
            "globals": real(num_globals),
        }
    )


def pad(arrays: GraphArrays, max_nodes: int, max_edges: int) -> dict[str, npt.NDArray[Any]]:
    """Pads a graph with zeros to a fixed size.

    Args:
        arrays: The graph, N nodes and E edges.
        max_nodes: At least N.
        max_edges: At least E.

    Returns:
        ``node_features`` float32 ``(max_nodes * F,)``, row by row; ``node_mask`` int8
        ``(max_nodes,)``, 1 for a node; ``edges`` int32 ``(max_edges * 2,)``, source and destination
        in turn; ``edge_types`` int8 and ``edge_mask`` int8 ``(max_edges,)``; ``globals`` float32
        ``(G,)``. All arrays are new.

    Raises:
        ValueError: If the graph does not fit.
    """
    num_nodes, num_features = arrays.node_features.shape
    num_edges = arrays.edges.shape[1]
    if num_nodes > max_nodes:
        raise ValueError(f"max_nodes must be at least {num_nodes}, got {max_nodes}")
    if num_edges > max_edges:
        raise ValueError(f"max_edges must be at least {num_edges}, got {max_edges}")
    node_features = np.zeros((max_nodes, num_features), np.float32)
    node_features[:num_nodes] = arrays.node_features
    node_mask = np.zeros(max_nodes, np.int8)
    node_mask[:num_nodes] = 1
    edges = np.zeros((max_edges, 2), np.int32)
    edges[:num_edges] = arrays.edges.T
    edge_types = np.zeros(max_edges, np.int8)
    edge_types[:num_edges] = arrays.edge_types
    edge_mask = np.zeros(max_edges, np.int8)
    edge_mask[:num_edges] = 1
    return {
        "node_features": node_features.reshape(-1),
        "node_mask": node_mask,
        "edges": edges.reshape(-1),
        "edge_types": edge_types,
        "edge_mask": edge_mask,
        "globals": np.array(arrays.globals, np.float32),
    }


def unpad(padded: Mapping[str, npt.NDArray[Any]]) -> GraphArrays:
    """The inverse of :func:`pad`: drops the padding. All arrays are new."""
    nodes = padded["node_mask"] > 0
    kept = padded["edge_mask"] > 0
    return GraphArrays(
        node_features=padded["node_features"].reshape(len(nodes), -1)[nodes].astype(np.float32),
        edges=np.ascontiguousarray(padded["edges"].reshape(-1, 2)[kept].T, np.int64),
        edge_types=padded["edge_types"][kept].astype(np.int64),
        globals=np.array(padded["globals"], np.float32),
    )
