"""One object in several processes: pickled once, its arrays mapped from one file, not copied.

Pickling with protocol 5 hands out large buffers (PEP 574) instead of copying them into the stream.
Here they go to a file, which every process maps: the pages are in memory once, however many
processes read them. A process that writes gets a copy of the pages it has written to.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["load_shared", "save_shared"]

_PAGE = 4096
"""Arrays of fewer bytes stay in the pickle: a map holds whole pages."""


def save_shared(value: object, folder: str | os.PathLike[str]) -> None:
    """Write an object to a folder, to be read with `load_shared`.

    Args:
        value: anything that ``cloudpickle`` can pickle; NumPy arrays in C or Fortran order, and
            tensors on the CPU, are what is shared.
        folder: an existing, empty folder.
    """
    stream = io.BytesIO()
    extents: list[tuple[int, int]] = []
    with (Path(folder) / "arrays").open("wb") as file:

        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _PAGE:
                return True
            file.seek(-file.tell() % _PAGE, os.SEEK_CUR)
            extents.append((file.tell(), file.tell() + raw.nbytes))
            file.write(raw)
            return False

        _Pickler(stream, protocol=5, buffer_callback=keep).dump(value)
    (Path(folder) / "object").write_bytes(pickle.dumps((extents, stream.getvalue())))


def load_shared(folder: str | os.PathLike[str]) -> Any:
    """Read an object that this user's own `save_shared` has written: it is unpickled.

    The folder may be deleted afterwards, where the operating system lets mapped files be deleted.
    """
    extents, pickled = pickle.loads((Path(folder) / "object").read_bytes())
    buffers: list[npt.NDArray[np.uint8]] = []
    if extents:
        mapped = np.memmap(Path(folder) / "arrays", np.uint8, mode="c")
        buffers = [mapped[start:stop] for start, stop in extents]
    return pickle.loads(pickled, buffers=buffers)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Treats tensors as the arrays they are made of; PyTorch itself would copy them."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor and _is_plain(obj):
            extent = 1 + sum(
                (size - 1) * stride for size, stride in zip(obj.shape, obj.stride(), strict=True)
            )
            # The memory that the tensor lies in, whatever the order of its dimensions.
            memory = obj.detach().as_strided((extent,), (1,)).view(torch.uint8).numpy()
            return _tensor, (memory, obj.dtype, tuple(obj.shape), obj.stride())
        return super().reducer_override(obj)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_complex())
        and not (tensor.is_neg() or tensor.__dict__)
        and tensor.numel() * tensor.element_size() >= _PAGE
    )


def _tensor(
    memory: npt.NDArray[np.uint8],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> torch.Tensor:
    return torch.from_numpy(memory).view(dtype).as_strided(shape, stride)
