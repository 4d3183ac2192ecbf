"""The DGL form of an observation: :class:`ObservationGraph`, from and to :class:`GraphArrays`.

A graph has the node and edge types of its schema, their features float32 in
``data["features"]``, and one node of the type ``"network"`` with ``data["features"]`` float32
``(1, G)``, the globals. The ``layer`` observation has one further node type, ``"layer"``, with
``data["features"]`` float32 ``(N, F)``, and edges of the types ``("layer", "flow", "layer")`` and
``("layer", "coupling", "layer")``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch

from compress_env.dgl_import import dgl
from compress_env.observations.arrays import GraphArrays, unpad
from compress_env.observations.schema import GLOBAL_TYPE, GraphSchema, numbered_layer_schema

NODE_TYPE = "layer"
FEATURES = "features"


class ObservationGraph(dgl.DGLGraph):  # type: ignore[misc]
    """A ``dgl.DGLGraph`` that compares by value.

    Two graphs are equal when their node and edge types, edges (in order) and all features are.
    ``DGLGraph`` compares by identity, which environment checkers and users comparing two
    observations trip over. The hash stays that of the object, since features can be assigned.
    """

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, ObservationGraph):
            return NotImplemented
        return _same_structure(self, other) and all(
            mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
            for mine, theirs in zip(
                (*self._node_frames, *self._edge_frames),
                (*other._node_frames, *other._edge_frames),
                strict=True,
            )
        )

    __hash__ = object.__hash__


def _same_structure(a: ObservationGraph, b: ObservationGraph) -> bool:
    # Graphs made from equal edges share DGL's immutable index (see `_structure`).
    if a._graph is b._graph:
        return True
    if a.ntypes != b.ntypes or a.canonical_etypes != b.canonical_etypes:
        return False
    if any(a.num_nodes(name) != b.num_nodes(name) for name in a.ntypes):
        return False
    return all(
        torch.equal(mine, theirs)
        for name in a.canonical_etypes
        for mine, theirs in zip(a.edges(etype=name), b.edges(etype=name), strict=True)
    )


@lru_cache(maxsize=64)
def _structure(
    node_types: bytes, edges: bytes, edge_types: bytes, schema: GraphSchema
) -> ObservationGraph:
    """A graph without features. An environment's edges rarely change, hence the cache."""
    types = np.frombuffer(node_types, np.int64)
    ends = np.frombuffer(edges, np.int64).reshape(2, -1)
    kinds = np.frombuffer(edge_types, np.int64)
    _check_range("node_types", types, len(schema.nodes))
    _check_range("edge_types", kinds, len(schema.edges))
    _check_range("edges", ends, len(types))
    joined, wanted = types[ends], np.array(schema.edge_ends, np.int64)[kinds].T
    if not np.array_equal(joined, wanted):
        wrong = int(np.flatnonzero((joined != wanted).any(axis=0))[0])
        raise ValueError(
            f"edges: number {wrong}, of type {schema.edges[kinds[wrong]].ends}, joins nodes of the "
            f"types {[schema.nodes[number].name for number in joined[:, wrong]]}"
        )
    counts = np.bincount(types, minlength=len(schema.nodes))
    local = ends - _first_rows(counts)[joined]
    graph = dgl.heterograph(
        {
            kind.ends: tuple(torch.tensor(side[kinds == index]) for side in local)
            for index, kind in enumerate(schema.edges)
        },
        num_nodes_dict={
            **{node.name: int(counts[index]) for index, node in enumerate(schema.nodes)},
            GLOBAL_TYPE: 1,
        },
    )
    return ObservationGraph(graph._graph, graph.ntypes, graph.etypes)


