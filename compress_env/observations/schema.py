"""What kinds of nodes and edges an observation has, and what its columns are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

GLOBAL_TYPE = "network"
"""Node type of the DGL form that holds the globals; no other node type may have this name."""


@dataclass(frozen=True)
class NodeType:
    """A kind of node.

    Attributes:
        name: name of the node type.
        columns: names of its features, in order.
    """

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class EdgeType:
    """A kind of edge.

    Attributes:
        source: node type that it comes from.
        name: name of the edge type.
        destination: node type that it goes to.
        columns: names of its features, in order; most kinds of edges have none.
    """

    source: str
    name: str
    destination: str
    columns: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, str, str]:
        """What DGL calls the canonical edge type."""
        return self.source, self.name, self.destination


@dataclass(frozen=True)
class GraphSchema:
    """The types and columns of an observation: what is the same for every network and plan.

    Node and edge types are numbered by their places here.

    Attributes:
        nodes: at least one node type.
        edges: at least one edge type.
        globals: names of what concerns the whole network, at least one.

    Raises:
        ValueError: a name is used twice, or an edge type joins unknown node types.
    """

    nodes: tuple[NodeType, ...]
    edges: tuple[EdgeType, ...]
    globals: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not names or not self.edges or not self.globals:
            raise ValueError("a schema has at least one node type, edge type and global")
        if len({*names, GLOBAL_TYPE}) <= len(names):
            raise ValueError(
                f"node types must have names of their own, other than '{GLOBAL_TYPE}', got {names}"
            )
        for edge in self.edges:
            if not {edge.source, edge.destination} <= set(names):
                raise ValueError(
                    f"edge type '{edge.name}' must join two of the node types {names}, not "
                    f"'{edge.source}' and '{edge.destination}'"
                )
        if len({edge.ends for edge in self.edges}) < len(self.edges):
            raise ValueError("edge types must differ in name or node types")
        tables = [*(node.columns for node in self.nodes), *(edge.columns for edge in self.edges)]
        for columns in (*tables, self.globals):
            if len(set(columns)) < len(columns):
                raise ValueError(f"columns must have names of their own, got {columns}")

    @cached_property
    def node_width(self) -> int:
        """Columns of the widest node type: F, the width of ``GraphArrays.node_features``."""
        return max(len(node.columns) for node in self.nodes)

    @cached_property
    def edge_width(self) -> int:
        """Columns of the widest edge type; 0 where no edge type has features."""
        return max(len(edge.columns) for edge in self.edges)

    @cached_property
    def edge_ends(self) -> tuple[tuple[int, int], ...]:
        """Numbers of the node types that every edge type joins."""
        number = {node.name: index for index, node in enumerate(self.nodes)}
        return tuple((number[edge.source], number[edge.destination]) for edge in self.edges)


def layer_schema(node_columns: tuple[str, ...], global_columns: tuple[str, ...]) -> GraphSchema:
    """One node per layer, edges for the data flow and for coupled channels.

    Args:
        node_columns: names of a layer's features.
        global_columns: names of the globals.
    """
    edges = tuple(EdgeType("layer", name, "layer") for name in ("flow", "coupling"))
    return GraphSchema((NodeType("layer", node_columns),), edges, global_columns)


def numbered_layer_schema(num_node_features: int, num_globals: int) -> GraphSchema:
    """:func:`layer_schema` with columns called by their numbers.

    Raises:
        ValueError: a size is not positive.
    """
    if min(num_node_features, num_globals) < 1:
        raise ValueError("num_node_features and num_globals must be at least 1")
    return layer_schema(
        tuple(map(str, range(num_node_features))), tuple(map(str, range(num_globals)))
    )
