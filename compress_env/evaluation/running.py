"""Running the steps of a prepared network: the half of the fast engine that computes.

Values are 8-bit codes wherever a layer feeds only quantized layers that want the same codes. The
residual stream stays float32, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from compress_env.checks import logits_of
from compress_env.evaluation.kernels import CodeFormat, IntegerConv, integer_kernels
from compress_env.evaluation.preparing import Prepared
from compress_env.program import LayerStep, PlainStep, Program, run_plain

Values = dict[fx.Node, Any]
"""What later steps read, by the node that made it."""


def run_steps(prepared: Prepared, steps: Sequence[LayerStep | PlainStep], values: Values) -> Values:
    """Take steps, each of which changes the values."""
    for step in steps:
        if isinstance(step, LayerStep):
            values[step.target] = _run_layer(prepared.layers, step, values)
        else:
            values[step.node] = run_plain(step.node, values, prepared.modules)
        for node in step.dead:
            del values[node]
    return values


def result_of(program: Program, values: Values) -> torch.Tensor:
    """The logits, after the last step."""
    return logits_of(fx.node.map_arg(program.result, lambda node: values[node]))


def _run_layer(
    layers: dict[int, IntegerConv | nn.Module], step: LayerStep, values: Values
) -> torch.Tensor:
    layer, x = layers[step.layer], values[step.source]
    if not isinstance(layer, IntegerConv):
        y = layer(x)
        if step.residual is not None:
            y = y.add_(values[step.residual])
        return torch.relu_(y) if step.relu else y
    codes = x if x.dtype == torch.uint8 else _codes(x, layer.input)
    if step.residual is not None:
        return layer.add_to(_dense_residual(values[step.residual]), codes, step.relu)
    output = _common_format(layers, step.readers)
    # oneDNN adds a zero point before it rounds, which is not what the definition says.
    if output is None or output.zero_point != 0:
        return layer.to_float(codes, step.relu)
    return layer.to_codes(codes, step.relu, output)


def _codes(x: torch.Tensor, shape: CodeFormat) -> torch.Tensor:
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    return integer_kernels().quantize(x, shape)


def _dense_residual(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _common_format(
    layers: dict[int, IntegerConv | nn.Module], readers: tuple[int, ...] | None
) -> CodeFormat | None:
    """The code format that all readers want, if they are integer layers and want the same."""
    formats = set()
    for reader in readers or ():
        layer = layers[reader]
        formats.add(layer.input if isinstance(layer, IntegerConv) else None)
    return formats.pop() if len(formats) == 1 else None
