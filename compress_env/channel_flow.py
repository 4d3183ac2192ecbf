"""What every operation of a traced network does to its channels.

Every tensor carries one integer id per channel. A layer makes new ids; an addition says that two
arrays of ids are the same channels; a concatenation joins arrays; operations that only move data
(slices, splits, transposes, shuffles) are *run on the positions* of the elements, so that what they
do need not be described (`compress_env.channel_moves`). Where the effect of an operation is not
known, the ids it reads are frozen: those channels are never removed.

Operations whose behaviour depends on the number of channels (a shuffle, a split, padding of
channels) are replaced by modules of `compress_env.channel_modules`, which pruning can rebuild.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress_env.channel_modules import ChannelModule, PadChannels, SelectChannels
from compress_env.channel_moves import (
    adds_ones,
    flattens,
    move,
    select_positions,
)
from compress_env.channel_values import ChannelFlow, FoundLayer, Sources, Value, changed
from compress_env.operations import (
    ARITHMETIC,
    CHANNELWISE_FUNCTIONS,
    CHANNELWISE_MODULES,
    CONCATENATIONS,
    COUNT_FREE,
    GROWING,
    KEEPS_SIGN,
    MOVES,
    MOVING_MODULES,
    NONNEGATIVE,
    REDUCTIONS,
    operation_name,
)
from compress_env.tracing import is_layer, record_shapes, shapes_of, single_shape


def follow_channels(module: fx.GraphModule, input_shape: tuple[int, int, int]) -> ChannelFlow:
    """Walk over a traced network and follow its channels.

    Args:
        module: the traced network in evaluation mode. Operations that depend on channel counts
            are replaced in place by modules that can be rebuilt for other counts.
        input_shape: channels, height, width of an image.

    Raises:
        ValueError: an image of this shape cannot pass through the network.
    """
    record_shapes(module, input_shape)
    walk = _Walk(module)
    for node in list(module.graph.nodes):
        walk.visit(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()  # their parameters would count
    module.graph.lint()
    module.recompile()
    return walk.flow


class _Walk:
    """The state of one walk: the value of every node, and what was found."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.modules = dict(module.named_modules())
        self.flow = ChannelFlow()
        self.values: dict[fx.Node, Value] = {}
        self.order: dict[str, int] = {}
        self.replaced: Counter[str] = Counter()

    def visit(self, node: fx.Node) -> None:
        """Give the node a value, if it is a tensor or a tuple of tensors."""
        if node.op == "output":
            for value in self._inputs(node):
                self._freeze(value)
            return
        if node.op == "placeholder":
            shape = shapes_of(node)
            if isinstance(shape, tuple):
                value = self._new(shape, 1)
                self._freeze(value)
                self.values[node] = value
            return
        inputs = self._inputs(node)
        if node.op != "get_attr" and shapes_of(node) is not None and inputs:
            name = operation_name(node, self.modules)
            value = self._visit_operation(node, name, inputs)
            nonnegative = value.nonnegative or name in NONNEGATIVE
            self.values[node] = changed(value, nonnegative=nonnegative)

    def _visit_operation(self, node: fx.Node, name: str, inputs: list[Value]) -> Value:
        if node.op == "call_module":
            return self._visit_module(node, self.modules[str(node.target)], inputs[0])
        for names, handle in (
            (ARITHMETIC, self._arithmetic),
            (CONCATENATIONS, self._concatenate),
        ):
            if name in names:
                return handle(node, inputs)
        if len(inputs) == 1:
            for names, handle_one in (
                (CHANNELWISE_FUNCTIONS, self._pass),
                (MOVES, self._move),
                (REDUCTIONS, self._reduce),
                (frozenset(["pad"]), self._pad),
            ):
                if name in names:
                    return handle_one(node, inputs[0])
        return self._unknown(node, inputs)

    # -- values ------------------------------------------------------------------------------

    def _inputs(self, node: fx.Node) -> list[Value]:
        return [self.values[source] for source in node.all_input_nodes if source in self.values]

    def _constants(self, node: fx.Node) -> list[fx.Node]:
        """Parameters, and numbers and tensors made from shapes, that a node reads."""
        return [other for other in node.all_input_nodes if other not in self.values]

    def _fresh(self, count: int) -> np.ndarray:
        ids = np.arange(self.flow.ids, self.flow.ids + count)
        self.flow.ids += count
        return ids

    def _new(self, shape: tuple[int, ...], dim: int) -> Value:
        dim = min(dim, len(shape) - 1)
        return Value(shape, dim, self._fresh(shape[dim]))

    def _freeze(self, value: Value) -> None:
        """Keep for ever all channels that a value holds."""
        for part in value.parts or (value,):
            if part.ids is not None:
                self.flow.frozen.append(part.ids)
            elif part.origin is not None:
                self._freeze(self.values[part.origin])

    def _same(self, first: np.ndarray, second: np.ndarray) -> None:
        self.flow.same.append(np.stack([first, second]))

    def _unknown(self, node: fx.Node, inputs: Iterable[Value]) -> Value:
        """Leave whole what an operation reads and makes whose effect is not known."""
        inputs = list(inputs)
        for value in inputs:
            self._freeze(value)
        self.flow.unknown[operation_name(node, self.modules)] += 1
        shapes = shapes_of(node)
        sources = Sources.joined(value.sources for value in inputs)
        for value in inputs:
            if value.shape == shapes and value.ids is not None:  # the same form, all of it frozen
                return Value(value.shape, value.dim, value.ids, sources=sources)
        if isinstance(shapes, list):
            parts = tuple(changed(self._new(shape, 1), sources=sources) for shape in shapes)
            value = Value((), parts=parts)
        else:
            assert shapes is not None
            value = changed(self._new(shapes, 1), sources=sources)
        self._freeze(value)
        return value

    def _pass(self, node: fx.Node, value: Value) -> Value:
        """An operation that treats each channel alone."""
        shape = shapes_of(node)
        if value.ids is None or not isinstance(shape, tuple) or len(shape) != len(value.shape):
            return self._unknown(node, [value])
        if shape[value.dim] != len(value.ids) or any(map(_has_elements, self._constants(node))):
            return self._unknown(node, [value])
        name = operation_name(node, self.modules)
        nonnegative = value.nonnegative and name in KEEPS_SIGN
        return Value(shape, value.dim, value.ids, sources=value.sources, nonnegative=nonnegative)

    # -- operations --------------------------------------------------------------------------

    def _visit_module(self, node: fx.Node, module: nn.Module, value: Value) -> Value:
        if isinstance(module, (nn.Conv2d, nn.Linear)) and is_layer(module):
            return self._layer(node, module, value)
        if isinstance(module, MOVING_MODULES):
            return self._move(node, value)
        per_channel = isinstance(module, nn.PReLU) and module.num_parameters > 1
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or per_channel:
            return self._per_channel(node, value)
        if isinstance(module, ChannelModule) and value.ids is not None:
            return self._channel_module(node, module, value)
        if isinstance(module, (*CHANNELWISE_MODULES, nn.PReLU)):
            return self._pass(node, value)
        return self._unknown(node, [value])

    def _per_channel(self, node: fx.Node, value: Value) -> Value:
        """A module with parameters for every channel."""
        if value.ids is None or value.dim != 1:
            return self._unknown(node, [value])
        known = self.flow.channels.setdefault(str(node.target), value.ids)
        self._same(known, value.ids)
        return self._pass(node, value)

    def _channel_module(self, node: fx.Node, module: ChannelModule, value: Value) -> Value:
        """A selection or padding of channels in a network that was traced before."""
        assert value.ids is not None
        name = str(node.target)
        if isinstance(module, PadChannels):
            return self._padded(node, name, value, module.before, module.after)
        assert isinstance(module, SelectChannels)
        self.flow.channels[name] = value.ids
        ids = value.ids[module.index.cpu().numpy()]
        return changed(value, shape=single_shape(node), ids=ids)

    def _layer(self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: Value) -> Value:
        name = str(node.target)
        shape = single_shape(node)
        is_conv = isinstance(module, nn.Conv2d)
        dim = 1 if is_conv else len(shape) - 1
        if value.ids is None or value.dim != dim or value.shape[dim] != len(value.ids):
            # The layer mixes what the tracer could not follow: it stays whole on both sides.
            self.flow.unknown[f"input of layer {name}"] += 1
            self._freeze(value)
            ids = self._fresh(_inputs_of(module))
            self.flow.frozen.append(ids)
            value = Value(value.shape, dim, ids, sources=value.sources)
        assert value.ids is not None
        found = self.flow.layers.get(name)
        if found is None:
            found = self._found_layer(name, module, value.ids)
            self.order[name] = len(self.flow.layers)
            self.flow.layers[name] = found
        else:  # a layer that is used twice
            self._same(found.in_ids, value.ids)
        found.positions += int(np.prod(shape[2:] if is_conv else shape[1:-1], dtype=int))
        found.input_nonnegative &= value.nonnegative
        index = self.order[name]
        self.flow.edges.update(
            (source, index) for source in value.sources.carried if source != index
        )
        return Value(shape, dim, found.out_ids, sources=Sources.layer(index))

    def _found_layer(
        self, name: str, module: nn.Conv2d | nn.Linear, in_ids: np.ndarray
    ) -> FoundLayer:
        has_bias = module.bias is not None
        if isinstance(module, nn.Linear):
            out = self._fresh(module.out_features)
            return FoundLayer(name, "linear", (1, 1), (1, 1), 1, has_bias, in_ids, out)
        groups = module.groups
        depthwise = groups == module.in_channels and groups > 1
        out = in_ids.repeat(module.out_channels // groups) if depthwise else self._fresh(
            module.out_channels
        )  # fmt: skip
        kind = "depthwise" if depthwise else "grouped" if groups > 1 else "conv"
        kernel = (module.kernel_size[0], module.kernel_size[1])
        stride = (module.stride[0], module.stride[1])
        return FoundLayer(name, kind, kernel, stride, groups, has_bias, in_ids, out)

    def _arithmetic(self, node: fx.Node, inputs: list[Value]) -> Value:
        shape = single_shape(node)
        constants = self._constants(node)
        if any(value.ids is None for value in inputs) or any(
            _has_elements(other) or other.op != "get_attr" for other in constants
        ):
            return self._unknown(node, inputs)
        # Tensors that have as many channels as the result; the others are broadcast over them.
        aligned = [value.dim - len(value.shape) for value in inputs]
        if len(set(aligned)) != 1:
            return self._unknown(node, inputs)
        dim = len(shape) + aligned[0]
        full = [value for value in inputs if value.ids is not None and len(value.ids) == shape[dim]]
        if len(full) < len(inputs):
            narrow = [value for value in inputs if value not in full]
            for value in narrow:  # one channel broadcast over many: it must stay
                self._freeze(value)
        first = full[0].ids
        assert first is not None
        for other_value in full[1:]:
            assert other_value.ids is not None
            self._same(first, other_value.ids)
        sources = Sources.added(value.sources for value in inputs)
        name = operation_name(node, self.modules)
        numbers = [argument for argument in node.args if isinstance(argument, (int, float))]
        nonnegative = (
            name in GROWING
            and not (constants or node.kwargs)
            and all(number >= 0 for number in numbers)
            and all(value.nonnegative for value in inputs)
        )
        return Value(shape, dim, first, sources=sources, nonnegative=nonnegative)

    def _concatenate(self, node: fx.Node, inputs: list[Value]) -> Value:
        shape = single_shape(node)
        tensors = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int):
            return self._unknown(node, inputs)
        if any(not isinstance(each, fx.Node) or each not in self.values for each in tensors):
            return self._unknown(node, inputs)
        values = [self.values[each] for each in tensors if isinstance(each, fx.Node)]
        dim %= len(shape)
        ids = [value.ids for value in values if value.ids is not None and value.dim == dim]
        if len(ids) < len(values):
            return self._unknown(node, inputs)
        sources = Sources.joined(value.sources for value in values)
        nonnegative = all(value.nonnegative for value in values)
        return Value(shape, dim, np.concatenate(ids), sources=sources, nonnegative=nonnegative)

    def _reduce(self, node: fx.Node, value: Value) -> Value:
        shape = shapes_of(node)
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if value.ids is None or axes is None or not isinstance(shape, tuple):
            return self._unknown(node, [value])
        listed: Any = [axes] if isinstance(axes, int) else axes
        removed = {int(axis) % len(value.shape) for axis in listed}
        if value.dim in removed or 0 in removed:
            return self._unknown(node, [value])
        dim = value.dim if keep else value.dim - sum(axis < value.dim for axis in removed)
        return Value(shape, dim, value.ids, sources=value.sources, nonnegative=value.nonnegative)

    def _pad(self, node: fx.Node, value: Value) -> Value:
        pads: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        fill: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        whole = isinstance(pads, (list, tuple)) and all(isinstance(size, int) for size in pads)
        if value.ids is None or not whole:
            return self._unknown(node, [value])
        pairs = dict(enumerate(zip(pads[0::2], pads[1::2], strict=True)))
        before, after = pairs.pop(len(value.shape) - 1 - value.dim, (0, 0))
        if (before, after) == (0, 0):
            nonnegative = value.nonnegative and (fill or 0) >= 0
            return changed(value, shape=single_shape(node), nonnegative=nonnegative)
        channels_only = value.dim == 1 and not any(any(pair) for pair in pairs.values())
        zeros = mode == "constant" and not fill and before >= 0 and after >= 0
        if not (zeros and channels_only):
            return self._unknown(node, [value])
        name = self._replace(node, "pad_channels", PadChannels(before, after))
        return self._padded(node, name, value, before, after)

    def _padded(self, node: fx.Node, name: str, value: Value, before: int, after: int) -> Value:
        """Padding makes channels that are always zero; they are removed with what they meet."""
        assert value.ids is not None
        ids = np.concatenate([self._fresh(before), value.ids, self._fresh(after)])
        self.flow.channels[name] = ids
        return changed(value, shape=single_shape(node), ids=ids)

    # -- movement ----------------------------------------------------------------------------

    def _move(self, node: fx.Node, value: Value) -> Value:
        """An operation that only moves values: settle what it does to the channels."""
        if value.parts is not None:  # an element of a tuple
            index = node.args[1]
            if not isinstance(index, int):
                return self._unknown(node, [value])
            return self._moved(node, value.parts[index], None)
        origin = value.origin if value.origin is not None else node.all_input_nodes[0]
        moved = move(node, value, origin, self.values[origin], self.modules)
        if moved is None:
            return self._unknown(node, [value])
        return moved if moved.parts is not None else self._moved(node, moved, value)

    def _moved(self, node: fx.Node, result: Value, before: Value | None) -> Value:
        """Replace what was moved by something that works for any number of channels.

        Args:
            node: the operation.
            result: its result, with the positions it comes from.
            before: its input, or None for an element of a tuple.
        """
        origin = result.origin
        if origin is None:
            return result
        start = self.values[origin]
        if result.ids is None or start.ids is None:
            return result  # in the middle of a shuffle
        done = changed(result, origin=None, positions=None)
        name = operation_name(node, self.modules)
        whole = np.array_equal(result.ids, start.ids)
        if before is not None and before.origin is None and whole and name in COUNT_FREE:
            return done
        if flattens(start, result) or (whole and adds_ones(start, result)):
            return self._reshaped(node, origin, done)
        chosen = select_positions(start, result)
        if chosen is None:
            return self._unknown(node, [start])
        module_name = self._replace(node, "select_channels", SelectChannels(chosen), origin)
        self.flow.channels[module_name] = start.ids
        return done

    def _reshaped(self, node: fx.Node, origin: fx.Node, value: Value) -> Value:
        """Put a reshape in the place of an operation that names no number of channels."""
        ones = (1,) * (len(value.shape) - 2)
        with node.graph.inserting_before(node):
            if ones:
                batch = node.graph.call_method("size", (origin, 0))
                twin = node.graph.call_function(torch.reshape, (origin, (batch, -1, *ones)))
            else:
                twin = node.graph.call_function(torch.flatten, (origin, 1))
        twin.meta.update(node.meta)
        node.replace_all_uses_with(twin)
        self.values[twin] = value
        return value

    def _replace(
        self, node: fx.Node, stem: str, module: ChannelModule, source: fx.Node | None = None
    ) -> str:
        """Put a module in the place of an operation."""
        while (name := f"{stem}_{self.replaced[stem]}") in self.modules:
            self.replaced[stem] += 1
        self.module.add_submodule(name, module)
        self.modules[name] = module
        node.args = (source if source is not None else node.all_input_nodes[0],)
        node.kwargs = {}
        node.op = "call_module"
        node.target = name
        return name


def _inputs_of(module: nn.Conv2d | nn.Linear) -> int:
    return module.in_channels if isinstance(module, nn.Conv2d) else module.in_features


def _has_elements(node: fx.Node) -> bool:
    """Whether a node gives a tensor with more than one element."""
    shape = shapes_of(node)
    return isinstance(shape, tuple) and int(np.prod(shape)) > 1
