"""The Gymnasium space of DGL graphs, and how vector environments handle it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import utils as vector

import compress_env.forking  # noqa: F401, vector environments would hang without it
from compress_env.dgl_import import dgl
from compress_env.graphs import (
    FEATURES,
    GLOBAL_TYPE,
    NODE_TYPE,
    ObservationGraph,
    SharedGraphs,
    to_arrays,
    to_dgl,
)
from compress_env.observations.arrays import EDGE_TYPES, GraphArrays, pad, padded_space

__all__ = ["GraphSpace", "ObservationGraph", "to_arrays", "to_dgl"]


class GraphSpace(gym.Space[ObservationGraph]):
    """The space of DGL graphs that an environment observes.

    Either the structure is fixed (``num_nodes``, ``edges`` and ``edge_types`` given) or only its
    size is bounded (``max_nodes`` and ``max_edges`` given).

    Args:
        num_node_features: F, at least 1.
        num_globals: G, at least 1.
        num_nodes: N of a fixed structure.
        edges: Integers ``(2, E)`` of a fixed structure, values in ``[0, N)``.
        edge_types: Integers ``(E,)`` of a fixed structure, values index ``edge_type_names``.
        max_nodes: Most nodes of a variable structure, at least 1.
        max_edges: Most edges of a variable structure, at least 0.
        bound: Features and globals are finite and in ``[-bound, bound]``.
        edge_type_names: One name per edge type.
        seed: Seed of :meth:`sample`.

    Raises:
        ValueError: If the arguments describe neither kind of structure.
    """

    def __init__(
        self,
        num_node_features: int,
        num_globals: int,
        *,
        num_nodes: int | None = None,
        edges: npt.ArrayLike | None = None,
        edge_types: npt.ArrayLike | None = None,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        bound: float = 10.0,
        edge_type_names: Sequence[str] = EDGE_TYPES,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        fixed = (num_nodes, edges, edge_types)
        variable = (max_nodes, max_edges)
        if min(num_node_features, num_globals) < 1:
            raise ValueError("num_node_features and num_globals must be at least 1")
        self.edges: npt.NDArray[np.int64] | None = None
        self.edge_types: npt.NDArray[np.int64] | None = None
        if None not in variable and fixed == (None, None, None):
            assert max_nodes is not None and max_edges is not None
            self.max_nodes, self.max_edges = max_nodes, max_edges
        elif variable == (None, None) and all(given is not None for given in fixed):
            assert num_nodes is not None and edges is not None and edge_types is not None
            kinds = np.array(edge_types, np.int64)
            order = np.argsort(kinds, kind="stable")
            self.edges = np.array(edges, np.int64).reshape(2, -1)[:, order]
            self.edge_types = kinds[order]
            self.max_nodes, self.max_edges = num_nodes, len(kinds)
            if self.edges.size and not 0 <= self.edges.min() <= self.edges.max() < num_nodes:
                raise ValueError(f"edges must be in [0, {num_nodes})")
        else:
            raise ValueError(
                "give either num_nodes, edges and edge_types or max_nodes and max_edges"
            )
        if self.max_nodes < 1 or self.max_edges < 0:
            raise ValueError("a graph has at least 1 node and 0 edges")
        self.num_node_features = num_node_features
        self.num_globals = num_globals
        self.bound = float(bound)
        self.edge_type_names = tuple(edge_type_names)
        self.padded = padded_space(
            num_node_features,
            num_globals,
            self.max_nodes,
            self.max_edges,
            bound=self.bound,
            num_edge_types=len(self.edge_type_names),
        )
        super().__init__(None, None, seed)

    @classmethod
    def like(cls, arrays: GraphArrays, **keywords: Any) -> GraphSpace:
        """The space of all graphs with the structure and sizes of ``arrays``.

        Args:
            arrays: An example.
            **keywords: ``bound``, ``edge_type_names``, ``seed`` of the constructor.
        """
        num_nodes, num_node_features = arrays.node_features.shape
        return cls(
            num_node_features,
            len(arrays.globals),
            num_nodes=num_nodes,
            edges=arrays.edges,
            edge_types=arrays.edge_types,
            **keywords,
        )

    @property
    def is_np_flattenable(self) -> bool:
        """False: flatten what :class:`compress_env.wrappers.PaddedGraph` returns instead."""
        return False

    def contains(self, x: Any) -> bool:
        """True if ``x`` is a DGL graph of these types and sizes, with features within bounds."""
        if not isinstance(x, dgl.DGLGraph) or set(x.ntypes) != {NODE_TYPE, GLOBAL_TYPE}:
            return False
        expected = {(NODE_TYPE, name, NODE_TYPE) for name in self.edge_type_names}
        if set(x.canonical_etypes) != expected or x.num_nodes(GLOBAL_TYPE) != 1:
            return False
        num_nodes = x.num_nodes(NODE_TYPE)
        return (
            1 <= num_nodes <= self.max_nodes
            and self._valid(x, NODE_TYPE, (num_nodes, self.num_node_features))
            and self._valid(x, GLOBAL_TYPE, (1, self.num_globals))
            and self._has_structure(x, num_nodes)
        )

    def _valid(self, graph: Any, node_type: str, shape: tuple[int, int]) -> bool:
        values = graph.nodes[node_type].data.get(FEATURES)
        return (
            values is not None
            and values.dtype == torch.float32
            and tuple(values.shape) == shape
            # False for NaN, too.
            and bool((values.abs() <= self.bound).all())
        )

    def _has_structure(self, graph: Any, num_nodes: int) -> bool:
        if self.edges is None or self.edge_types is None:
            return bool(graph.num_edges() <= self.max_edges)
        if num_nodes != self.max_nodes or graph.num_edges() != self.max_edges:
            return False
        arrays = to_arrays(graph, self.edge_type_names)
        return np.array_equal(arrays.edges, self.edges) and np.array_equal(
            arrays.edge_types, self.edge_types
        )

    def sample(self, mask: Any = None, probability: Any = None) -> ObservationGraph:
        """A graph with features uniform in [-1, 1] or the bounds, whichever is narrower.

        Args:
            mask: Must be None.
            probability: Must be None.

        Raises:
            ValueError: If a mask or probability is given.
        """
        if mask is not None or probability is not None:
            raise ValueError("mask and probability must be None: GraphSpace samples uniformly")
        random = self.np_random
        num_nodes, edges, edge_types = self.max_nodes, self.edges, self.edge_types
        if edges is None or edge_types is None:
            num_nodes = int(random.integers(1, self.max_nodes + 1))
            num_edges = int(random.integers(0, self.max_edges + 1))
            edges = random.integers(0, num_nodes, (2, num_edges))
            edge_types = np.sort(random.integers(0, len(self.edge_type_names), num_edges))
        limit = min(1.0, self.bound)
        arrays = GraphArrays(
            random.uniform(-limit, limit, (num_nodes, self.num_node_features)).astype(np.float32),
            edges,
            edge_types,
            random.uniform(-limit, limit, self.num_globals).astype(np.float32),
        )
        return to_dgl(arrays, self.edge_type_names)

    def to_jsonable(self, sample_n: Iterable[ObservationGraph]) -> list[dict[str, Any]]:
        """Graphs as dictionaries of nested lists."""
        return [
            {name: values.tolist() for name, values in vars(arrays).items()}
            for arrays in (to_arrays(graph, self.edge_type_names) for graph in sample_n)
        ]

    def from_jsonable(self, sample_n: list[dict[str, Any]]) -> list[ObservationGraph]:
        """The inverse of :meth:`to_jsonable`."""
        return [
            to_dgl(
                GraphArrays(
                    np.array(sample["node_features"], np.float32),
                    np.array(sample["edges"], np.int64).reshape(2, -1),
                    np.array(sample["edge_types"], np.int64),
                    np.array(sample["globals"], np.float32),
                ),
                self.edge_type_names,
            )
            for sample in sample_n
        ]

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphSpace):
            return NotImplemented
        return (
            self.padded == other.padded
            and self.edge_type_names == other.edge_type_names
            and (self.edges is None) == (other.edges is None)
            and np.array_equal(self.edges, other.edges)  # type: ignore[arg-type]
            and np.array_equal(self.edge_types, other.edge_types)  # type: ignore[arg-type]
        )

    def __repr__(self) -> str:
        structure = "fixed" if self.edges is not None else "up to"
        return (
            f"GraphSpace({structure} {self.max_nodes} nodes x {self.num_node_features} features, "
            f"{self.max_edges} edges, {self.num_globals} globals, bound={self.bound})"
        )


# What vector environments need. A batch of graphs is a tuple of graphs. Gymnasium's own functions
# for `Space` do the rest: `batch_space` (a `Tuple`), `concatenate` (a tuple) and `iterate`, which
# must not be registered here because `Tuple` would then iterate over the inside of each graph.


@vector.create_empty_array.register
def _create_empty_array(
    space: GraphSpace, n: int = 1, fn: Callable[..., Any] = np.zeros
) -> tuple[ObservationGraph, ...]:
    edges = np.zeros((2, 0), np.int64) if space.edges is None else space.edges
    edge_types = np.zeros(0, np.int64) if space.edge_types is None else space.edge_types
    features = fn((space.max_nodes, space.num_node_features), dtype=np.float32)
    global_features = fn(space.num_globals, dtype=np.float32)
    arrays = GraphArrays(features, edges, edge_types, global_features)
    return tuple(to_dgl(arrays, space.edge_type_names) for _ in range(n))


@vector.create_shared_memory.register
def _create_shared_memory(space: GraphSpace, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    return vector.create_shared_memory(space.padded, n=n, ctx=ctx)


@vector.write_to_shared_memory.register
def _write_to_shared_memory(
    space: GraphSpace, index: int, value: ObservationGraph, shared_memory: Any
) -> None:
    arrays = to_arrays(value, space.edge_type_names)
    padded: Any = pad(arrays, space.max_nodes, space.max_edges)
    vector.write_to_shared_memory(space.padded, index, padded, shared_memory)


@vector.read_from_shared_memory.register
def _read_from_shared_memory(
    space: GraphSpace, shared_memory: Any, n: int = 1
) -> tuple[ObservationGraph, ...]:
    memory: Any = vector.read_from_shared_memory(space.padded, shared_memory, n=n)
    return SharedGraphs(memory, space.edge_type_names, n)
