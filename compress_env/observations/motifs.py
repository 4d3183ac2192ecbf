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
   the shape (normalisation, activation, a shuffle, but no pooling) belongs to it; other operations
   in a row, say a pooling and a flattening, are a motif of their own.
4. Two pieces are the same motif when their graphs are isomorphic with equal operations: kind, and
   for layers kernel and stride. Numbers of channels do not count, so the blocks of all stages of a
   ResNet are one motif, but for those with a stride.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import networkx
import numpy as np

from compress_env.layer_graph import LayerGraph
from compress_env.observations.value_flow import Operation, State, ValueFlow


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
    flow = ValueFlow(graph)
    pieces = _pieces(flow)
    ends = {end for piece in pieces for end in (piece.source, piece.destination)}
    number = {value: index for index, value in enumerate(sorted(ends))}
    known: dict[tuple[Operation, ...], list[int]] = defaultdict(list)
    drawn: list[networkx.DiGraph] = []
    motifs: list[Motif] = []
    occurrences = []
    for piece in pieces:
        motif, picture = _draw(piece, flow)
        alike = known[tuple(sorted(motif.operations))]
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


def _draw(piece: _Piece, flow: ValueFlow) -> tuple[Motif, networkx.DiGraph]:
    """A piece as a motif, and as what networkx can compare."""
    values = sorted({value for edge in piece.edges for value in edge})
    place = {value: index for index, value in enumerate(values)}
    edges = sorted((place[read], place[made]) for read, made in piece.edges)
    operations = tuple(flow.operation(values[made]) for _, made in edges)
    picture = networkx.DiGraph()
    for index in range(len(values)):
        picture.add_node(index, is_input=index == 0, is_output=index == len(values) - 1)
    for (read, made), operation in zip(edges, operations, strict=True):
        picture.add_edge(read, made, operation=operation)
    return Motif(len(values), np.array(edges, dtype=np.int64).T, operations), picture


def _same(first: networkx.DiGraph, second: networkx.DiGraph) -> bool:
    return bool(networkx.is_isomorphic(first, second, lambda a, b: a == b, lambda a, b: a == b))


# -- pieces ------------------------------------------------------------------------------------


def _pieces(flow: ValueFlow) -> list[_Piece]:
    """Cut the flow into occurrences of motifs, in the order of their inputs."""
    cuts = _cuts(flow)
    done: list[_Piece] = []
    current: _Piece | None = None
    holds_core = False  # whether the current piece has a layer or a region
    for source, destination in pairwise(cuts):
        parts = _region(flow, source, destination)
        (part,) = parts if len(parts) == 1 else (None,)
        is_core = part is None or len(part.edges) > 1 or destination in flow.layer
        follows = flow.shape(source) == flow.shape(destination)
        follows &= flow.operation(destination).kind != "pool"
        if part and current and not is_core and (follows or not holds_core):
            current = _Piece(current.source, destination, current.edges + part.edges)
            continue
        done.extend([current] if current else [])
        done.extend([] if part else parts)
        current, holds_core = part, is_core
    done.extend([current] if current else [])
    return done


def _cuts(flow: ValueFlow) -> list[int]:
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


def _region(flow: ValueFlow, source: int, destination: int) -> list[_Piece]:
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
