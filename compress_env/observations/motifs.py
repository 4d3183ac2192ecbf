"""Motifs of a traced network: the small graphs of operations that occur in it again and again.

Values (tensors) are nodes; an operation is an edge from every value it reads to the value it makes.
Nothing here looks at names of networks or modules, only at what the operations are and how they
are joined:

1. *Cuts* are values that all data passes through. Between two neighbouring cuts lies one operation
   or a *branching region*: a residual block, a shuffle unit, an inception module.
2. A region that is series-parallel (Valdes, Tarjan and Lawler, 1982: repeatedly joining edges that
   follow one another or lie side by side leaves one edge) is the core of a motif. Of any other,
   such as a dense block, the edges that are left are motifs: the dense layers and their
   concatenations.
3. Along the cuts a motif starts with every layer and every region. What follows without changing
   the shape (normalisation, activation, a shuffle) belongs to it; other operations in a row, say a
   pooling and a flattening, are a motif of their own.
4. Two pieces are the same motif when their graphs are isomorphic with equal operations: kind, and
   for layers kernel and stride. Numbers of channels do not count, so the blocks of all stages of a
   ResNet are one motif, but for those with a stride.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import networkx
import numpy as np
from torch import fx, nn

from compress_env.channel_modules import ChannelModule
from compress_env.layer_graph import LayerGraph
from compress_env.operations import (
    ARITHMETIC,
    CHANNELWISE_FUNCTIONS,
    CHANNELWISE_MODULES,
    CONCATENATIONS,
    MOVES,
    MOVING_MODULES,
    REDUCTIONS,
    operation_name,
)
from compress_env.tracing import shapes_of

KINDS = (
    "conv", "depthwise", "grouped", "linear", "normalize", "activate", "pool", "add", "multiply",
    "concatenate", "move", "other",
)  # fmt: skip
"""Kinds of operations. `move` only puts values elsewhere: slices, splits, shuffles, padding."""

_MULTIPLICATIONS = frozenset(["mul", "mul_", "imul", "div", "div_", "truediv", "itruediv"])
_WITHOUT_EFFECT = ("dropout", "identity", "stochasticdepth", "contiguous", "clone", "detach")


@dataclass(frozen=True, order=True)
class Operation:
    """A primitive operation. Equal operations are the same edge of a motif.

    Attributes:
        kind: one of `KINDS`.
        name: which activation, normalisation or pooling; empty for all other kinds.
        kernel: side of a layer's kernel; 0 for what is no layer.
        stride: stride of a layer; of any other operation how many times it shrinks the sides.
    """

    kind: str
    name: str = ""
    kernel: int = 0
    stride: int = 1


@dataclass(frozen=True, eq=False)
class Motif:
    """A graph of operations with one input and one output.

    Attributes:
        size: number of values; 0 is the input, `size - 1` the output, all in the order of the
            data flow.
        edges: int64 (2, e), from the value read to the value made.
        operations: one per edge.
    """

    size: int
    edges: np.ndarray
    operations: tuple[Operation, ...]

    def describe(self) -> str:
        """The kinds of its operations in order, as in `"conv normalize activate"`."""
        made = dict(zip(self.edges[1].tolist(), self.operations, strict=True))
        return " ".join(made[value].kind for value in sorted(made))


@dataclass(frozen=True)
class Occurrence:
    """A motif at its place in the network.

    Attributes:
        motif: number of the motif.
        source: number of the hidden state that it reads.
        destination: number of the hidden state that it makes.
        layers: indices of its layers in `LayerGraph.layers`.
    """

    motif: int
    source: int
    destination: int
    layers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class State:
    """A hidden state: a tensor between motifs, the network's input or its output.

    Attributes:
        atoms: int64 (channels,), the atoms of its channels; empty where no layer has made it.
        channels: channels in the dense network.
        positions: height times width; 1 for a vector.
    """

    atoms: np.ndarray
    channels: int
    positions: int


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The computation graph in two levels.

    Attributes:
        motifs: the lower level, in the order in which they first occur.
        states: the upper level's nodes, in the order of the data flow.
        occurrences: the upper level's edges, likewise.
    """

    motifs: tuple[Motif, ...]
    states: tuple[State, ...]
    occurrences: tuple[Occurrence, ...]


