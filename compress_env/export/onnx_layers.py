"""Layers in ONNX: integer codes between QuantizeLinear and DequantizeLinear.

Runtimes make one integer operator of DequantizeLinear on input, weights and bias, the layer, and
the QuantizeLinear of the layer that reads it. That operator adds a bias in whole units of the
products of codes, which is coarse where codes have few bits; so the bias is added as a float after
the layer unless it is asked to be an integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from compress_env.channel_modules import UnevenGroupedConv2d
from compress_env.export.code_type import CodeType
from compress_env.export.codes import column, finest_factors, positive_scales, scales_for_bias
from compress_env.export.onnx_graph import OnnxGraph, Tensor
from compress_env.export.onnx_operations import cannot_be_written
from compress_env.plan import FLOAT_BITS
from compress_env.quantization import QuantizedLayer, layer_parts

LOW_BITS = 4
"""Weights of at most so many bits can be stored as INT4."""

_ALMOST_ZERO = 1e-30
"""What changes no value but zero when it is added, and not what is made of that."""

LAYERS = (QuantizedLayer, nn.Conv2d, nn.Linear, UnevenGroupedConv2d)
"""What `write_layer` writes."""


@dataclass(frozen=True)
class LayerForm:
    """What is wanted of layers.

    Attributes:
        low_bit_storage: store weights of at most 4 bits as INT4.
        integer_bias: round biases to what integer operators can add.
    """

    low_bit_storage: bool
    integer_bias: bool


@dataclass(frozen=True, eq=False)
class _Part:
    """One convolution or matrix product.

    Attributes:
        module: gives the geometry; None for outputs that are constant.
        weight: codes where there is a scale, else floats (out, ...).
        scale: (out,), positive, or None.
        bias: (out,), or None.
        factor: (out,), what codes are multiplied by for a finer integer bias, or None.
    """

    module: nn.Module | None
    weight: np.ndarray
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    factor: np.ndarray | None = None


def write_layer(
    graph: OnnxGraph,
    layer: nn.Module,
    x: Tensor,
    codes: CodeType | None,
    form: LayerForm,
    name: str,
    several_readers: bool = False,
) -> str:
    """Write a layer.

    Args:
        graph: the graph to extend.
        layer: one of `LAYERS`.
        x: its input: codes of the type `codes`, or floats if that is None.
        codes: type of the input's codes.
        form: what is wanted.
        name: of the layer.
        several_readers: whether more than one operation reads the output.

    Returns:
        The name of the output, a float value.
    """
    inner = layer.layer if isinstance(layer, QuantizedLayer) else layer
    bits = layer.weight_bits if isinstance(layer, QuantizedLayer) else FLOAT_BITS
    four_bits = form.low_bit_storage and bits <= LOW_BITS
    pieces = _pieces(graph, inner, x.name)
    parts = list(_parts(layer, codes if form.integer_bias else None))
    if several_readers:
        parts = [_with_some_bias(part) for part in parts]
    outputs = []
    for place, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        if part.module is None:
            outputs.append("")
            continue
        value = piece if codes is None else codes.dequantize(graph, piece, part.scale is None)
        own = name if len(parts) == 1 else f"{name}.{place}"
        outputs.append(_write_part(graph, part, Tensor(value, x.shape), codes, four_bits, own))
    some = next((output for output in outputs if output), None)
    if some is None:
        assert isinstance(inner, UnevenGroupedConv2d)
        some = _write_some_output(graph, inner, x, codes)
    outputs = [
        output or _write_constant(graph, part, some)
        for part, output in zip(parts, outputs, strict=True)
    ]
    return (
        outputs[0] if len(outputs) == 1 else graph.one("Concat", *outputs, attributes={"axis": 1})
    )


def _pieces(graph: OnnxGraph, layer: nn.Module, x: str) -> list[str]:
    """What every part of a layer reads: the input, or its own group of channels, or nothing."""
    if not isinstance(layer, UnevenGroupedConv2d):
        return [x]
    groups = [group for group, size in enumerate(layer.in_sizes) if size]
    sizes = graph.integers(*(layer.in_sizes[group] for group in groups))
    split = graph.add("Split", x, sizes, outputs=len(groups), attributes={"axis": 1})
    read = dict(zip(groups, split, strict=True))
    keys = sorted({*layer.parts, *layer.constants}, key=int)
    return [read.get(int(key), "") for key in keys]


def _parts(layer: nn.Module, codes: CodeType | None) -> Iterator[_Part]:
    """The parts of a layer with their share of its scales and biases.

    Args:
        layer: the layer.
        codes: type of the input's codes if the bias shall be an integer.
    """
    quantized = layer if isinstance(layer, QuantizedLayer) else None
    start = 0
    module: nn.Module | None
    own: torch.Tensor | None
    for part in layer_parts(quantized.layer if quantized else layer):
        if isinstance(part, torch.Tensor):
            module, weight, own = None, np.zeros((len(part), 1)), part
        else:
            assert isinstance(part, (nn.Conv2d, nn.Linear))
            module, weight, own = part, _double(part.weight), part.bias
        rows = slice(start, start + len(weight))
        start += len(weight)
        if quantized is None:
            yield _Part(module, weight, None, None if own is None else _double(own))
            continue
        scale, bias = _double(quantized.weight_scale[rows]), _double(quantized.bias[rows])
        if quantized.weight_bits == FLOAT_BITS:
            yield _Part(module, weight * column(scale, weight), None, bias)
            continue
        weight, scale = positive_scales(weight, scale)
        factor = None
        if codes is not None:
            weight, scale = scales_for_bias(weight, scale, bias, codes.scale)
            factor = finest_factors(weight, bias / (scale * codes.scale), codes.high)
        yield _Part(module, weight, scale, bias, factor)


def _with_some_bias(part: _Part) -> _Part:
    """A part with codes as weights that has a bias, if only in name.

    OpenVINO (2026.4 at least) scales the sums of a convolution without bias twice where one of
    several readers makes codes of them; and it drops a bias of exact zeros.
    """
    if part.scale is None or part.bias is None or part.bias.any():
        return part
    return replace(part, bias=np.full_like(part.bias, _ALMOST_ZERO))


def _double(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array


def _write_part(
    graph: OnnxGraph, part: _Part, x: Tensor, codes: CodeType | None, four_bits: bool, name: str
) -> str:
    is_conv, rank = isinstance(part.module, nn.Conv2d), len(x.shape)
    is_product = not is_conv and rank != 2  # on every position of a tensor of more dimensions
    inputs, bias = [x.name, _write_weights(graph, part, four_bits, is_product)], part.bias
    if bias is not None and not is_product:
        if part.factor is not None and codes is not None:
            inputs.append(_write_integer_bias(graph, part, bias, codes.scale))
            bias = None
        elif part.scale is None and codes is None:
            inputs.append(graph.constant(bias.astype(np.float32)))
            bias = None
    if isinstance(part.module, nn.Conv2d):
        y = graph.one("Conv", *inputs, name=name, attributes=_geometry(part.module, name))
    elif is_product:
        y = graph.one("MatMul", *inputs, name=name)
    else:
        y = graph.one("Gemm", *inputs, name=name, attributes={"transB": 1})
    if bias is None or not bias.any():
        return y
    shape = (1, -1, 1, 1) if is_conv else (-1,)
    return graph.one("Add", y, graph.constant(bias.astype(np.float32).reshape(shape)))


def _write_weights(graph: OnnxGraph, part: _Part, four_bits: bool, transposed: bool) -> str:
    """The weights as floats: (out, ...), or (in, out) where transposed."""
    weight = part.weight.T if transposed else part.weight
    if part.scale is None:
        return graph.constant(weight.astype(np.float32))
    factor = np.ones_like(part.scale) if part.factor is None else part.factor
    factors = factor if transposed else column(factor, weight)
    if four_bits:
        # Runtimes unpack constants when they load them, and then see 8-bit weights.
        stored = graph.constant(weight.astype(np.int8), four_bits)
        if factor.max() > 1:
            wide = graph.one("Cast", stored, attributes={"to": TensorProto.INT32})
            stored = graph.one("Mul", wide, graph.constant(factors.astype(np.int32)))
        stored = graph.one("Cast", stored, attributes={"to": TensorProto.INT8})
    else:
        stored = graph.constant((weight * factors).astype(np.int8))
    scale = graph.constant((part.scale / factor).astype(np.float32))
    inputs = [stored, scale]
    if isinstance(part.module, nn.Linear):  # ONNX Runtime before 1.24 wants the zeros spelled out
        inputs.append(graph.constant(np.zeros(len(part.scale), np.int8)))
    return graph.one("DequantizeLinear", *inputs, attributes={"axis": int(transposed)})


def _write_integer_bias(graph: OnnxGraph, part: _Part, bias: np.ndarray, input_scale: float) -> str:
    """The bias in 32-bit codes, in units of input scale times weight scale."""
    assert part.scale is not None and part.factor is not None
    unit = (part.scale / part.factor).astype(np.float32) * np.float32(input_scale)
    codes = graph.constant(np.rint(bias / unit.astype(np.float64)).astype(np.int32))
    return graph.one("DequantizeLinear", codes, graph.constant(unit), attributes={"axis": 0})


def _write_constant(graph: OnnxGraph, part: _Part, other: str) -> str:
    """Outputs that do not depend on the input, in the form of another output (N, C, H, W)."""
    assert part.bias is not None
    values = part.bias.astype(np.float32).reshape(1, -1, 1, 1)
    one = graph.one("Slice", other, *(graph.integers(number) for number in (0, 1, 1)))
    zeros = graph.one("Mul", one, graph.constant(np.zeros_like(values)))
    return graph.one("Add", zeros, graph.constant(values))


def _write_some_output(
    graph: OnnxGraph, layer: UnevenGroupedConv2d, x: Tensor, codes: CodeType | None
) -> str:
    """Numbers in the form of a layer's output (N, 1, H, W), where no part reads its input."""
    limits = ((0, 0, 0), (1, 1, 1), (1, 2, 3))  # from, to, and the axes
    corner = graph.one("Slice", x.name, *(graph.integers(*row) for row in limits))
    value = corner if codes is None else codes.dequantize(graph, corner)
    return graph.one("Expand", value, graph.integers(1, 1, *layer.output_size(*x.shape[2:])))


def _geometry(conv: nn.Conv2d, name: str) -> dict[str, Any]:
    """A convolution's attributes, those left out that have their default value."""
    if conv.padding_mode != "zeros":
        raise cannot_be_written(f"layer '{name}' with padding mode '{conv.padding_mode}'")
    geometry: dict[str, Any] = {"kernel_shape": conv.kernel_size}
    if conv.stride != (1, 1):
        geometry["strides"] = conv.stride
    if conv.dilation != (1, 1):
        geometry["dilations"] = conv.dilation
    if conv.groups != 1:
        geometry["group"] = conv.groups
    if conv.padding == "same":  # runtimes know this by name, but not together with a dilation
        sums = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        geometry["pads"] = (*(each // 2 for each in sums), *(each - each // 2 for each in sums))
    elif not isinstance(conv.padding, str) and any(conv.padding):
        geometry["pads"] = (*conv.padding, *conv.padding)
    return geometry
