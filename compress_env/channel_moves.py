"""Operations that only move values, found out by running them on the positions of the elements.

A moved value remembers the node it comes from and, for each of its elements, the position in that
node's value. From the positions follows which channel ended up where, whether the operation can be
replaced by a selection of channels, and whether it is a flattening.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress_env.channel_values import Value, changed


def move(
    node: fx.Node, value: Value, origin: fx.Node, start: Value, modules: dict[str, nn.Module]
) -> Value | None:
    """The result of a moving operation.

    Args:
        node: the operation.
        value: its input.
        origin: the node that the input comes from.
        start: the value of that node.
        modules: the network's modules by name.

    Returns:
        The moved value, or a tuple of them as `parts`; None where the operation does not only
        move values, or needs another tensor.
    """
    positions = value.positions if value.positions is not None else all_positions(start)
    moved = _run(node, positions, modules)
    if moved is None:
        return None
    if isinstance(moved, torch.Tensor):
        return _settled(start, value, origin, moved)
    parts = tuple(_settled(start, value, origin, part) for part in moved)
    return Value((), origin=origin, parts=parts)


def all_positions(value: Value) -> torch.Tensor:
    """The positions of a value's elements in itself, int64 (shape)."""
    return torch.arange(int(np.prod(value.shape))).view(value.shape)


def flattens(start: Value, result: Value) -> bool:
    """Whether a moved value is the origin with all dimensions but the first flattened."""
    size = int(np.prod(start.shape[1:]))
    if result.shape != (start.shape[0], size) or start.dim != 1 or len(start.shape) < 3:
        return False
    assert result.positions is not None
    return torch.equal(result.positions, all_positions(start).flatten(1))


def adds_ones(start: Value, result: Value) -> bool:
    """Whether vectors are only given a height and width of one, as for squeeze-and-excitation."""
    ones = (1,) * (len(result.shape) - 2)
    return (
        start.dim == result.dim == 1
        and len(start.shape) == 2 < len(result.shape)
        and result.shape == (*start.shape, *ones)
    )


def select_positions(start: Value, result: Value) -> np.ndarray | None:
    """Channels of the origin that a moved value consists of, if it is nothing but a selection.

    Returns:
        int64 (channels of the result,), or None.
    """
    if result.dim != 1 or start.dim != 1 or len(result.shape) != len(start.shape):
        return None
    if result.shape[2:] != start.shape[2:] or result.positions is None:
        return None
    chosen = _channels(start, _along(result.positions, 1))
    selected = all_positions(start).index_select(1, chosen)
    return chosen.numpy() if torch.equal(selected, result.positions) else None


def _settled(start: Value, value: Value, origin: fx.Node, moved: torch.Tensor) -> Value:
    """A moved value, with its channels if they lie in a single dimension again."""
    result = Value(
        tuple(moved.shape),
        origin=origin,
        positions=moved,
        sources=value.sources,
        nonnegative=value.nonnegative,
    )
    channels = _channels(start, moved)
    varying = [
        dim
        for dim in range(moved.dim())
        if moved.shape[dim] > 1 and bool((channels != channels.narrow(dim, 0, 1)).any())
    ]
    if len(varying) > 1 or start.ids is None or (not varying and moved.dim() < 2):
        return result
    dim = varying[0] if varying else 1
    return changed(result, dim=dim, ids=start.ids[_along(channels, dim).numpy()])


def _channels(start: Value, positions: torch.Tensor) -> torch.Tensor:
    """The channel of the origin in which each position lies."""
    after = int(np.prod(start.shape[start.dim + 1 :], dtype=int))
    return (positions // after) % start.shape[start.dim]


def _along(values: torch.Tensor, dim: int) -> torch.Tensor:
    index: list[Any] = [0] * values.dim()
    index[dim] = slice(None)
    return values[tuple(index)]


def _run(node: fx.Node, positions: torch.Tensor, modules: dict[str, nn.Module]) -> Any:
    source = node.all_input_nodes[0]

    def argument(other: fx.Node) -> Any:
        return positions if other is source else other.meta["number"]

    try:
        args = fx.map_arg(node.args, argument)
        kwargs = fx.map_arg(node.kwargs, argument)
        if node.op == "call_module":
            return modules[str(node.target)](positions)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)
    except (RuntimeError, TypeError, KeyError, IndexError):
        return None
