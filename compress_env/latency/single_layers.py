"""One layer of some width as an ONNX file, and the time its operator takes in an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import fx, nn

from compress_env.latency.engines import Session, open_session
from compress_env.layer_graph import LayerGraph
from compress_env.tracing import single_shape

_OPERATORS = ("conv", "gemm", "matmul", "fullyconnected")
_WARMUPS = 3


@dataclass(frozen=True)
class LayerCase:
    """A layer that can be timed; equal cases take equal time.

    Attributes:
        in_channels: channels (or features) read.
        out_channels: channels (or features) made.
        kernel: height and width; None for a linear layer.
        stride: vertical and horizontal.
        pads: top, left, bottom, right.
        dilation: vertical and horizontal.
        groups: of the convolution.
        size: height and width of the input; for a linear layer its other dimensions.
        integer: 8-bit integers or float32.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    size: tuple[int, ...]
    integer: bool

    def content(self) -> bytes:
        """The ONNX file: the layer with random weights, and a ReLU; codes to codes if integer."""
        from compress_env.export.onnx_graph import OnnxGraph  # noqa: PLC0415  (needs an extra)

        rng = np.random.default_rng(0)
        graph = OnnxGraph()
        window = self.kernel or ()
        shape = (self.out_channels, self.in_channels // self.groups, *window)
        if self.integer:
            scale, zero = graph.number(0.05), graph.constant(np.array(0, np.uint8))
            units = graph.constant(np.full(self.out_channels, 0.01, np.float32))
            codes = graph.constant(rng.integers(-127, 128, shape).astype(np.int8))
            x = graph.one("DequantizeLinear", "x", scale, zero)
            weights = graph.one("DequantizeLinear", codes, units, attributes={"axis": 0})
            steps = graph.constant(np.full(self.out_channels, 0.0005, np.float32))
            zeros = graph.constant(np.zeros(self.out_channels, np.int32))
            bias = graph.one("DequantizeLinear", zeros, steps, attributes={"axis": 0})
        else:
            x, weights = "x", graph.constant(rng.normal(size=shape).astype(np.float32))
            bias = graph.constant(np.zeros(self.out_channels, np.float32))
        if self.kernel is None:
            y = graph.one("Gemm", x, weights, bias, attributes={"transB": 1})
            outputs: tuple[int, ...] = (self.out_channels,)
        else:
            geometry = {
                "kernel_shape": self.kernel,
                "strides": self.stride,
                "pads": self.pads,
                "dilations": self.dilation,
                "group": self.groups,
            }
            y = graph.one("Conv", x, weights, bias, attributes=geometry)
            outputs = (self.out_channels, *self._output_size())
        y = graph.one("Relu", y)
        graph.give(graph.one("QuantizeLinear", y, scale, zero) if self.integer else y, "y")
        inputs = (self.in_channels, *self.size)
        content: bytes = graph.finish(
            "x", inputs, {"y": outputs}, {}, self.integer
        ).SerializeToString()
        return content

    def _output_size(self) -> tuple[int, ...]:
        assert self.kernel is not None
        half = len(self.pads) // 2
        return tuple(
            (size + before + behind - dilation * (kernel - 1) - 1) // stride + 1
            for size, before, behind, dilation, kernel, stride in zip(
                self.size, self.pads[:half], self.pads[half:], self.dilation, self.kernel,
                self.stride, strict=True,
            )
        )  # fmt: skip


def layer_calls(graph: LayerGraph) -> list[list[tuple[nn.Module, tuple[int, ...]]]]:
    """For every call of every layer its module and the height and width of its input."""
    calls: list[list[tuple[nn.Module, tuple[int, ...]]]] = [[] for _ in graph.layers]
    for node in graph.module.graph.nodes:
        index = graph.layer_index.get(str(node.target)) if node.op == "call_module" else None
        if index is None:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        module = graph.module.get_submodule(str(node.target))
        shape = single_shape(source)
        calls[index].append((module, shape[2:] if isinstance(module, nn.Conv2d) else ()))
    return calls


def case_of(
    module: nn.Module, size: tuple[int, ...], in_channels: int, out_channels: int, integer: bool
) -> LayerCase:
    """A layer with other numbers of channels; a depthwise one has as many groups as inputs."""
    if isinstance(module, nn.Linear):
        return LayerCase(in_channels, out_channels, None, (), (), (), 1, (), integer)
    assert isinstance(module, nn.Conv2d)
    depthwise = module.groups == module.in_channels and module.groups > 1
    if isinstance(module.padding, str):
        extent = [
            (kernel - 1) * dilation if module.padding == "same" else 0
            for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)
        ]
        pads = (*(total // 2 for total in extent), *(total - total // 2 for total in extent))
    else:
        pads = (*module.padding, *module.padding)
    return LayerCase(
        in_channels,
        out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(pads),
        tuple(module.dilation),
        in_channels if depthwise else module.groups,
        size,
        integer,
    )


def layer_milliseconds(
    case: LayerCase, engine: str, batch: int, threads: int, repeats: int
) -> float:
    """The shortest time that the layer's own operator took, as the engine's profile has it.

    The shortest, because whatever else the machine does only adds. Changes of memory layout around
    the operator are not counted: inside a network there are few.

    Raises:
        ValueError: the engine runs the layer by an operator whose name is not known.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        path.write_bytes(case.content())
        session = open_session(engine, path, batch, threads, profile=True)
        images = session.example()
        for _ in range(_WARMUPS + repeats):
            session.run(images)
        times = list(_operator_times(session, engine))
    return 1e3 * min(times[_WARMUPS:])


def _operator_times(session: Session, engine: str) -> Iterator[float]:
    """Seconds of the layer's operator in every run."""
    assert session.profile is not None
    for run in session.profile():
        own = [
            seconds
            for operator, seconds in run.items()
            if any(word in operator.lower() for word in _OPERATORS)
        ]
        if not own:  # zero would be a layer that costs nothing
            raise ValueError(f"engine: no operator of {engine} is a layer among {', '.join(run)}")
        yield sum(own)
