"""CIFAR-10 and CIFAR-100, downloaded by torchvision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache import cache_folder, cached_array, locked
from .image_sets import DeferredImageSet, Images, Indices, Labels, Splits, cut_search

_TRAIN_IMAGES, _TEST_IMAGES = 50_000, 10_000


@dataclass(frozen=True)
class _Variant:
    """One of the two data sets, with the names torchvision uses."""

    name: str
    class_name: str
    folder: str
    archive: str
    md5: str
    num_classes: int

    def open(self, root: Path, train: bool) -> Any:
        """Torchvision's data set, downloaded where it is missing."""
        from torchvision import datasets  # noqa: PLC0415  (a second, for these two alone)

        was_there = root.exists()
        try:
            return getattr(datasets, self.class_name)(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            if not was_there:
                with suppress(OSError):  # not there, or not empty
                    root.rmdir()
            raise ValueError(
                f"dataset {self.name!r}: downloading it failed ({error}); put {self.archive} "
                f"(MD5 {self.md5}) from https://www.cs.toronto.edu/~kriz/{self.archive} into "
                f"{root}"
            ) from error


_CIFAR10 = _Variant(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    10,
)
_CIFAR100 = _Variant(
    "cifar100",
    "CIFAR100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    100,
)


@dataclass(frozen=True)
class _Part:
    """The official training or test images, as two memory-mapped arrays."""

    variant: _Variant
    root: Path
    train: bool

    def images(self) -> Images:
        """Uint8 (N, 3, 32, 32)."""
        return self._array("images", (3, 32, 32), np.uint8, lambda x: x.data.transpose(0, 3, 1, 2))

    def labels(self) -> Labels:
        """Int64 (N,)."""
        return np.array(self._array("labels", (), np.int64, lambda x: np.array(x.targets)))

    def _array(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        read: Callable[[Any], NDArray[Any]],
    ) -> NDArray[Any]:
        def fill(array: NDArray[Any]) -> None:
            array[:] = read(self.variant.open(self.root, self.train))

        digest = hashlib.sha256()
        for path in sorted((self.root / self.variant.folder).iterdir()):
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        split, count = ("train", _TRAIN_IMAGES) if self.train else ("test", _TEST_IMAGES)
        key = f"{self.variant.name}-{split}-{kind}-{digest.hexdigest()[:16]}"
        return cached_array(key, (count, *shape), dtype, fill)


@dataclass(frozen=True, eq=False)
class _CifarSource:
    part: _Part
    indices: Indices

    def load(self) -> Images:
        return np.asarray(self.part.images()[self.indices])

    def select(self, indices: Indices) -> _CifarSource:
        return _CifarSource(self.part, self.indices[indices])


def load_cifar10(data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    """CIFAR-10: 41,667 images to train, 8,333 to search, the official 10,000 to test."""
    return _load(_CIFAR10, data_root, seed, image_size)


def load_cifar100(data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    """CIFAR-100: 41,667 images to train, 8,333 to search, the official 10,000 to test."""
    return _load(_CIFAR100, data_root, seed, image_size)


def _load(variant: _Variant, data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    if image_size not in {None, 32}:
        raise ValueError(f"image_size must be 32 for dataset {variant.name!r}, got {image_size}")
    root = (data_root or cache_folder() / variant.name).absolute()
    if not (root / variant.folder).is_dir():
        with locked(f"download-{variant.name}"):
            variant.open(root, train=True)
    train, test = _Part(variant, root, train=True), _Part(variant, root, train=False)
    train_labels, test_labels = train.labels(), test.labels()
    kept, searched = cut_search(train_labels, seed)
    return Splits(
        variant.name,
        DeferredImageSet(_CifarSource(train, kept), train_labels[kept]),
        DeferredImageSet(_CifarSource(train, searched), train_labels[searched]),
        DeferredImageSet(_CifarSource(test, np.arange(_TEST_IMAGES)), test_labels),
        variant.num_classes,
    )
