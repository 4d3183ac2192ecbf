"""Walking over a compressed network and writing every operation of it as ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from compress_env.channel_modules import PadChannels
from compress_env.export.code_type import CodeType
from compress_env.export.onnx_graph import OnnxGraph, Tensor
from compress_env.export.onnx_layers import LAYERS, LayerForm, write_layer
from compress_env.export.onnx_movements import (
    MOVING_FUNCTIONS,
    MOVING_MODULES,
    RESHAPES,
    SAME_FUNCTIONS,
    SAME_MODULES,
)
from compress_env.export.onnx_operations import (
    FUNCTIONS,
    MODULE_FUNCTIONS,
    cannot_be_written,
    write_batch_norm,
    write_layer_norm,
    write_prelu,
)
from compress_env.quantization import QuantizedLayer

INPUT, OUTPUT = "images", "logits"
"""Names of the file's input and output."""

_BATCH = 3
"""Batch at which shapes are recorded; not 1, so that the dimension shows."""

_FUNCTIONS = FUNCTIONS | MOVING_FUNCTIONS
_MODULES = MOVING_MODULES | {
    nn.BatchNorm1d: write_batch_norm,
    nn.BatchNorm2d: write_batch_norm,
    nn.LayerNorm: write_layer_norm,
    nn.PReLU: write_prelu,
}


