"""A traced network as a graph: values (tensors) are nodes, operations make one from others.

What stands between the input and the output, with a label for every operation that says what it
does, whatever it is called. `compress_env.observations.motifs` looks for motifs in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
_GLOBAL = ("adaptive", *REDUCTIONS)  # poolings to a size that does not depend on the image's
_WITHOUT_EFFECT = ("dropout", "identity", "stochasticdepth", "contiguous", "clone", "detach")


@dataclass(frozen=True, order=True)
class Operation:
    """A primitive operation. Equal operations are the same edge of a motif.

    Attributes:
        kind: one of `KINDS`.
        name: which activation, normalisation or pooling; empty for all other kinds.
        kernel: side of a layer's kernel; 0 for what is no layer.
        stride: stride of a layer; of any other operation how many times it shrinks the sides, 1
            for a pooling over the whole image.
    """

    kind: str
    name: str = ""
    kernel: int = 0
    stride: int = 1


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


class ValueFlow:
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
        between = reached & _closure(output.all_input_nodes, forwards=False)
        self.nodes = [
            node
            for node in nodes
            if node in between and (node.op == "placeholder" or shapes_of(node))
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
        return Operation(kind, name, 0, 1 if name.startswith(_GLOBAL) else self._shrinks(value))

    def _shrinks(self, value: int) -> int:
        after = self.shape(value)
        before = self.shape(self.reads[value][0]) if self.reads[value] else ()
        if len(before) < 4 or len(after) < 4:
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
