"""The graph of a network as rows one below the other, and lanes for what skips rows.

A row is the input, a layer, an operation that joins several values (an addition, a concatenation)
or the output, in the order of the data flow. Everything between that has one input, such as an
activation or a padded shortcut, is left out: it is part of the line. A value that is read by the
next row goes straight down; for all others who read it, it has a lane beside the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from compress_agents.html_report.words import TIMES
from compress_env.layer_graph import LayerGraph

__all__ = ["Lane", "Row", "assign_lanes", "network_rows"]

_JOINS = {
    "add": ("+", "addition"),
    "iadd": ("+", "addition"),
    "cat": ("‖", "concatenation"),
    "concat": ("‖", "concatenation"),
    "mul": (TIMES, "multiplication"),
    "imul": (TIMES, "multiplication"),
}
_UNKNOWN_JOIN = "ƒ"


@dataclass(frozen=True)
class Row:
    """A node of the picture.

    Attributes:
        kind: `"input"`, `"layer"`, `"join"` or `"output"`.
        sources: rows whose values it reads, rising.
        layer: index of the layer; -1 for others.
        symbol: one character for a join.
        title: what a join is, in a word.
    """

    kind: str
    sources: tuple[int, ...]
    layer: int = -1
    symbol: str = ""
    title: str = ""


@dataclass(frozen=True)
class Lane:
    """A value on its way past rows.

    Attributes:
        source: row that makes it.
        readers: rows that read it, rising; the next row is not among them.
        place: 0 for the lane nearest to the rows.
    """

    source: int
    readers: tuple[int, ...]
    place: int


def network_rows(graph: LayerGraph) -> list[Row]:
    """The rows of a network's picture.

    Args:
        graph: its layer graph.

    Returns:
        The input first, then layers and joins in the order of the data flow, then the output.
    """
    rows: list[Row] = []
    made_by: dict[fx.Node, frozenset[int]] = {}

    def append(row: Row) -> frozenset[int]:
        rows.append(row)
        return frozenset([len(rows) - 1])

    for node in graph.module.graph.nodes:
        read = tuple(sorted(frozenset().union(*(made_by[n] for n in node.all_input_nodes))))
        layer = graph.layer_index.get(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder":
            made_by[node] = append(Row("input", ()))
        elif node.op == "output":
            append(Row("output", read))
        elif layer is not None:
            made_by[node] = append(Row("layer", read, layer))
        elif len(read) > 1:
            symbol, title = _join(node)
            made_by[node] = append(Row("join", read, symbol=symbol, title=title))
        else:
            made_by[node] = frozenset(read)
    return rows


def _join(node: fx.Node) -> tuple[str, str]:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "operation")
    name = name.rpartition(".")[2]
    return _JOINS.get(name, (_UNKNOWN_JOIN, name))


def assign_lanes(rows: Sequence[Row]) -> list[Lane]:
    """Lanes for all values that are read further down than by the next row.

    Shorter ones lie nearer to the rows; no two that share a stretch share a place.

    Args:
        rows: of a network.

    Returns:
        In the order of their sources.
    """
    readers: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for source in row.sources:
            if source != index - 1:
                readers.setdefault(source, []).append(index)
    taken: list[list[tuple[int, int]]] = []
    lanes = []
    for source in sorted(readers, key=lambda source: (readers[source][-1] - source, source)):
        start, end = source, readers[source][-1]
        place = next(
            (
                place
                for place, stretches in enumerate(taken)
                if all(
                    end <= other_start or other_end <= start for other_start, other_end in stretches
                )
            ),
            len(taken),
        )
        if place == len(taken):
            taken.append([])
        taken[place].append((start, end))
        lanes.append(Lane(source, tuple(readers[source]), place))
    return sorted(lanes, key=lambda lane: lane.source)