@dataclass(frozen=True)
class _Piece:
    """Edges between values that belong together, from value `source` to value `destination`."""

    source: int
    destination: int
    edges: tuple[tuple[int, int], ...]


def find_motifs(graph: LayerGraph) -> Hierarchy:
    """The two-level computation graph of a network.

    Args:
        graph: the traced network.
    """
    flow = _Flow(graph)
    pieces = _pieces(flow)
    ends = {end for piece in pieces for end in (piece.source, piece.destination)}
    number = {value: index for index, value in enumerate(sorted(ends))}
    known: dict[str, list[int]] = defaultdict(list)
    drawn: list[networkx.DiGraph] = []
    motifs: list[Motif] = []
    occurrences = []
    for piece in pieces:
        motif, picture = _draw(piece, flow)
        alike = known[networkx.weisfeiler_lehman_graph_hash(picture, "operation", "role")]
        same = next((index for index in alike if _same(drawn[index], picture)), None)
        if same is None:
            same = len(motifs)
            alike.append(same)
            motifs.append(motif)
            drawn.append(picture)
        made = sorted({made for _, made in piece.edges})
        layers = tuple(flow.layer[value] for value in made if value in flow.layer)
        ends_of = number[piece.source], number[piece.destination]
        occurrences.append(Occurrence(same, *ends_of, layers))
    states = tuple(flow.state(value) for value in sorted(ends))
    return Hierarchy(tuple(motifs), states, tuple(occurrences))


def _draw(piece: _Piece, flow: _Flow) -> tuple[Motif, networkx.DiGraph]:
    """A piece as a motif, and as what networkx can compare."""
    values = sorted({value for edge in piece.edges for value in edge})
    place = {value: index for index, value in enumerate(values)}
    edges = sorted((place[read], place[made]) for read, made in piece.edges)
    operations = tuple(flow.operation(values[made]) for _, made in edges)
    picture = networkx.DiGraph()
    for index in range(len(values)):
        picture.add_node(
            index, role=("input" if index == 0 else "") + str(len(values) - 1 == index)
        )
    for (read, made), operation in zip(edges, operations, strict=True):
        picture.add_edge(read, made, operation=str(operation))
    return Motif(len(values), np.array(edges, dtype=np.int64).T, operations), picture


def _same(first: networkx.DiGraph, second: networkx.DiGraph) -> bool:
    return bool(networkx.is_isomorphic(first, second, lambda a, b: a == b, lambda a, b: a == b))


# -- the flow of values ------------------------------------------------------------------------


class _Flow:
    """Values of a traced network that lie between its input and its output.

    Value 0 is the input; values are numbered in the order of the data flow. A network with several
    outputs has one more value at the end, made from them by an operation of kind `other`.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.modules = dict(graph.module.named_modules())
        nodes = list(graph.module.graph.nodes)
        reached = _closure((node for node in nodes if node.op == "placeholder"), forwards=True)
        (output,) = (node for node in nodes if node.op == "output")
        useful = _closure(output.all_input_nodes, forwards=False)
        self.nodes = [
            node
            for node in nodes
            if node in reached & useful and (node.op == "placeholder" or shapes_of(node))
        ]
        if len(output.all_input_nodes) > 1:
            self.nodes.append(output)
        number = {node: index for index, node in enumerate(self.nodes)}
        self.reads = [
            [number[other] for other in node.all_input_nodes if other in number]
            for node in self.nodes
        ]
        self.layer = {
            index: graph.layer_index[str(node.target)]
            for index, node in enumerate(self.nodes)
            if node.op == "call_module" and str(node.target) in graph.layer_index
        }
        self.atoms: list[np.ndarray] = []
        for index, read in enumerate(self.reads):
            if index in self.layer:
                found = [graph.layers[self.layer[index]].out_atoms]
            else:
                found = [self.atoms[other] for other in read]
            self.atoms.append(np.unique(np.concatenate([np.empty(0, np.int64), *found])))

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value, of a tuple that of its first tensor; () if it is no tensor."""
        shapes = shapes_of(self.nodes[value])
        return tuple(shapes[0]) if isinstance(shapes, list) else tuple(shapes or ())

    def state(self, value: int) -> State:
        """A value as a hidden state."""
        shape = self.shape(value)
        atoms = self.atoms[value]
        channels = atoms.size or (shape[1] if len(shape) > 1 else 1)
        return State(atoms, int(channels), int(np.prod(shape[2:])))

    def operation(self, value: int) -> Operation:
        """The operation that makes a value."""
        if value in self.layer:
            layer = self.graph.layers[self.layer[value]]
            return Operation(layer.kind, "", layer.kernel[0], layer.stride[0])
        node = self.nodes[value]
        kind, name = _kind(node, self.modules), ""
        if kind in ("normalize", "activate", "pool"):
            name = operation_name(node, self.modules).lower().replace("_", "")
        return Operation(kind, name, 0, self._shrinks(value))

    def _shrinks(self, value: int) -> int:
        after = self.shape(value)
        before = self.shape(self.reads[value][0]) if self.reads[value] else ()
        if len(before) < 4 or len(after) < 4 or after[2] <= 1:
            return 1
        return max(1, round(before[2] / after[2]))


