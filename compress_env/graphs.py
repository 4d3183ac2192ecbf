"""The DGL form of an observation: :class:`ObservationGraph`, from and to :class:`GraphArrays`.

A graph has two node types: ``"layer"``, one node per layer with ``data["features"]`` float32
``(N, F)``, and ``"network"``, one node with ``data["features"]`` float32 ``(1, G)``, the globals.
Its edges are of the types ``("layer", "flow", "layer")`` and ``("layer", "coupling", "layer")``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch

from compress_env.dgl_import import dgl
from compress_env.observations.arrays import EDGE_TYPES, GraphArrays, unpad

NODE_TYPE = "layer"
GLOBAL_TYPE = "network"
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
    num_nodes: int, edges: bytes, edge_types: bytes, edge_type_names: tuple[str, ...]
) -> ObservationGraph:
    """A graph without features. An environment's edges rarely change, hence the cache."""
    source, destination = np.frombuffer(edges, np.int64).reshape(2, -1)
    kind = np.frombuffer(edge_types, np.int64)
    if len(kind) and not 0 <= kind.min() <= kind.max() < len(edge_type_names):
        raise ValueError(f"edge_types must be in [0, {len(edge_type_names)})")
    if len(kind) and min(source.min(), destination.min()) < 0:
        raise ValueError(f"edges must be in [0, {num_nodes})")
    graph = dgl.heterograph(
        {
            (NODE_TYPE, name, NODE_TYPE): (
                torch.tensor(source[kind == index]),
                torch.tensor(destination[kind == index]),
            )
            for index, name in enumerate(edge_type_names)
        },
        num_nodes_dict={NODE_TYPE: num_nodes, GLOBAL_TYPE: 1},
    )
    return ObservationGraph(graph._graph, graph.ntypes, graph.etypes)


def to_dgl(arrays: GraphArrays, edge_type_names: tuple[str, ...] = EDGE_TYPES) -> ObservationGraph:
    """Makes the DGL form. Features are copied; graphs with equal edges share the structure.

    Args:
        arrays: The observation.
        edge_type_names: One name per edge type.

    Returns:
        The graph, on the CPU, with int64 ids.

    Raises:
        ValueError: If an edge type is out of range.
    """
    graph: ObservationGraph = _structure(
        len(arrays.node_features),
        np.ascontiguousarray(arrays.edges, np.int64).tobytes(),
        np.ascontiguousarray(arrays.edge_types, np.int64).tobytes(),
        edge_type_names,
    ).local_var()
    graph.nodes[NODE_TYPE].data[FEATURES] = torch.tensor(arrays.node_features)
    graph.nodes[GLOBAL_TYPE].data[FEATURES] = torch.tensor(arrays.globals).unsqueeze(0)
    return graph


def to_arrays(graph: Any, edge_type_names: tuple[str, ...] = EDGE_TYPES) -> GraphArrays:
    """The inverse of :func:`to_dgl`, with edges grouped by type. All arrays are new."""
    pairs = [graph.edges(etype=(NODE_TYPE, name, NODE_TYPE)) for name in edge_type_names]
    return GraphArrays(
        node_features=graph.nodes[NODE_TYPE].data[FEATURES].numpy().copy(),
        edges=np.stack(
            [np.concatenate([ends.numpy() for ends in side]) for side in zip(*pairs, strict=True)]
        ),
        edge_types=np.repeat(np.arange(len(pairs)), [len(source) for source, _ in pairs]),
        globals=graph.nodes[GLOBAL_TYPE].data[FEATURES].numpy()[0].copy(),
    )


class SharedGraphs(tuple[ObservationGraph, ...]):
    """Graphs in shared memory, made on access.

    ``AsyncVectorEnv`` reads the shared memory once, when it is empty, and from then on copies what
    it got. So this keeps looking at the memory, and a deep copy is a tuple of the present graphs.

    Args:
        memory: A batch of what :func:`compress_env.observations.arrays.pad` returns.
        edge_type_names: One name per edge type.
        n: Number of graphs.
    """

    _memory: dict[str, npt.NDArray[Any]]
    _edge_type_names: tuple[str, ...]

    def __new__(  # noqa: D102
        cls, memory: dict[str, npt.NDArray[Any]], edge_type_names: tuple[str, ...], n: int
    ) -> SharedGraphs:
        placeholders: Any = [None] * n  # They give the length.
        graphs = super().__new__(cls, placeholders)
        graphs._memory, graphs._edge_type_names = memory, edge_type_names
        return graphs

    def _read(self) -> tuple[ObservationGraph, ...]:
        return tuple(
            to_dgl(
                unpad({name: values[index] for name, values in self._memory.items()}),
                self._edge_type_names,
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
