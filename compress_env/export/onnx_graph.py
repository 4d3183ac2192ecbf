"""An ONNX graph under construction: nodes, constants without duplicates, short names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
"""Version of the operators: the first with 4-bit integers."""

IR_VERSION = 10
"""Version of the file format that came with it, so that older runtimes read the file."""

_INT4_LOW, _INT4_HIGH = -8, 7


@dataclass(frozen=True)
class Tensor:
    """An ONNX value.

    Attributes:
        name: of the value.
        shape: for the batch at which shapes were recorded.
    """

    name: str
    shape: tuple[int, ...]


class OnnxGraph:
    """Collects nodes and constants and makes the file's content of them.

    Names of values are short, because a small network's file would else consist of names.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._named: Counter[str] = Counter()
        self._count = 0

    def fresh_name(self) -> str:
        """A name that no value has yet."""
        self._count += 1
        return f"v{self._count}"

    def add(
        self,
        operation: str,
        *inputs: str,
        outputs: int = 1,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Append a node.

        Args:
            operation: name of the ONNX operator.
            *inputs: names of values; an empty name leaves an optional input out.
            outputs: how many values it gives.
            name: of the node, for people who look at the graph; where a node has it, the next ones
                get a number behind it, because runtimes want names to be unique.
            attributes: of the operator.

        Returns:
            The names of its outputs.
        """
        self._named[name] += 1
        if name and self._named[name] > 1:
            name = f"{name}#{self._named[name]}"
        names = [self.fresh_name() for _ in range(outputs)]
        node = helper.make_node(operation, inputs, names, name=name or None, **attributes or {})
        self.nodes.append(node)
        return names

    def one(
        self,
        operation: str,
        *inputs: str,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Append a node with one output and give its name."""
        return self.add(operation, *inputs, name=name, attributes=attributes)[0]

    def once(self, operation: str, *inputs: str) -> str:
        """Like `one`, but give the output of an equal node where there is one already."""
        key = (operation, *inputs)
        if key not in self._known:
            self._known[key] = self.one(operation, *inputs)
        return self._known[key]

    def give(self, value: str, output: str) -> None:
        """Let a value be an output of the graph, under this name."""
        self.nodes.append(helper.make_node("Identity", [value], [output]))

    def constant(self, array: np.ndarray, four_bits: bool = False) -> str:
        """The name of a constant; equal constants are stored once.

        Args:
            array: any shape; int8 where `four_bits`.
            four_bits: store as INT4, two values to the byte.

        Raises:
            ValueError: a value does not fit 4 bits.
        """
        array = np.asarray(array)
        if four_bits and (array.min(initial=0) < _INT4_LOW or array.max(initial=0) > _INT4_HIGH):
            raise ValueError("array: values must be from -8 to 7 to be stored in 4 bits")
        key = ("constant", four_bits, str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            name = self.fresh_name()
            self.initializers[name] = (
                _pack_four_bits(array, name) if four_bits else numpy_helper.from_array(array, name)
            )
            self._known[key] = name
        return self._known[key]

    def number(self, number: float) -> str:
        """A float32 constant without dimensions."""
        return self.constant(np.array(number, dtype=np.float32))

    def integers(self, *numbers: int) -> str:
        """An int64 vector constant."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def finish(
        self,
        input_name: str,
        input_shape: tuple[int, ...],
        outputs: dict[str, tuple[int, ...]],
        metadata: dict[str, str],
        codes: bool = False,
    ) -> onnx.ModelProto:
        """The content of the file, without what no output needs.

        Args:
            input_name: name of the input value.
            input_shape: of one image; the batch dimension goes before it.
            outputs: shapes of the outputs for one image, by name.
            metadata: strings by name.
            codes: whether input and outputs are uint8 codes, not float32.
        """
        nodes = self._needed(set(outputs))
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "compressed",
            [_value(input_name, input_shape, codes)],
            [_value(name, shape, codes) for name, shape in outputs.items()],
            [tensor for name, tensor in self.initializers.items() if name in used],
        )
        content = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="compress_env",
        )
        helper.set_model_props(content, metadata)
        return content

    def _needed(self, wanted: set[str]) -> list[onnx.NodeProto]:
        needed = set(wanted)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        return kept[::-1]


def _value(name: str, shape: tuple[int, ...], codes: bool) -> onnx.ValueInfoProto:
    kind = TensorProto.UINT8 if codes else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _pack_four_bits(array: np.ndarray, name: str) -> TensorProto:
    """Two values to the byte, the first in the lower half."""
    flat = array.astype(np.int8).ravel().view(np.uint8) & 0x0F
    flat = np.append(flat, np.zeros(flat.size % 2, dtype=np.uint8))
    packed = flat[::2] | (flat[1::2] << 4)
    return TensorProto(
        name=name, data_type=TensorProto.INT4, dims=array.shape, raw_data=packed.tobytes()
    )