def _closure(start: Iterable[fx.Node], forwards: bool) -> set[fx.Node]:
    """All nodes that can be reached from some, along the flow of data or against it."""
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.users if forwards else node.all_input_nodes)
    return found


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The kind of an operation that is no layer."""
    name = operation_name(node, modules)
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    plain = name.lower().replace("_", "")
    activation = isinstance(module, (*CHANNELWISE_MODULES, nn.PReLU))
    moving = isinstance(module, (ChannelModule, *MOVING_MODULES))
    # The first that holds: some names stand in several tables.
    tests = (
        ("other", plain.startswith(_WITHOUT_EFFECT)),
        ("move", moving or name in MOVES or "pad" in plain),
        ("normalize", "norm" in plain),
        ("pool", "pool" in plain or name in REDUCTIONS),
        ("multiply", name in _MULTIPLICATIONS),
        ("add", name in ARITHMETIC),
        ("concatenate", name in CONCATENATIONS),
        ("activate", activation or name in CHANNELWISE_FUNCTIONS),
    )
    return next((kind for kind, holds in tests if holds), "other")


# -- pieces ------------------------------------------------------------------------------------


def _pieces(flow: _Flow) -> list[_Piece]:
    """Cut the flow into occurrences of motifs, in the order of their inputs."""
    cuts = _cuts(flow)
    done: list[_Piece] = []
    current: _Piece | None = None
    holds_core = False  # whether the current piece has a layer or a region
    for source, destination in pairwise(cuts):
        parts = _region(flow, source, destination)
        (part,) = parts if len(parts) == 1 else (None,)
        is_core = part is None or len(part.edges) > 1 or destination in flow.layer
        keeps_shape = flow.shape(source) == flow.shape(destination)
        if part and current and not is_core and (keeps_shape or not holds_core):
            current = _Piece(current.source, destination, current.edges + part.edges)
            continue
        done.extend([current] if current else [])
        done.extend([] if part else parts)
        current, holds_core = part, is_core
    done.extend([current] if current else [])
    return done


def _cuts(flow: _Flow) -> list[int]:
    """Values that no edge passes by; exact for any order of the data flow."""
    last_reader = list(range(len(flow.reads)))
    for value, read in enumerate(flow.reads):
        for other in read:
            last_reader[other] = value
    cuts, furthest = [], 0
    for value, reader in enumerate(last_reader):
        if furthest <= value:
            cuts.append(value)
        furthest = max(furthest, reader)
    return cuts


def _region(flow: _Flow, source: int, destination: int) -> list[_Piece]:
    """Join what is in series or parallel between two cuts, until nothing more can be joined."""
    joined: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
        (read, made): ((read, made),)
        for made in range(source + 1, destination + 1)
        for read in flow.reads[made]
    }
    makers, readers = defaultdict(set), defaultdict(set)
    for read, made in joined:
        makers[made].add(read)
        readers[read].add(made)
    waiting = list(range(source + 1, destination))
    while waiting:
        value = waiting.pop()
        if len(makers[value]) != 1 or len(readers[value]) != 1:
            continue
        (before,), (after,) = makers.pop(value), readers.pop(value)
        edges = joined.pop((before, value)) + joined.pop((value, after))
        joined[before, after] = joined.get((before, after), ()) + edges
        readers[before].remove(value)
        readers[before].add(after)
        makers[after].remove(value)
        makers[after].add(before)
        waiting.extend(end for end in (before, after) if source < end < destination)
    return [_Piece(*ends, joined[ends]) for ends in sorted(joined)]