def _first_rows(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the rows of every node type start."""
    return np.cumsum(counts) - counts


def _check_range(name: str, values: npt.NDArray[np.int64], end: int) -> None:
    if values.size and not 0 <= values.min() <= values.max() < end:
        raise ValueError(f"{name} must be in [0, {end})")


def to_dgl(arrays: GraphArrays, schema: GraphSchema | None = None) -> ObservationGraph:
    """Makes the DGL form. Features are copied; graphs with equal edges share the structure.

    Args:
        arrays: The observation.
        schema: Its types and columns; by default nodes that are all layers.

    Returns:
        The graph, on the CPU, with int64 ids.

    Raises:
        ValueError: If the arrays are not what the schema says.
    """
    features, edge_features = arrays.node_features, arrays.edge_features
    schema = schema or numbered_layer_schema(features.shape[1], len(arrays.globals))
    found = (features.shape[1], edge_features.shape[1], len(arrays.globals))
    if found != (schema.node_width, schema.edge_width, len(schema.globals)):
        raise ValueError(
            "the schema must have as many columns as node_features, edge_features and globals, "
            f"{found}, got {(schema.node_width, schema.edge_width, len(schema.globals))}"
        )
    graph: ObservationGraph = _structure(
        np.ascontiguousarray(arrays.node_types, np.int64).tobytes(),
        np.ascontiguousarray(arrays.edges, np.int64).tobytes(),
        np.ascontiguousarray(arrays.edge_types, np.int64).tobytes(),
        schema,
    ).local_var()
    for index, node in enumerate(schema.nodes):
        rows = features[arrays.node_types == index, : len(node.columns)]
        graph.nodes[node.name].data[FEATURES] = torch.tensor(rows)
    for index, edge in enumerate(schema.edges):
        if edge.columns:
            rows = edge_features[arrays.edge_types == index, : len(edge.columns)]
            graph.edges[edge.ends].data[FEATURES] = torch.tensor(rows)
    graph.nodes[GLOBAL_TYPE].data[FEATURES] = torch.tensor(arrays.globals).unsqueeze(0)
    return graph


def to_arrays(graph: Any, schema: GraphSchema | None = None) -> GraphArrays:
    """The inverse of :func:`to_dgl`, with edges grouped by type. All arrays are new."""
    values = graph.nodes[GLOBAL_TYPE].data[FEATURES].numpy()[0].copy()
    if schema is None:
        schema = numbered_layer_schema(graph.nodes[NODE_TYPE].data[FEATURES].shape[1], len(values))
    counts = np.array([graph.num_nodes(node.name) for node in schema.nodes], np.int64)
    first = _first_rows(counts)
    ends = [
        np.stack([side.numpy() for side in graph.edges(etype=kind.ends)])
        + first[list(numbers)].reshape(2, 1)
        for kind, numbers in zip(schema.edges, schema.edge_ends, strict=True)
    ]
    nodes = [graph.nodes[node.name].data[FEATURES].numpy() for node in schema.nodes]
    edges = [
        graph.edges[kind.ends].data[FEATURES].numpy()
        if kind.columns
        else np.zeros((pairs.shape[1], 0), np.float32)
        for kind, pairs in zip(schema.edges, ends, strict=True)
    ]
    return GraphArrays(
        node_features=_joined(nodes, schema.node_width),
        edges=np.concatenate(ends, axis=1),
        edge_types=np.repeat(np.arange(len(ends)), [pairs.shape[1] for pairs in ends]),
        globals=values,
        node_types=np.repeat(np.arange(len(counts)), counts),
        edge_features=_joined(edges, schema.edge_width),
    )


def _joined(tables: list[npt.NDArray[np.float32]], width: int) -> npt.NDArray[np.float32]:
    """Tables of unequal width below one another, filled with zeros. A new array."""
    joined = np.zeros((sum(map(len, tables)), width), np.float32)
    row = 0
    for table in tables:
        joined[row : row + len(table), : table.shape[1]] = table
        row += len(table)
    return joined


class SharedGraphs(tuple[ObservationGraph, ...]):
    """Graphs in shared memory, made on access.

    ``AsyncVectorEnv`` reads the shared memory once, when it is empty, and from then on copies what
    it got. So this keeps looking at the memory, and a deep copy is a tuple of the present graphs.

    Args:
        memory: A batch of what :func:`compress_env.observations.arrays.pad` returns.
        schema: Types and columns of the graphs.
        n: Number of graphs.
    """

    _memory: dict[str, npt.NDArray[Any]]
    _schema: GraphSchema

    def __new__(  # noqa: D102
        cls, memory: dict[str, npt.NDArray[Any]], schema: GraphSchema, n: int
    ) -> SharedGraphs:
        placeholders: Any = [None] * n  # They give the length.
        graphs = super().__new__(cls, placeholders)
        graphs._memory, graphs._schema = memory, schema
        return graphs

    def _read(self) -> tuple[ObservationGraph, ...]:
        return tuple(
            to_dgl(
                unpad({name: values[index] for name, values in self._memory.items()}),
                self._schema,
            )
            for index in range(len(self))
        )

    def __iter__(self) -> Iterator[ObservationGraph]:
        return iter(self._read())

    @overload
    def __getitem__(self, index: SupportsIndex) -> ObservationGraph: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ObservationGraph, ...]: ...
    def __getitem__(
        self, index: SupportsIndex | slice
    ) -> ObservationGraph | tuple[ObservationGraph, ...]:
        return self._read()[index]

    def __eq__(self, other: object) -> bool:
        return self._read() == (other._read() if isinstance(other, SharedGraphs) else other)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[ObservationGraph, ...]:
        return self._read()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._read(),)
