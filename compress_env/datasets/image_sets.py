"""Images with labels, and the three splits that a data set consists of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


def stratified_order(labels: Labels, seed: int) -> Indices:
    """A random order of which every run holds the classes in about their proportions.

    Args:
        labels: int64 (N,).
        seed: fixes the order.

    Returns:
        A permutation of ``range(N)``, int64.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: uint8 (N, 3, H, W), an array or a read-only memory map.
        labels: int64 (N,), each from 0 to ``num_classes - 1``.
    """

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), got {images.dtype} {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 ({len(images)},), got {labels.dtype} {labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int, seed: int = 0) -> ImageSet:
        """A fixed random subset with the classes in about their proportions.

        For one seed a smaller subset is the beginning of a larger one. The set itself where it
        holds no more than ``count`` images.

        Raises:
            ValueError: ``count`` is not positive.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if count >= len(self):
            return self
        return self.select(stratified_order(self.labels, seed)[:count])

    def select(self, indices: Indices) -> ImageSet:
        """The images at ``indices``, in that order."""
        return ImageSet(np.asarray(self.images[indices]), self.labels[indices])


class ImageSource(Protocol):
    """Where a :class:`DeferredImageSet` takes its images from; picklable."""

    def load(self) -> Images:
        """The images, uint8 (N, 3, H, W)."""
        ...

    def select(self, indices: Indices) -> ImageSource:
        """The source of the images at ``indices``, in that order."""
        ...


class DeferredImageSet(ImageSet):
    """Images that are read when they are first asked for.

    A subset reads its own images only, so a thousand images of a large folder are there at
    once. A copy in another process reads them again instead of carrying them.
    """

    source: ImageSource

    def __init__(self, source: ImageSource, labels: Labels) -> None:
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "labels", labels)

    @cached_property
    def images(self) -> Images:
        """Uint8 (N, 3, H, W)."""
        return self.source.load()

    def select(self, indices: Indices) -> ImageSet:
        """The images at ``indices``, in that order."""
        return DeferredImageSet(self.source.select(indices), self.labels[indices])

    def __reduce__(self) -> tuple[object, ...]:
        return DeferredImageSet, (self.source, self.labels)


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set: three disjoint sets of images, and how to normalise them.

    Attributes:
        name: the data set's name.
        train: for training, fine-tuning and calibration.
        search: what the reward sees.
        test: looked at once, at the end.
        num_classes: number of classes.
        mean: per channel, of values in [0, 1]; ImageNet's by default.
        std: per channel, of values in [0, 1]; ImageNet's by default.
        mirror: whether an image keeps its label when it is mirrored (digits do not).
    """

    name: str
    train: ImageSet
    search: ImageSet
    test: ImageSet
    num_classes: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    mirror: bool = True


def normalize(images: Images | Tensor, splits: Splits) -> Tensor:
    """What a network takes: float32 (N, 3, H, W), ``(images / 255 - mean) / std``.

    Args:
        images: uint8 (N, 3, H, W); a tensor stays on its device.
        splits: the data set, for its mean and standard deviation.
    """
    # A copy, because a memory map is read-only and torch wants to be able to write.
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    mean = torch.tensor(splits.mean, device=tensor.device).view(1, 3, 1, 1)
    std = torch.tensor(splits.std, device=tensor.device).view(1, 3, 1, 1)
    return (tensor / 255).sub_(mean).div_(std)


def cut_search(labels: Labels, seed: int, share: float = 1 / 6) -> tuple[Indices, Indices]:
    """Indices for training and for the search split, disjoint, classes in proportion.

    One to five by default, as in the joint pruning and quantization paper.
    """
    order = stratified_order(labels, seed)
    searched = max(1, round(len(labels) * share))
    return order[searched:], order[:searched]
