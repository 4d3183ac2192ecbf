"""A folder of memory-mapped arrays that are computed once, whatever starts or dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

VARIABLE = "COMPRESS_ENV_CACHE"


def cache_folder() -> Path:
    """The folder for everything that can be made again; it can be deleted at any time.

    Raises:
        ValueError: it cannot be made.
    """
    named = os.environ.get(VARIABLE)
    folder = Path(named or "~/.cache/compress_env").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} cannot be made ({error}); set {VARIABLE} to one that can"
        ) from error
    return folder


def locked(name: str) -> FileLock:
    """A lock between processes, released by the system when its holder dies."""
    folder = cache_folder() / "locks"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def cached_array(
    key: str,
    shape: tuple[int, ...],
    dtype: type[np.generic],
    fill: Callable[[NDArray[Any]], None],
) -> NDArray[Any]:
    """An array that is filled by the first process that wants it.

    Args:
        key: a file name that stands for the content.
        shape: shape of the array.
        dtype: type of the array.
        fill: writes the content; called at most once for a key. When it fails or is killed,
            nothing is kept.

    Returns:
        A read-only memory map.
    """
    path = cache_folder() / "arrays" / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with locked(key):
            # Another process may have written it while this one waited.
            if not path.exists():
                _write(path, shape, dtype, fill)
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def _write(
    path: Path,
    shape: tuple[int, ...],
    dtype: type[np.generic],
    fill: Callable[[NDArray[Any]], None],
) -> None:
    # One name for all: what a killed process left behind is overwritten by the next.
    partial = path.with_suffix(".partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        fill(array)
        array.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
