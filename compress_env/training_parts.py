"""What trainings have in common: feeding images, and states that survive an interruption."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress_env.datasets.image_sets import ImageSet

# What is larger stays on disk, and only batches of it go to the device.
_RESIDENT_BYTES = 4 * 2**30


class Feed:
    """Images on the device, or on disk where there are too many.

    Args:
        images: the images.
        device: where batches of them are wanted.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.device = device
        self.labels = torch.from_numpy(images.labels.copy()).to(device)
        self.on_disk = images.images
        self.resident: Tensor | None = None
        if images.images.nbytes <= _RESIDENT_BYTES:
            self.resident = torch.from_numpy(np.array(images.images)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, H, W) and labels int64 (B,) at the indices, on the device."""
        on_device = indices.to(self.device)
        if self.resident is not None:
            return self.resident[on_device], self.labels[on_device]
        images = torch.from_numpy(self.on_disk[indices.numpy()])
        return images.to(self.device), self.labels[on_device]


def seed_of(*words: int) -> int:
    """A seed that depends on all the numbers, each at least 0."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state so that the file is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)


def read_checkpoint(path: Path, identity: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
    """The state of an interrupted training, or None where there is none.

    Args:
        path: the file.
        identity: what the training must have in common with the one that wrote the state, which
            keeps its own under `"options"`.
        resume: whether to go on from it.

    Raises:
        ValueError: there is a state but `resume` is not set, or it cannot be read, or it belongs
            to another training.
    """
    if not path.is_file():
        return None
    if not resume:
        raise ValueError(f"resume must be set, or {path} deleted: it is an interrupted training")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"resume: {path} is not the state of a training: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("options"), dict):
        raise ValueError(f"resume: {path} is not the state of a training: it has no options")
    check_same(path, state["options"], identity)
    return state


def check_same(path: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that a file comes from the training with this identity.

    Raises:
        ValueError: it does not; names the first difference.
    """
    for name, value in identity.items():
        if stored.get(name) != value:
            raise ValueError(
                f"resume: {path} belongs to another training: {name} is {stored.get(name)!r} "
                f"there and {value!r} here"
            )
