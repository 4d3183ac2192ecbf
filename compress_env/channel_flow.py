"""What every operation of a traced network does to its channels.

Every tensor carries one integer id per channel. A layer makes new ids; an addition says that two
arrays of ids are the same channels; a concatenation joins arrays; operations that only move data
(slices, splits, transposes, shuffles) are *run on the positions* of the channels, so that what they
do need not be described. Where the effect of an operation is not known, the ids it reads are
frozen: those channels are never removed.

Operations whose behaviour depends on the number of channels (a shuffle, a split, padding of
channels) are replaced by modules of `compress_env.channel_modules`, which pruning can rebuild.
"""

from __future__ import annotations

import linecache
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress_env.channel_modules import ChannelModule, PadChannels, SelectChannels

CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
"""Modules that treat every channel alone and need no change when channels go."""

CHANNELWISE_FUNCTIONS = frozenset(
    "relu relu_ relu6 leaky_relu elu elu_ selu gelu silu mish tanh sigmoid hardsigmoid hardswish "
    "hardtanh softplus dropout dropout2d feature_dropout alpha_dropout max_pool2d avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d interpolate upsample stochastic_depth abs "
    "neg exp sqrt square clamp clamp_ detach float half double to type".split()
)
"""The same as functions and methods, by name."""

ARITHMETIC = frozenset(
    "add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv itruediv maximum minimum".split()
)
"""Operations that combine tensors channel by channel."""

MOVES = frozenset(
    "view reshape flatten permute transpose chunk split tensor_split getitem unsqueeze squeeze "
    "narrow unflatten channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle "
    "index_select swapaxes movedim roll flip repeat_interleave contiguous clone".split()
)
"""Operations that only move values: what they do is found by running them on positions."""

COUNT_FREE = frozenset(
    "flatten permute transpose swapaxes movedim squeeze unsqueeze getitem contiguous clone".split()
)
"""Those of them that work for any number of channels, as long as all channels pass."""

NONNEGATIVE = frozenset("relu relu_ relu6 ReLU ReLU6 sigmoid Sigmoid hardsigmoid Hardsigmoid".split())
KEEPS_SIGN = frozenset(
    "dropout dropout2d feature_dropout max_pool2d avg_pool2d adaptive_avg_pool2d "
    "adaptive_max_pool2d stochastic_depth detach float "
    "Identity Dropout Dropout2d MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d "
    "ZeroPad2d ReflectionPad2d ReplicationPad2d mean".split()
)
"""Operations whose output is at or above zero; and those whose output is where their input is."""


@dataclass(eq=False)
class FoundLayer:
    """A layer as the walk meets it; `compress_env.layer_graph.Layer` is what remains of it."""

    name: str
    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    has_bias: bool
    in_ids: np.ndarray
    out_ids: np.ndarray
    input_nonnegative: bool = True
    positions: int = 0


@dataclass
class ChannelFlow:
    """Everything the walk found out.

    Attributes:
        layers: by module name, in the order of the data flow.
        channels: ids of the channels of every other module that depends on them.
        same: pairs of ids, int64 (2, n), that are the same channel.
        frozen: ids that must stay.
        edges: (source layer, reading layer).
        unknown: operations whose effect on channels is not known, with the number of uses.
        ids: number of ids given out.
    """

    layers: dict[str, FoundLayer] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    same: list[np.ndarray] = field(default_factory=list)
    frozen: list[np.ndarray] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)
    ids: int = 0


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor during the walk.

    `ids` has one id per position of dimension `dim`. A value that was only moved remembers the
    node it comes from and, for each of its elements, the channel position there; such a value may
    be between two forms (a view in the middle of a shuffle), and then has no `ids`.
    """

    shape: tuple[int, ...]
    dim: int = 1
    ids: np.ndarray | None = None
    origin: fx.Node | None = None
    positions: torch.Tensor | None = None
    sources: frozenset[int] = frozenset()
    nonnegative: bool = False
    parts: tuple[_Value, ...] | None = None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, (nn.Conv2d, nn.Linear, ChannelModule)):
            return True
        return super().is_leaf_module(module, name)


def symbolic_trace(network: nn.Module) -> fx.GraphModule:
    """Trace a network with `torch.fx`.

    Raises:
        ValueError: the network's control flow depends on data; names the line.
    """
    try:
        return fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
        ]
        frame = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
        raise ValueError(
            f"network: torch.fx cannot trace it at {frame.filename}:{frame.lineno} ('{line}'): "
            f"{error}"
        ) from error


def follow_channels(module: fx.GraphModule, input_shape: tuple[int, int, int]) -> ChannelFlow:
    """Walk over a traced network and follow its channels.

    Args:
        module: the traced network in evaluation mode. Operations that depend on channel counts
            are replaced in place by modules that can be rebuilt for other counts.
        input_shape: channels, height, width of an image.

    Raises:
        ValueError: an image of this shape cannot pass through the network.
    """
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            _Recorder(module).run(image)
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ValueError(
            f"input_shape: an image of shape {tuple(input_shape)} does not pass through the "
            f"network: {reason}"
        ) from error
    walk = _Walk(module)
    for node in list(module.graph.nodes):
        walk.visit(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return walk.flow


class _Recorder(fx.Interpreter):
    """Runs a traced network once and notes what every node gives: shapes, or a plain number."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shapes"] = tuple(result.shape)
        elif isinstance(result, (tuple, list)) and any(
            isinstance(each, torch.Tensor) for each in result
        ):
            n.meta["shapes"] = [tuple(each.shape) for each in result]
        else:
            n.meta["number"] = result
        return result


