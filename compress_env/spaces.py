"""The Gymnasium space of DGL graphs, and how vector environments handle it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import utils as vector

import compress_env.forking  # noqa: F401, vector environments would hang without it
from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES, ObservationGraph, SharedGraphs, to_arrays, to_dgl
from compress_env.observations.arrays import GraphArrays, pad, padded_space
from compress_env.observations.schema import GLOBAL_TYPE, GraphSchema, numbered_layer_schema

__all__ = ["GraphSpace", "ObservationGraph", "to_arrays", "to_dgl"]


class GraphSpace(gym.Space[ObservationGraph]):
    """The space of DGL graphs that an environment observes.

    Either the structure is fixed (``structure`` given) or only its size is bounded (``max_nodes``
    and ``max_edges`` given).

    Args:
        schema: Types and columns of the graphs.
        structure: A graph with the nodes and edges of a fixed structure; its features are not
            looked at.
        max_nodes: Most nodes of a variable structure, at least 1.
        max_edges: Most edges of a variable structure, at least 0.
        bound: Features and globals are finite and in ``[-bound, bound]``.
        seed: Seed of :meth:`sample`.

    Raises:
        ValueError: If the arguments describe neither kind of structure, or the structure is not
            what the schema says.
    """

    def __init__(
        self,
        schema: GraphSchema,
        *,
        structure: GraphArrays | None = None,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        bound: float = 10.0,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.schema = schema
        self.structure: GraphArrays | None = None
        if structure is None and max_nodes is not None and max_edges is not None:
            self.max_nodes, self.max_edges = max_nodes, max_edges
        elif structure is not None and max_nodes is None and max_edges is None:
            # Back and forth: checked, and with the edges grouped by type.
            self.structure = to_arrays(to_dgl(structure, schema), schema)
            self.max_nodes, self.max_edges = len(structure.node_types), len(structure.edge_types)
        else:
            raise ValueError("give either structure or max_nodes and max_edges")
        if self.max_nodes < 1 or self.max_edges < 0:
            raise ValueError("a graph has at least 1 node and 0 edges")
        self.bound = float(bound)
        self.padded = padded_space(schema, self.max_nodes, self.max_edges, bound=self.bound)
        super().__init__(None, None, seed)

    @classmethod
    def like(
        cls, arrays: GraphArrays, schema: GraphSchema | None = None, **keywords: Any
    ) -> GraphSpace:
        """The space of all graphs with the structure and sizes of ``arrays``.

        Args:
            arrays: An example.
            schema: Its types and columns; by default nodes that are all layers.
            **keywords: ``bound`` and ``seed`` of the constructor.
        """
        if schema is None:
            schema = numbered_layer_schema(arrays.node_features.shape[1], len(arrays.globals))
        return cls(schema, structure=arrays, **keywords)

    @property
    def is_np_flattenable(self) -> bool:
        """False: flatten what :class:`compress_env.wrappers.PaddedGraph` returns instead."""
        return False

    def contains(self, x: Any) -> bool:
        """True if ``x`` is a DGL graph of these types and sizes, with features within bounds."""
        nodes, edges = self.schema.nodes, self.schema.edges
        if not isinstance(x, dgl.DGLGraph):
            return False
        if set(x.ntypes) != {GLOBAL_TYPE, *(node.name for node in nodes)}:
            return False
        if set(x.canonical_etypes) != {edge.ends for edge in edges}:
            return False
        num_nodes, num_globals = x.num_nodes() - x.num_nodes(GLOBAL_TYPE), len(self.schema.globals)
        return (
            1 <= num_nodes <= self.max_nodes
            and x.num_edges() <= self.max_edges
            and self._valid(x.nodes[GLOBAL_TYPE].data, (1, num_globals))
            and all(
                self._valid(x.nodes[kind.name].data, (x.num_nodes(kind.name), len(kind.columns)))
                for kind in nodes
            )
            and all(
                self._valid(x.edges[kind.ends].data, (x.num_edges(kind.ends), len(kind.columns)))
                for kind in edges
                if kind.columns
            )
            and self._has_structure(x)
        )

    def _valid(self, data: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> bool:
        values = data.get(FEATURES)
        return (
            values is not None
            and values.dtype == torch.float32
            and tuple(values.shape) == shape
            # False for NaN, too.
            and bool((values.abs() <= self.bound).all())
        )

    def _has_structure(self, graph: Any) -> bool:
        if self.structure is None:
            return True
        return _same_structure(to_arrays(graph, self.schema), self.structure)

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
        structure = self.structure or self._sample_structure()
        types, kinds = structure.node_types, structure.edge_types
        node_widths = [len(node.columns) for node in self.schema.nodes]
        edge_widths = [len(edge.columns) for edge in self.schema.edges]
        arrays = replace(
            structure,
            node_features=self._uniform(types, node_widths, self.schema.node_width),
            globals=self._uniform(np.zeros(1, np.int64), [len(self.schema.globals)])[0],
            edge_features=self._uniform(kinds, edge_widths, self.schema.edge_width),
        )
        return to_dgl(arrays, self.schema)

    def _uniform(
        self, kinds: npt.NDArray[np.int64], widths: Sequence[int], width: int | None = None
    ) -> npt.NDArray[np.float32]:
        """A row per kind, uniform as far as that kind is wide and zero from there on."""
        limit = min(1.0, self.bound)
        width = max(widths) if width is None else width
        values = self.np_random.uniform(-limit, limit, (len(kinds), width)).astype(np.float32)
        values[np.arange(width) >= np.asarray(widths)[kinds].reshape(-1, 1)] = 0
        return values

    def _sample_structure(self) -> GraphArrays:
        random, schema = self.np_random, self.schema
        num_nodes = int(random.integers(1, self.max_nodes + 1))
        num_edges = int(random.integers(0, self.max_edges + 1))
        types = np.sort(random.integers(0, len(schema.nodes), num_nodes))
        kinds = np.sort(random.integers(0, len(schema.edges), num_edges))
        counts = np.bincount(types, minlength=len(schema.nodes))
        joined = np.array(schema.edge_ends, np.int64)[kinds]
        # An edge needs nodes that it can join.
        possible = (counts[joined] > 0).all(axis=1)
        joined, kinds = joined[possible], kinds[possible]
        first = np.cumsum(counts) - counts
        edges = first[joined] + random.integers(0, counts[joined])
        return GraphArrays(
            np.zeros((num_nodes, schema.node_width), np.float32),
            np.ascontiguousarray(edges.T),
            kinds,
            np.zeros(len(schema.globals), np.float32),
            types,
            np.zeros((len(kinds), schema.edge_width), np.float32),
        )

    def to_jsonable(self, sample_n: Iterable[ObservationGraph]) -> list[dict[str, Any]]:
        """Graphs as dictionaries of nested lists."""
        return [
            {name: values.tolist() for name, values in vars(arrays).items()}
            for arrays in (to_arrays(graph, self.schema) for graph in sample_n)
        ]

    def from_jsonable(self, sample_n: list[dict[str, Any]]) -> list[ObservationGraph]:
        """The inverse of :meth:`to_jsonable`."""
        node_width, edge_width = self.schema.node_width, self.schema.edge_width
        return [
            to_dgl(
                GraphArrays(
                    np.array(sample["node_features"], np.float32).reshape(-1, node_width),
                    np.array(sample["edges"], np.int64).reshape(2, -1),
                    np.array(sample["edge_types"], np.int64),
                    np.array(sample["globals"], np.float32),
                    np.array(sample["node_types"], np.int64),
                    np.array(sample["edge_features"], np.float32).reshape(
                        len(sample["edge_types"]), edge_width
                    ),
                ),
                self.schema,
            )
            for sample in sample_n
        ]

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphSpace):
            return NotImplemented
        if self.padded != other.padded or self.schema != other.schema:
            return False
        if self.structure is None or other.structure is None:
            return self.structure is other.structure
        return _same_structure(self.structure, other.structure)

    def __repr__(self) -> str:
        structure = "fixed" if self.structure is not None else "up to"
        return (
            f"GraphSpace({structure} {self.max_nodes} nodes x {self.schema.node_width} features, "
            f"{self.max_edges} edges, {len(self.schema.globals)} globals, bound={self.bound})"
        )


def _same_structure(a: GraphArrays, b: GraphArrays) -> bool:
    return (
        np.array_equal(a.node_types, b.node_types)
        and np.array_equal(a.edge_types, b.edge_types)
        and np.array_equal(a.edges, b.edges)
    )


# What vector environments need. A batch of graphs is a tuple of graphs. Gymnasium's own functions
# for `Space` do the rest: `batch_space` (a `Tuple`), `concatenate` (a tuple) and `iterate`, which
# must not be registered here because `Tuple` would then iterate over the inside of each graph.


@vector.create_empty_array.register
def _create_empty_array(
    space: GraphSpace, n: int = 1, fn: Callable[..., Any] = np.zeros
) -> tuple[ObservationGraph, ...]:
    schema, structure = space.schema, space.structure
    edges, edge_types = np.zeros((2, 0), np.int64), np.zeros(0, np.int64)
    node_types = np.zeros(space.max_nodes, np.int64)
    if structure is not None:
        edges, edge_types, node_types = structure.edges, structure.edge_types, structure.node_types
    arrays = GraphArrays(
        fn((len(node_types), schema.node_width), dtype=np.float32),
        edges,
        edge_types,
        fn(len(schema.globals), dtype=np.float32),
        node_types,
        fn((len(edge_types), schema.edge_width), dtype=np.float32),
    )
    return tuple(to_dgl(arrays, schema) for _ in range(n))


@vector.create_shared_memory.register
def _create_shared_memory(space: GraphSpace, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    return vector.create_shared_memory(space.padded, n=n, ctx=ctx)


@vector.write_to_shared_memory.register
def _write_to_shared_memory(
    space: GraphSpace, index: int, value: ObservationGraph, shared_memory: Any
) -> None:
    arrays = to_arrays(value, space.schema)
    padded: Any = pad(arrays, space.max_nodes, space.max_edges, space.schema)
    vector.write_to_shared_memory(space.padded, index, padded, shared_memory)


@vector.read_from_shared_memory.register
def _read_from_shared_memory(
    space: GraphSpace, shared_memory: Any, n: int = 1
) -> tuple[ObservationGraph, ...]:
    memory: Any = vector.read_from_shared_memory(space.padded, shared_memory, n=n)
    return SharedGraphs(memory, space.schema, n)
