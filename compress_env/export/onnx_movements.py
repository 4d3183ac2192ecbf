"""Operations that only move values, in ONNX: for floats and for integer codes alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from compress_env.channel_modules import PadChannels, SelectChannels
from compress_env.export.onnx_graph import OnnxGraph, Tensor
from compress_env.export.onnx_operations import FUNCTIONS, Write, cannot_be_written


def _concatenate(graph: OnnxGraph, tensors: Sequence[Tensor], dim: int = 0) -> str:
    return graph.one("Concat", *(each.name for each in tensors), attributes={"axis": dim})


def write_same(graph: OnnxGraph, x: Tensor, *_: Any, **__: Any) -> str:
    """Nothing to write: what an Identity, or a Dropout in evaluation mode, does."""
    return x.name


def _slice(graph: OnnxGraph, x: Tensor, index: Any) -> str:
    limits = []  # start, end, axis, step
    for axis, entry in enumerate(index if isinstance(index, tuple) else (index,)):
        if not isinstance(entry, slice) or (axis == 0 and entry != slice(None)):
            raise cannot_be_written(f"indexing with {index!r}")
        start, stop, step = entry.indices(x.shape[axis])
        if step < 1:
            raise cannot_be_written(f"indexing with {index!r}")
        if (start, stop, step) != (0, x.shape[axis], 1):
            limits.append((start, stop, axis, step))
    if not limits:
        return x.name
    return graph.one("Slice", x.name, *(graph.integers(*row) for row in zip(*limits, strict=True)))


def _transpose(graph: OnnxGraph, x: Tensor, dim0: int, dim1: int) -> str:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return graph.one("Transpose", x.name, attributes={"perm": order})


def _permute(graph: OnnxGraph, x: Tensor, *dims: Any) -> str:
    order = dims[0] if len(dims) == 1 else dims
    return graph.one("Transpose", x.name, attributes={"perm": [d % len(x.shape) for d in order]})


def _pad(
    graph: OnnxGraph, x: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> str:
    if mode != "constant" or value:
        raise cannot_be_written(f"padding in mode '{mode}' with {value}")
    rank = len(x.shape)
    before, behind = [0] * rank, [0] * rank
    for place in range(len(pad) // 2):
        before[rank - 1 - place], behind[rank - 1 - place] = pad[2 * place : 2 * place + 2]
    return graph.one("Pad", x.name, graph.integers(*before, *behind))


def _pad_channels(graph: OnnxGraph, module: nn.Module, x: Tensor) -> str:
    assert isinstance(module, PadChannels)
    spatial = [0] * (2 * (len(x.shape) - 2))
    return _pad(graph, x, [*spatial, module.before, module.after])


def _select_channels(graph: OnnxGraph, module: nn.Module, x: Tensor) -> str:
    assert isinstance(module, SelectChannels)
    index = module.index.cpu().numpy()
    if module.start is not None:
        return _slice(graph, x, (slice(None), slice(module.start, module.start + len(index))))
    if len(index) < x.shape[1]:
        return graph.one("Gather", x.name, graph.constant(index), attributes={"axis": 1})
    # OpenVINO (2026.4 at least) moves the plain form of a permutation into the weights of the
    # convolution behind it, but inverted; a table of one row gives the same and is left alone.
    row = graph.one("Gather", x.name, graph.constant(index[None]), attributes={"axis": 1})
    return graph.one("Reshape", row, graph.integers(0, len(index), *x.shape[2:]))


SAME_FUNCTIONS = frozenset(
    ["contiguous", "clone", "detach", "float", "dropout", "dropout2d", "feature_dropout",
     "alpha_dropout", "stochastic_depth"]
)  # fmt: skip
"""Functions and methods that do nothing in evaluation mode."""

MOVING_FUNCTIONS: dict[str, Write] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "getitem": _slice,
    "transpose": _transpose,
    "permute": _permute,
    "max_pool2d": FUNCTIONS["max_pool2d"],
    **dict.fromkeys(SAME_FUNCTIONS, write_same),
    "pad": _pad,
}
"""Functions and methods by plain name. The largest of some codes is the code of the largest."""

RESHAPES = frozenset(["flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"])
"""Those that only change the shape: one operator, for which the shape is all that is needed."""

MOVING_MODULES: dict[type[nn.Module], Write] = {
    SelectChannels: _select_channels,
    PadChannels: _pad_channels,
}
"""Modules by type."""

SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that do nothing in evaluation mode."""