class _Recorder(fx.Interpreter):
    """Runs a network once and notes what every node gives.

    For a tensor its shape and largest magnitude; anything else as it is.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.largest: dict[fx.Node, float] = {}
        self.others: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
            self.largest[n] = float(result.abs().max()) if result.is_floating_point() else 0.0
        else:
            self.others[n] = result
        return result


class OnnxWriter:
    """Writes a network.

    Codes are made as far up as they can be: where nothing but quantized layers reads what an
    operation moved, it moves codes. In the *integer form* every result of a quantized convolution
    that is not turned into codes at once is rounded to 8 bits, and biases are integers.

    Args:
        module: the network, traced, in evaluation mode.
        image_shape: channels, height, width.
        low_bit_storage: whether weights of 4 bits and fewer are stored as INT4.
        calibration_images: None, or float32 (images, channels, height, width) for the integer form:
            what the ranges of results are taken from.

    Raises:
        ValueError: an operation cannot be written.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        image_shape: tuple[int, int, int],
        low_bit_storage: bool,
        calibration_images: torch.Tensor | None,
    ) -> None:
        self.module, self.graph = module, OnnxGraph()
        self._integer = calibration_images is not None
        self._form = LayerForm(low_bit_storage, self._integer)
        parameter = next(module.parameters(), torch.empty(0))
        recorder = _Recorder(module)
        with torch.no_grad():
            recorder.run(torch.zeros(_BATCH, *image_shape, device=parameter.device))
            self._shapes, self._others = recorder.shapes, recorder.others
            if calibration_images is not None:
                recorder = _Recorder(module)
                recorder.run(calibration_images.to(parameter.device))
        self._largest = recorder.largest
        self._rounded: set[fx.Node] = set()
        self._values: dict[fx.Node, Any] = {}
        self.output_shape: tuple[int, ...] = ()
        for node in module.graph.nodes:
            self._values[node] = self._write(node)

    def _write(self, node: fx.Node) -> Any:
        """Write a node and give what others read of it: a tensor, or a plain value."""
        if node.op == "placeholder":
            return Tensor(INPUT, self._shapes[node])
        if node.op == "output":
            return self._finish(node)
        if node.op == "get_attr":
            return self._constant(node)
        if node not in self._shapes:
            value = self._others[node]
            if isinstance(value, (tuple, list)) and any(torch.is_tensor(each) for each in value):
                raise cannot_be_written(f"operation '{_name(node)}', which gives several tensors,")
            return value
        module = self._module(node)
        if isinstance(module, LAYERS):
            name = self._layer(node, module)
        else:
            args = fx.node.map_arg(node.args, lambda other: self._values[other])
            kwargs = fx.node.map_arg(node.kwargs, lambda other: self._values[other])
            name = self._operation(node, args, kwargs)
        return Tensor(self._round(node, name), self._shapes[node])

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _constant(self, node: fx.Node) -> Tensor:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return Tensor(self.graph.constant(value.detach().cpu().float().numpy()), tuple(value.shape))

    def _finish(self, node: fx.Node) -> None:
        result = node.args[0]
        if isinstance(result, (tuple, list)) and result:
            result = result[0]  # the logits, as in `logits_of`
        value = self._values[result] if isinstance(result, fx.Node) else None
        if not isinstance(value, Tensor):
            raise cannot_be_written("a network whose first output is no tensor")
        self.graph.give(value.name, OUTPUT)
        self.output_shape = value.shape[1:]

    # -- operations on floats --------------------------------------------------------------------

    def _operation(self, node: fx.Node, args: Any, kwargs: Any) -> str:
        """Write an operation on these arguments: the name of its result."""
        module, name = self._module(node), _name(node)
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        if name in RESHAPES or isinstance(module, (nn.Flatten, nn.Unflatten)):
            return self._reshape(node, args[0])
        if module is None:
            if name not in _FUNCTIONS:
                raise cannot_be_written(f"operation '{name}'")
            try:
                return _FUNCTIONS[name](self.graph, *args, **kwargs)
            except TypeError as error:
                raise cannot_be_written(f"operation '{name}' with these arguments") from error
        if isinstance(module, SAME_MODULES):
            return str(args[0].name)
        if type(module) in _MODULES:
            return _MODULES[type(module)](self.graph, module, args[0])
        if type(module) in MODULE_FUNCTIONS:
            name, *wanted = MODULE_FUNCTIONS[type(module)]
            arguments = {attribute: getattr(module, attribute) for attribute in wanted}
            return _FUNCTIONS[name](self.graph, args[0], **arguments)
        raise cannot_be_written(f"module '{node.target}' ({type(module).__name__})")

    def _reshape(self, node: fx.Node, x: Tensor) -> str:
        shape = self._shapes[node]
        if shape[0] != _BATCH:
            raise cannot_be_written(
                f"operation '{_name(node)}', which changes the batch dimension,"
            )
        if shape == x.shape:
            return x.name
        return self.graph.one("Reshape", x.name, self.graph.integers(0, *shape[1:]))

    # -- layers and codes ------------------------------------------------------------------------

    def _layer(self, node: fx.Node, module: nn.Module) -> str:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        codes, shape = self._wanted(node), self._values[source].shape
        name = self._values[source].name if codes is None else self._codes(source, codes)
        if self._integer and codes is not None and len(shape) == 4:
            last = self._with_relu(node)
            readers = self._readers(last)
            if len(readers) > 1 or None in readers:
                self._rounded.add(last)
        x, several = Tensor(name, shape), self._has_several_readers(node)
        return write_layer(self.graph, module, x, codes, self._form, str(node.target), several)

    def _has_several_readers(self, node: fx.Node) -> bool:
        """Whether more than one operation reads a node's value, which some may hand on as it is."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            name = _name(node)
            if not (isinstance(self._module(node), SAME_MODULES) or name in SAME_FUNCTIONS):
                return False
        return len(node.users) > 1

    def _round(self, node: fx.Node, x: str) -> str:
        if node not in self._rounded:
            return x
        codes = CodeType.of_result(self._largest[node], self._is(node, nn.ReLU, "relu"))
        return codes.dequantize(self.graph, codes.quantize(self.graph, x))

    def _with_relu(self, node: fx.Node) -> fx.Node:
        """The ReLU that alone reads a node, or the node itself."""
        last = node
        while len(last.users) == 1:
            last = next(iter(last.users))
            if self._is(last, nn.ReLU, "relu"):
                return last
            if not isinstance(self._module(last), nn.Identity):
                break
        return node

    def _codes(self, node: fx.Node, codes: CodeType) -> str:
        """The name of the codes of a node's value."""
        if self._readers(node) == {codes}:
            if self._is_implied(node, codes):
                return self._codes(node.all_input_nodes[0], codes)
            if self._moves(node, codes):

                def moved(source: fx.Node) -> Any:
                    value = self._values[source]
                    if not isinstance(value, Tensor):  # such as a size
                        return value
                    return Tensor(self._codes(source, codes), value.shape)

                args, kwargs = (fx.node.map_arg(part, moved) for part in (node.args, node.kwargs))
                return self._operation(node, args, kwargs)
        return codes.quantize(self.graph, self._values[node].name)

    def _wanted(self, node: fx.Node) -> CodeType | None:
        """The codes that a node reads, if it is a quantized layer."""
        module = self._module(node)
        if module is None:
            return None
        # ONNX Runtime (1.31 at least) fails on products of int8 codes in more than 2 dimensions.
        linear = isinstance(module, QuantizedLayer) and isinstance(module.layer, nn.Linear)
        product = linear and len(self._shapes[node]) > 2
        return CodeType.of(module, unsigned=self._integer or product)

    def _readers(self, node: fx.Node) -> set[CodeType | None]:
        """The codes that are made of a node's value in the end; None if anything else is."""
        found: set[CodeType | None] = set()
        for user in node.users:
            wanted = self._wanted(user)
            behind = {wanted} if wanted else self._readers(user)
            through = wanted is not None or all(
                codes is not None and (self._moves(user, codes) or self._is_implied(user, codes))
                for codes in behind
            )
            found |= behind if through else {None}
        return found or {None}

    def _is_implied(self, node: fx.Node, codes: CodeType) -> bool:
        """Whether the limits of codes do what a ReLU or ReLU6 does."""
        return codes.low == 0 and (
            self._is(node, nn.ReLU, "relu")
            or (self._is(node, nn.ReLU6, "relu6") and codes.high * codes.scale <= 6.0)
        )

    def _moves(self, node: fx.Node, codes: CodeType) -> bool:
        """Whether a node only moves values, and can move these codes."""
        module, name = self._module(node), _name(node)
        if codes.zero and self._is(node, PadChannels, "pad"):
            return False  # it would fill with the code zero, which then does not mean zero
        if node.op == "call_module":
            moving = (*MOVING_MODULES, *SAME_MODULES, nn.MaxPool2d, nn.Flatten, nn.Unflatten)
            return isinstance(module, moving)
        return node.op != "output" and (name in RESHAPES or name in MOVING_FUNCTIONS)

    def _is(self, node: fx.Node, kind: type[nn.Module], name: str) -> bool:
        return isinstance(self._module(node), kind) or (
            node.op in ("call_function", "call_method") and _name(node) == name
        )


def _name(node: fx.Node) -> str:
    """The plain name of an operation, the same for its form in place."""
    target = node.target
    name = target if isinstance(target, str) else str(getattr(target, "__name__", target))
    return name.rstrip("_")
