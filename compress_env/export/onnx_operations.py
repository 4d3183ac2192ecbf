"""What the operations of CNNs on float tensors are in ONNX.

Every entry takes the graph and the operation's own arguments, with a `Tensor` for every tensor, and
gives the name of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from compress_env.export.onnx_graph import OnnxGraph, Tensor

Write = Callable[..., str]


def cannot_be_written(what: str) -> ValueError:
    """The error for what ONNX, or this module, does not know."""
    return ValueError(f"network: {what} cannot be written as ONNX")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A number for both dimensions, or one for each."""
    if isinstance(value, int):
        return value, value
    height, width = value if len(value) == 2 else (value[0], value[0])
    return int(height), int(width)


# -- activations ---------------------------------------------------------------------------------


def _unary(operation: str, **attributes: float) -> Write:
    def write(graph: OnnxGraph, x: Tensor) -> str:
        return graph.one(operation, x.name, attributes=attributes)

    return write


def _clip(
    graph: OnnxGraph, x: Tensor, low: float | None = None, high: float | None = None, **names: Any
) -> str:
    limits = (names.get("min", low), names.get("max", high))
    return graph.one("Clip", x.name, *("" if v is None else graph.number(v) for v in limits))


def _hardtanh(graph: OnnxGraph, x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> str:
    return _clip(graph, x, min_val, max_val)


def _relu6(graph: OnnxGraph, x: Tensor) -> str:
    return _clip(graph, x, 0.0, 6.0)


def _silu(graph: OnnxGraph, x: Tensor) -> str:
    return graph.one("Mul", x.name, graph.one("Sigmoid", x.name))


def _leaky_relu(graph: OnnxGraph, x: Tensor, negative_slope: float = 0.01) -> str:
    return graph.one("LeakyRelu", x.name, attributes={"alpha": float(negative_slope)})


def _elu(graph: OnnxGraph, x: Tensor, alpha: float = 1.0) -> str:
    return graph.one("Elu", x.name, attributes={"alpha": float(alpha)})


def _gelu(graph: OnnxGraph, x: Tensor, approximate: str = "none") -> str:
    return graph.one("Gelu", x.name, attributes={"approximate": approximate})


# -- arithmetic ----------------------------------------------------------------------------------


def _binary(operation: str) -> Write:
    def write(graph: OnnxGraph, first: Any, second: Any, **other: Any) -> str:
        if any(value not in (None, 1) for value in other.values()):
            raise cannot_be_written(f"operation '{operation.lower()}' with {other}")
        operands = (first, second)
        return graph.one(
            operation, *(v.name if isinstance(v, Tensor) else graph.number(v) for v in operands)
        )

    return write


# -- pooling -------------------------------------------------------------------------------------


def _window(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    window, (height, width) = pair(kernel), pair(padding)
    strides = window if stride in (None, [], ()) else pair(stride)
    if ceil_mode:  # a window may reach beyond the padding, which not all runtimes allow
        whole = (x.shape[-2] + 2 * height, x.shape[-1] + 2 * width)
        window = (min(window[0], whole[0]), min(window[1], whole[1]))
    return {
        "kernel_shape": window,
        "strides": strides,
        "pads": (height, width, height, width),
        "ceil_mode": int(ceil_mode),
    }


def _max_pool(
    graph: OnnxGraph,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> str:
    if return_indices:
        raise cannot_be_written("operation 'max_pool2d' with return_indices")
    window = _window(x, kernel_size, stride, padding, ceil_mode)
    return graph.one("MaxPool", x.name, attributes=window | {"dilations": pair(dilation)})


def _average_pool(
    graph: OnnxGraph,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    if divisor_override is not None:
        raise cannot_be_written("operation 'avg_pool2d' with divisor_override")
    window = _window(x, kernel_size, stride, padding, ceil_mode)
    counted = {"count_include_pad": int(count_include_pad)}
    return graph.one("AveragePool", x.name, attributes=window | counted)


def _adaptive_pool(whole: str, local: str) -> Write:
    def write(graph: OnnxGraph, x: Tensor, output_size: Any) -> str:
        size = x.shape[-2:]
        wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
        goal = tuple(
            have if want is None else int(want) for want, have in zip(wanted, size, strict=True)
        )
        if goal == size:
            return x.name
        if goal == (1, 1):
            return graph.one(whole, x.name)
        if size == (1, 1):
            return graph.one("Expand", x.name, graph.integers(1, 1, *goal))
        if any(have % want for want, have in zip(goal, size, strict=True)):
            raise cannot_be_written(f"adaptive pooling from {size} to {goal} (it must divide)")
        kernel = [have // want for want, have in zip(goal, size, strict=True)]
        return graph.one(local, x.name, attributes={"kernel_shape": kernel, "strides": kernel})

    return write


def _mean(graph: OnnxGraph, x: Tensor, dim: Any = None, keepdim: bool = False) -> str:
    dims = range(len(x.shape)) if dim is None else (dim,) if isinstance(dim, int) else dim
    axes = sorted(each % len(x.shape) for each in dims)
    if 0 in axes:
        raise cannot_be_written("a mean over the batch")
    return graph.one(
        "ReduceMean", x.name, graph.integers(*axes), attributes={"keepdims": int(keepdim)}
    )


def _layer_norm(
    graph: OnnxGraph,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> str:
    ones = graph.constant(np.ones(tuple(normalized_shape), np.float32))
    inputs = [x.name, ones if weight is None else weight.name]
    if bias is not None:
        inputs.append(bias.name)
    attributes = {"axis": -len(normalized_shape), "epsilon": float(eps)}
    return graph.one("LayerNormalization", *inputs, attributes=attributes)


# -- modules with parameters ---------------------------------------------------------------------


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().float().numpy()
    return array


def write_batch_norm(graph: OnnxGraph, module: nn.Module, x: Tensor) -> str:
    """Write a BatchNorm in evaluation mode."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None or module.running_var is None:
        raise cannot_be_written("a BatchNorm without running statistics")
    mean, variance = _array(module.running_mean), _array(module.running_var)
    scale = np.ones_like(mean) if module.weight is None else _array(module.weight)
    shift = np.zeros_like(mean) if module.bias is None else _array(module.bias)
    numbers = [graph.constant(array) for array in (scale, shift, mean, variance)]
    return graph.one(
        "BatchNormalization", x.name, *numbers, attributes={"epsilon": float(module.eps)}
    )


def write_prelu(graph: OnnxGraph, module: nn.Module, x: Tensor) -> str:
    """Write a PReLU."""
    assert isinstance(module, nn.PReLU)
    slope = _array(module.weight).reshape(-1, *(1,) * (len(x.shape) - 2))
    return graph.one("PRelu", x.name, graph.constant(slope))


def write_layer_norm(graph: OnnxGraph, module: nn.Module, x: Tensor) -> str:
    """Write a LayerNorm."""
    assert isinstance(module, nn.LayerNorm)
    weight, bias = (
        None if value is None else Tensor(graph.constant(_array(value)), tuple(value.shape))
        for value in (module.weight, module.bias)
    )
    return _layer_norm(graph, x, module.normalized_shape, weight, bias, module.eps)


FUNCTIONS: dict[str, Write] = {
    "relu": _unary("Relu"),
    "relu6": _relu6,
    "clamp": _clip,
    "clip": _clip,
    "hardtanh": _hardtanh,
    "sigmoid": _unary("Sigmoid"),
    "tanh": _unary("Tanh"),
    "hardsigmoid": _unary("HardSigmoid", alpha=1.0 / 6.0, beta=0.5),
    "hardswish": _unary("HardSwish"),
    "silu": _silu,
    "mish": _unary("Mish"),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _unary("Selu"),
    "softplus": _unary("Softplus"),
    "abs": _unary("Abs"),
    "neg": _unary("Neg"),
    "exp": _unary("Exp"),
    "sqrt": _unary("Sqrt"),
    **dict.fromkeys(("add", "iadd"), _binary("Add")),
    **dict.fromkeys(("sub", "isub"), _binary("Sub")),
    **dict.fromkeys(("mul", "imul"), _binary("Mul")),
    **dict.fromkeys(("div", "truediv", "itruediv"), _binary("Div")),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_pool("GlobalAveragePool", "AveragePool"),
    "adaptive_max_pool2d": _adaptive_pool("GlobalMaxPool", "MaxPool"),
    "mean": _mean,
    "layer_norm": _layer_norm,
}
"""Functions and methods by plain name, without the underscore of those that work in place."""

_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE_POOL = (
    "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
)  # fmt: skip

MODULE_FUNCTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: ("relu",),
    nn.ReLU6: ("relu6",),
    nn.Hardtanh: ("hardtanh", "min_val", "max_val"),
    nn.Sigmoid: ("sigmoid",),
    nn.Tanh: ("tanh",),
    nn.Hardsigmoid: ("hardsigmoid",),
    nn.Hardswish: ("hardswish",),
    nn.SiLU: ("silu",),
    nn.Mish: ("mish",),
    nn.GELU: ("gelu", "approximate"),
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ELU: ("elu", "alpha"),
    nn.SELU: ("selu",),
    nn.MaxPool2d: ("max_pool2d", *_MAX_POOL),
    nn.AvgPool2d: ("avg_pool2d", *_AVERAGE_POOL),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", "output_size"),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", "output_size"),
}
"""Modules without parameters: the function that they are, and their attributes that it takes."""
