"""A cache that is bounded in bytes, so that a search of any length needs the same memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """The entries used last under their keys.

    Args:
        limit: bytes of tensors that the entries may hold together. The latest entry is always
            kept, whatever its size. 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Drop all entries."""
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __getstate__(self) -> dict[str, Any]:
        # What can be computed again does not travel to other processes.
        return {"limit": self.limit, "_entries": OrderedDict(), "bytes": 0}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The entry of a key, made where it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        value = make()
        size = tensor_bytes(value)
        if self.limit > 0:
            self._entries[key] = (value, size)
            self.bytes += size
        self._drop_oldest()
        return value

    def weigh(self, key: Hashable) -> None:
        """Count the bytes of an entry anew, after something was added to it."""
        if key in self._entries:
            value, before = self._entries[key]
            size = tensor_bytes(value)
            self._entries[key] = (value, size)
            self.bytes += size - before
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self.bytes > self.limit and len(self._entries) > 1:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.bytes -= dropped


def state_of(module: nn.Module) -> int:
    """A number that changes with the parameters and buffers of a module.

    It takes the counts that PyTorch keeps of changes in place, so it costs no look at the values.
    What is done through `.data` in place, or to memory shared with NumPy, is not counted.
    """
    return hash(
        tuple(
            (tensor.data_ptr(), version(tensor))
            for each in module.modules()
            for tensors in (each._parameters, each._buffers)
            for tensor in tensors.values()
            if tensor is not None
        )
    )


def version(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; not counted for one made in inference mode."""
    return 0 if tensor.is_inference() else int(tensor._version)


def tensor_bytes(value: object) -> int:
    """Bytes of all tensors in a value: in modules, sequences, dicts and attributes."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts: Iterable[object] = ()
    if isinstance(value, nn.Module):  # `parameters()` takes several times as long
        own = (value._parameters, value._buffers, value._modules)
        return sum(tensor_bytes(part) for some in own for part in some.values())
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    return sum(map(tensor_bytes, parts))