class _Walk:
    """The state of one walk: the value of every node, and what was found."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.modules = dict(module.named_modules())
        self.flow = ChannelFlow()
        self.values: dict[fx.Node, _Value] = {}
        self.order: dict[str, int] = {}

    def visit(self, node: fx.Node) -> None:
        """Give the node a value, if it is a tensor or a tuple of tensors."""
        if node.op == "output":
            for value in self._inputs(node):
                self._freeze(value)
            return
        if node.op == "placeholder":
            shape = _shapes(node)
            if isinstance(shape, tuple):
                value = self._new(shape, 1)
                self._freeze(value)
                self.values[node] = value
            return
        inputs = self._inputs(node)
        if node.op == "get_attr" or _shapes(node) is None or not inputs:
            return
        name = _operation(node, self.modules)
        if node.op == "call_module":
            value = self._visit_module(node, self.modules[str(node.target)], inputs[0])
        elif name in ARITHMETIC:
            value = self._arithmetic(node, inputs)
        elif name in ("cat", "concat", "concatenate"):
            value = self._concatenate(node, inputs)
        elif name == "pad":
            value = self._pad(node, inputs[0])
        elif name in MOVES:
            value = self._move(node, inputs[0])
        elif name in ("mean", "sum", "amax"):
            value = self._reduce(node, inputs[0])
        elif name in CHANNELWISE_FUNCTIONS and len(inputs) == 1:
            value = self._pass(node, inputs[0])
        else:
            value = self._unknown(node, inputs)
        nonnegative = value.nonnegative or name in NONNEGATIVE
        self.values[node] = _with(value, nonnegative=nonnegative)

    # -- values ------------------------------------------------------------------------------

    def _inputs(self, node: fx.Node) -> list[_Value]:
        return [self.values[source] for source in node.all_input_nodes if source in self.values]

    def _fresh(self, count: int) -> np.ndarray:
        ids = np.arange(self.flow.ids, self.flow.ids + count)
        self.flow.ids += count
        return ids

    def _new(self, shape: tuple[int, ...], dim: int) -> _Value:
        dim = min(dim, len(shape) - 1)
        return _Value(shape, dim, self._fresh(shape[dim]))

    def _freeze(self, value: _Value) -> None:
        """Keep for ever all channels that a value holds."""
        for part in value.parts or (value,):
            if part.ids is not None:
                self.flow.frozen.append(part.ids)
            elif part.origin is not None:
                self._freeze(self.values[part.origin])

    def _same(self, first: np.ndarray, second: np.ndarray) -> None:
        self.flow.same.append(np.stack([first, second]))

    def _unknown(self, node: fx.Node, inputs: Iterable[_Value]) -> _Value:
        """Leave whole what an operation reads and makes whose effect is not known."""
        inputs = list(inputs)
        for value in inputs:
            self._freeze(value)
        self.flow.unknown[_operation(node, self.modules)] += 1
        shapes = _shapes(node)
        sources = frozenset().union(*(value.sources for value in inputs))
        for value in inputs:
            if value.shape == shapes and value.ids is not None:  # the same form, all of it frozen
                return _Value(value.shape, value.dim, value.ids, sources=sources)
        if isinstance(shapes, list):
            parts = tuple(_with(self._new(shape, 1), sources=sources) for shape in shapes)
            value = _Value((), parts=parts)
        else:
            assert shapes is not None
            value = _with(self._new(shapes, 1), sources=sources)
        self._freeze(value)
        return value

    def _pass(self, node: fx.Node, value: _Value) -> _Value:
        """An operation that treats each channel alone."""
        shape = _shapes(node)
        if value.ids is None or not isinstance(shape, tuple) or len(shape) != len(value.shape):
            return self._unknown(node, [value])
        if shape[value.dim] != len(value.ids):
            return self._unknown(node, [value])
        name = _operation(node, self.modules)
        nonnegative = value.nonnegative and name in KEEPS_SIGN
        return _Value(shape, value.dim, value.ids, sources=value.sources, nonnegative=nonnegative)

    # -- operations --------------------------------------------------------------------------

    def _visit_module(self, node: fx.Node, module: nn.Module, value: _Value) -> _Value:
        name = str(node.target)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._layer(node, module, value)
        if isinstance(module, (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle)):
            return self._move(node, value)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (
            isinstance(module, nn.PReLU) and module.num_parameters > 1
        ):
            if value.ids is None or value.dim != 1:
                return self._unknown(node, [value])
            known = self.flow.channels.setdefault(name, value.ids)
            self._same(known, value.ids)
            return self._pass(node, value)
        if isinstance(module, SelectChannels) and value.ids is not None:
            kept = _Value(_as_tuple(_shapes(node)), 1, value.ids[module.index.cpu().numpy()])
            self.flow.channels[name] = value.ids
            return _with(kept, sources=value.sources, nonnegative=value.nonnegative)
        if isinstance(module, PadChannels) and value.ids is not None:
            return self._padded(node, name, value, module.before, module.after)
        if isinstance(module, CHANNELWISE_MODULES) or (
            isinstance(module, nn.PReLU) and module.num_parameters == 1
        ):
            return self._pass(node, value)
        return self._unknown(node, [value])

    def _layer(self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: _Value) -> _Value:
        name = str(node.target)
        shape = _as_tuple(_shapes(node))
        is_conv = isinstance(module, nn.Conv2d)
        dim = 1 if is_conv else len(shape) - 1
        if value.ids is None or value.dim != dim or value.shape[dim] != len(value.ids):
            # The layer mixes what the tracer could not follow: it stays whole on both sides.
            self.flow.unknown[f"input of layer {name}"] += 1
            self._freeze(value)
            ids = self._fresh(module.in_channels if is_conv else module.in_features)
            self.flow.frozen.append(ids)
            value = _Value(value.shape, dim, ids, sources=value.sources)
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
        self.flow.edges.update((source, index) for source in value.sources if source != index)
        return _Value(shape, dim, found.out_ids, sources=frozenset([index]))

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

    def _arithmetic(self, node: fx.Node, inputs: list[_Value]) -> _Value:
        shape = _as_tuple(_shapes(node))
        constants = [
            other for other in node.all_input_nodes if other not in self.values
        ]  # parameters, and numbers made from shapes
        if any(value.ids is None for value in inputs) or any(
            _elements(other) > 1 or other.op not in ("get_attr",) for other in constants
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
        # A sum hands on the latest layer of each of its operands, so that the number of edges
        # grows linearly along a chain of residual blocks.
        sources = frozenset(max(value.sources) for value in inputs if value.sources)
        name = _operation(node, self.modules)
        positive = name.strip("_") in ("add", "iadd", "mul", "imul", "maximum")
        numbers = [argument for argument in node.args if isinstance(argument, (int, float))]
        nonnegative = positive and not constants and all(n >= 0 for n in numbers) and all(
            value.nonnegative for value in inputs
        )  # fmt: skip
        return _Value(shape, dim, first, sources=sources, nonnegative=nonnegative)

    def _concatenate(self, node: fx.Node, inputs: list[_Value]) -> _Value:
        shape = _as_tuple(_shapes(node))
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
        sources = frozenset().union(*(value.sources for value in values))
        nonnegative = all(value.nonnegative for value in values)
        return _Value(shape, dim, np.concatenate(ids), sources=sources, nonnegative=nonnegative)

    def _reduce(self, node: fx.Node, value: _Value) -> _Value:
        shape = _shapes(node)
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if value.ids is None or axes is None or not isinstance(shape, tuple):
            return self._unknown(node, [value])
        listed = [axes] if isinstance(axes, int) else list(axes)  # type: ignore[arg-type]
        removed = {int(axis) % len(value.shape) for axis in listed}  # type: ignore[call-overload]
        if value.dim in removed or 0 in removed:
            return self._unknown(node, [value])
        dim = value.dim if keep else value.dim - sum(axis < value.dim for axis in removed)
        return _Value(
            shape, dim, value.ids, sources=value.sources, nonnegative=value.nonnegative
        )

    def _pad(self, node: fx.Node, value: _Value) -> _Value:
        pads = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        fill = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        if value.ids is None or not isinstance(pads, (list, tuple)):
            return self._unknown(node, [value])
        if not all(isinstance(size, int) for size in pads):
            return self._unknown(node, [value])
        sizes = [int(size) for size in pads]  # type: ignore[arg-type]
        pairs = list(zip(sizes[0::2], sizes[1::2], strict=True))
        position = len(value.shape) - 1 - value.dim
        before, after = pairs[position] if position < len(pairs) else (0, 0)
        others = [pair for index, pair in enumerate(pairs) if index != position]
        if (before, after) == (0, 0):
            nonnegative = value.nonnegative and not (isinstance(fill, (int, float)) and fill < 0)
            return _Value(
                _as_tuple(_shapes(node)), value.dim, value.ids,
                sources=value.sources, nonnegative=nonnegative,
            )  # fmt: skip
        zero = mode == "constant" and fill in (None, 0, 0.0)
        if not zero or value.dim != 1 or any(pair != (0, 0) for pair in others) or before < 0 or (
            after < 0
        ):  # fmt: skip
            return self._unknown(node, [value])
        name = self._replace(node, "pad_channels", PadChannels(before, after))
        return self._padded(node, name, value, before, after)

    def _padded(
        self, node: fx.Node, name: str, value: _Value, before: int, after: int
    ) -> _Value:
        """Padding makes channels that are always zero; they are removed with what they meet."""
        assert value.ids is not None
        ids = np.concatenate([self._fresh(before), value.ids, self._fresh(after)])
        self.flow.channels[name] = ids
        return _Value(
            _as_tuple(_shapes(node)), 1, ids, sources=value.sources, nonnegative=value.nonnegative
        )

    # -- movement ----------------------------------------------------------------------------

    def _move(self, node: fx.Node, value: _Value) -> _Value:
        """Run an operation that only moves values on the channel positions of its input."""
        if value.parts is not None:  # an element of a tuple
            index = node.args[1]
            if not isinstance(index, int):
                return self._unknown(node, [value])
            part = value.parts[index]
            if part.origin is None or part.positions is None:
                return part
            return self._moved(node, part, part.origin, part.positions)
        source = node.all_input_nodes[0]
        origin = value.origin if value.origin is not None else source
        positions = value.positions
        if positions is None:
            shape = [1] * len(value.shape)
            shape[value.dim] = -1
            positions = torch.arange(value.shape[value.dim]).view(shape).expand(value.shape)
        moved = self._run(node, positions)
        if moved is None:
            return self._unknown(node, [value])
        if isinstance(moved, torch.Tensor):
            return self._moved(node, value, origin, moved)
        parts = tuple(
            _Value(tuple(part.shape), origin=origin, positions=part, sources=value.sources,
                   nonnegative=value.nonnegative)
            for part in moved
        )  # fmt: skip
        return _Value((), parts=tuple(self._settle(part) for part in parts), origin=origin)

    def _moved(
        self, node: fx.Node, value: _Value, origin: fx.Node, moved: torch.Tensor
    ) -> _Value:
        result = self._settle(
            _Value(tuple(moved.shape), origin=origin, positions=moved, sources=value.sources,
                   nonnegative=value.nonnegative)
        )  # fmt: skip
        start = self.values[origin]
        if result.ids is None or start.ids is None:
            return result  # in the middle of a shuffle
        chosen = _channel_positions(moved, result.dim).numpy()
        whole = np.array_equal(chosen, np.arange(len(start.ids)))
        name = _operation(node, self.modules)
        if value.ids is not None and value.origin is None and whole and name in COUNT_FREE:
            return _with(result, origin=None, positions=None)
        flat = tuple(start.shape[:1]) + (int(np.prod(start.shape[1:])),)
        if result.shape == flat and start.dim == 1 and torch.equal(
            moved, _all_positions(start).flatten(1)
        ):  # fmt: skip
            with node.graph.inserting_before(node):
                flatten = node.graph.call_function(torch.flatten, (origin, 1))
            node.replace_all_uses_with(flatten)
            self.values[flatten] = _with(result, origin=None, positions=None)
            return self.values[flatten]
        same_form = (
            result.dim == start.dim == 1
            and result.shape[2:] == start.shape[2:]
            and len(result.shape) == len(start.shape)
        )
        if not same_form:
            return self._unknown(node, [start])
        module_name = self._replace(node, "select_channels", SelectChannels(chosen), origin)
        self.flow.channels[module_name] = start.ids
        return _with(result, origin=None, positions=None)

    def _settle(self, value: _Value) -> _Value:
        """Find the channel dimension of a moved value, if it has a single one again."""
        assert value.positions is not None and value.origin is not None
        start = self.values[value.origin]
        positions = value.positions
        varying = [
            dim
            for dim in range(positions.dim())
            if positions.shape[dim] > 1
            and bool((positions != positions.narrow(dim, 0, 1)).any())
        ]
        if len(varying) > 1 or start.ids is None or (not varying and positions.dim() < 2):
            return value
        dim = varying[0] if varying else 1
        chosen = _channel_positions(positions, dim).numpy()
        return _with(value, dim=dim, ids=start.ids[chosen])

    def _run(self, node: fx.Node, positions: torch.Tensor) -> Any:
        """The result of a moving operation on positions, or None where it needs another input."""
        source = node.all_input_nodes[0]

        def argument(other: fx.Node) -> Any:
            return positions if other is source else other.meta["number"]

        try:
            args = fx.map_arg(node.args, argument)
            kwargs = fx.map_arg(node.kwargs, argument)
            if node.op == "call_module":
                return self.modules[str(node.target)](positions)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            target = node.target
            assert callable(target)
            return target(*args, **kwargs)
        except (RuntimeError, TypeError, KeyError, IndexError):
            return None

    def _replace(
        self, node: fx.Node, stem: str, module: ChannelModule, source: fx.Node | None = None
    ) -> str:
        """Put a module in the place of an operation."""
        taken = sum(name.startswith(stem) for name, _ in self.module.named_children())
        name = f"{stem}_{taken}"
        self.module.add_submodule(name, module)
        self.modules[name] = module
        node.args = (source if source is not None else node.all_input_nodes[0],)
        node.kwargs = {}
        node.op = "call_module"
        node.target = name
        return name


def _all_positions(value: _Value) -> torch.Tensor:
    shape = [1] * len(value.shape)
    shape[value.dim] = -1
    return torch.arange(value.shape[value.dim]).view(shape).expand(value.shape)


def _channel_positions(positions: torch.Tensor, dim: int) -> torch.Tensor:
    index: list[Any] = [0] * positions.dim()
    index[dim] = slice(None)
    return positions[tuple(index)]


def _with(value: _Value, **changes: Any) -> _Value:
    return _Value(**{**value.__dict__, **changes})


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The plain name of what a node does."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.op == "call_method":
        return str(node.target)
    target = node.target
    return str(getattr(target, "__name__", target))


def _shapes(node: fx.Node) -> tuple[int, ...] | list[tuple[int, ...]] | None:
    """The shape of a node's tensor, the shapes of its tuple, or None for anything else."""
    shapes: tuple[int, ...] | list[tuple[int, ...]] | None = node.meta.get("shapes")
    return shapes


def _as_tuple(shapes: tuple[int, ...] | list[tuple[int, ...]] | None) -> tuple[int, ...]:
    assert isinstance(shapes, tuple)
    return shapes


def _elements(node: fx.Node) -> int:
    shape = _shapes(node)
    return int(np.prod(shape)) if isinstance(shape, tuple) else 1
