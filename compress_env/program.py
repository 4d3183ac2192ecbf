"""A traced network as a list of steps, with what can be fused found once for all plans.

A layer takes with it the BatchNorm that can be folded, an addition whose other operand is not
needed any more, and a ReLU. Everything else runs as it stands, on float tensors.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from compress_env.channel_modules import PadChannels
from compress_env.layer_graph import LayerGraph

_RELU = (torch.relu, functional.relu, "relu", "relu_")
_ALLOCATING = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.ReLU, PadChannels)
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, eq=False)
class LayerStep:
    """A layer with what is fused to it.

    Attributes:
        layer: its index in the layer graph.
        name: its name.
        source: node whose value it reads.
        target: node whose value it makes (the last one fused).
        norm: name of the folded BatchNorm, or None.
        residual: node whose value is added, or None; it is not needed afterwards.
        relu: whether a ReLU follows.
        readers: layers that read the result, if nothing else does; else None.
        dead: nodes whose values are not needed after this step.
    """

    layer: int
    name: str
    source: fx.Node
    target: fx.Node
    norm: str | None
    residual: fx.Node | None
    relu: bool
    readers: tuple[int, ...] | None
    dead: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class PlainStep:
    """Any other operation.

    Attributes:
        node: the node.
        dead: nodes whose values are not needed after this step.
    """

    node: fx.Node
    dead: tuple[fx.Node, ...]


class Program:
    """The steps of a network.

    Args:
        graph: the layer graph.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        nodes = list(graph.module.graph.nodes)
        self.input = next(node for node in nodes if node.op == "placeholder")
        self.result = nodes[-1].args[0]
        self._order = {node: place for place, node in enumerate(nodes)}
        calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
        self._once = {name for name, count in calls.items() if count == 1}
        self._unfused: set[fx.Node] = set()
        steps = self._steps(nodes)
        while (late := _changed_too_early(steps)) is not None:
            self._unfused.add(late)
            steps = self._steps(nodes)
        self.steps = self._with_deaths(steps)

    def _steps(self, nodes: list[fx.Node]) -> list[LayerStep | PlainStep]:
        fused: dict[fx.Node, LayerStep] = {}
        swallowed: set[fx.Node] = set()
        for node in nodes:
            if self._layer_of(node) is not None:
                step, inner = self._fuse(node, swallowed)
                fused[node] = step
                swallowed |= inner
        steps: list[LayerStep | PlainStep] = []
        for node in nodes:
            if node in fused:
                steps.append(fused[node])
            elif node not in swallowed and node.op not in ("placeholder", "output"):
                steps.append(PlainStep(node, ()))
        # A fused step runs where its last node stood, when all that it reads is there.
        return sorted(steps, key=lambda step: self._order[_target(step)])

    def _layer_of(self, node: fx.Node) -> int | None:
        if node.op != "call_module" or str(node.target) not in self._once:
            return None
        return self.graph.layer_index.get(str(node.target))

    def _fuse(self, node: fx.Node, taken: set[fx.Node]) -> tuple[LayerStep, set[fx.Node]]:
        inner: set[fx.Node] = set()
        norm = self.graph.folds.get(str(node.target))
        last = node
        if norm is not None:
            last = _only_user(node)
            inner.add(last)
        residual = None
        user = _only_user(last, required=False)
        if user is not None and user not in taken and self._is_fusible_add(user, last):
            operands = [argument for argument in user.args if argument is not last]
            assert isinstance(operands[0], fx.Node)
            residual, last = operands[0], user
            inner.add(user)
            user = _only_user(last, required=False)
        relu = user is not None and self._is_relu(user)
        if user is not None and relu:
            last = user
            inner.add(user)
        index = self._layer_of(node)
        source = node.args[0]
        assert index is not None and isinstance(source, fx.Node)
        readers = [self._layer_of(reader) for reader in last.users]
        only = tuple(reader for reader in readers if reader is not None)
        whole = only if len(only) == len(readers) and only else None
        inner.discard(node)
        name = str(node.target)
        return LayerStep(index, name, source, last, norm, residual, relu, whole, ()), inner

    def _is_fusible_add(self, node: fx.Node, result: fx.Node) -> bool:
        """Whether an addition can be done in place in its other operand."""
        if node.target not in _ADD or len(node.args) != 2 or node.kwargs:
            return False
        others = [argument for argument in node.args if argument is not result]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return False
        other = others[0]
        if other.meta.get("shapes") != result.meta.get("shapes"):
            return False
        # Its other readers must be done with it and must not hand on a view of it: layers.
        layers_only = all(user is node or self._layer_of(user) is not None for user in other.users)
        return node not in self._unfused and layers_only and self._owns_memory(other)

    def _owns_memory(self, node: fx.Node) -> bool:
        """Whether a value shares its memory with no other: it was computed, not viewed."""
        if node.op == "call_module":
            return isinstance(self.graph.module.get_submodule(str(node.target)), _ALLOCATING)
        return node.target in _ADD or node.target in _RELU

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.graph.module.get_submodule(str(node.target)), nn.ReLU)
        return node.target in _RELU

    def _with_deaths(self, steps: list[LayerStep | PlainStep]) -> list[LayerStep | PlainStep]:
        last: dict[fx.Node, int] = {}
        for place, step in enumerate(steps):
            for node in reads(step):
                last[node] = place
        kept = set(_nodes_in(self.result))
        dying: dict[int, list[fx.Node]] = {}
        for node, place in last.items():
            if node not in kept:
                dying.setdefault(place, []).append(node)
        return [
            type(step)(**{**step.__dict__, "dead": tuple(dying.get(place, ()))})
            for place, step in enumerate(steps)
        ]


def run_plain(node: fx.Node, values: Mapping[fx.Node, Any], modules: Callable[[str], Any]) -> Any:
    """Run a node that is no fused layer; `modules` gives a module or attribute by its name."""
    if node.op == "get_attr":
        return modules(str(node.target))
    args = fx.node.map_arg(node.args, lambda other: values[other])
    kwargs = fx.node.map_arg(node.kwargs, lambda other: values[other])
    if node.op == "call_module":
        return modules(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def copied(values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Values that steps may change in place while the given ones stay."""
    return {node: _clone(value) for node, value in values.items()}


def _clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(map(_clone, value)) if type(value) in (tuple, list) else value


def reads(step: LayerStep | PlainStep) -> list[fx.Node]:
    """Nodes whose values a step reads."""
    if isinstance(step, PlainStep):
        return list(step.node.all_input_nodes)
    return [step.source] if step.residual is None else [step.source, step.residual]


def called_module(step: LayerStep | PlainStep) -> str:
    """Name of the layer, or of the module that is called; empty for anything else."""
    if isinstance(step, LayerStep):
        return step.name
    return str(step.node.target) if step.node.op == "call_module" else ""


def _changed_too_early(steps: list[LayerStep | PlainStep]) -> fx.Node | None:
    """An addition done in place in a value that a later step still reads, or None."""
    last = {node: place for place, step in enumerate(steps) for node in reads(step)}
    for place, step in enumerate(steps):
        if (
            isinstance(step, LayerStep)
            and step.residual is not None
            and last[step.residual] > place
        ):
            return step.target.all_input_nodes[0] if step.relu else step.target
    return None


def _target(step: LayerStep | PlainStep) -> fx.Node:
    return step.target if isinstance(step, LayerStep) else step.node


def _nodes_in(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found


def _only_user(node: fx.Node, required: bool = True) -> Any:
    users = list(node.users)
    if len(users) == 1:
        return users[0]
    assert not required
    return None
