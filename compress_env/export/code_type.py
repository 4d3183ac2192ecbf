"""How the input of a quantized layer is stored in ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from compress_env.export.onnx_graph import OnnxGraph
from compress_env.plan import FLOAT_BITS
from compress_env.quantization import QuantizedLayer


@dataclass(frozen=True)
class CodeType:
    """Integer codes of a float tensor.

    Attributes:
        scale: real value of one step.
        low: smallest code.
        high: largest code.
        zero: what is added to codes to store them: as uint8 if no sum is negative, else as int8.
    """

    scale: float
    low: int
    high: int
    zero: int = 0

    @staticmethod
    def of(layer: nn.Module, unsigned: bool = False) -> CodeType | None:
        """What a layer wants its input to be, or None where it reads floats.

        Args:
            layer: any module.
            unsigned: store signed codes as uint8 as well.
        """
        if not isinstance(layer, QuantizedLayer) or layer.activation_bits == FLOAT_BITS:
            return None
        zero = 128 if unsigned and layer.low < 0 else 0
        return CodeType(float(layer.input_scale), layer.low, layer.high, zero)

    @staticmethod
    def of_result(largest: float, nonnegative: bool) -> CodeType:
        """8 bits for values up to a magnitude."""
        largest = max(largest, 1e-6)
        if nonnegative:
            return CodeType(largest / 255, 0, 255)
        return CodeType(largest / 127, -128, 127, 128)

    @property
    def _limits(self) -> np.iinfo[Any]:
        return np.iinfo(np.int8 if self.low + self.zero < 0 else np.uint8)

    def _numbers(self, graph: OnnxGraph) -> tuple[str, str]:
        return graph.number(self.scale), graph.constant(np.array(self.zero, self._limits.dtype))

    def quantize(self, graph: OnnxGraph, x: str) -> str:
        """Codes of a float value."""
        codes = graph.once("QuantizeLinear", x, *self._numbers(graph))
        limits = self._limits
        stored = (self.low + self.zero, self.high + self.zero)
        # Runtimes saturate at the limits of the type; narrower codes are clipped afterwards, so
        # that nothing stands between a layer and its quantization.
        if stored == (limits.min, limits.max):
            return codes
        low, high = (graph.constant(np.array(limit, limits.dtype)) for limit in stored)
        return graph.once("Clip", codes, low, high)

    def dequantize(self, graph: OnnxGraph, codes: str, plainly: bool = False) -> str:
        """The float value of codes.

        Args:
            graph: the graph to extend.
            codes: what to take the value of.
            plainly: for a layer of float weights. Behind a DequantizeLinear, ONNX Runtime (1.31 at
                least) makes such weights 8-bit integers, without being asked.
        """
        if not plainly:
            return graph.once("DequantizeLinear", codes, *self._numbers(graph))
        value = graph.once("CastLike", codes, graph.number(self.scale))
        if self.zero:
            value = graph.once("Sub", value, graph.number(self.zero))
        return graph.once("Mul", value, graph.number(self.scale))
