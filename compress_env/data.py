"""The data sets: images with their fixed train / search / test splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .datasets.cifar import load_cifar10, load_cifar100
from .datasets.digits import load_digits
from .datasets.folders import load_imagefolder, load_imagenet
from .datasets.image_sets import ImageSet, Splits, normalize

__all__ = ["DATASETS", "ImageSet", "Splits", "load_splits", "normalize"]

DATASETS: dict[str, Callable[[Path | None, int, int | None], Splits]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagefolder": load_imagefolder,
    "imagenet": load_imagenet,
}
"""For every data set its loader: ``(data_root, seed, image_size) -> Splits``."""


def load_splits(
    dataset: str,
    data_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Splits:
    """The fixed splits of a data set.

    The test split never depends on the seed. Where a data set has no search split of its own, a
    sixth of the training images is cut off for it, by the seed. Within a split, every run of
    images holds the classes in about their proportions. Images of a folder are decoded when they
    are first asked for, once, into a memory-mapped cache (folder: the environment variable
    ``COMPRESS_ENV_CACHE``, by default ``~/.cache/compress_env``; it can be deleted at any time).

    Args:
        dataset: one of

            - ``"digits"``: scikit-learn's, embedded: 897 train, 540 search, 360 test, 8x8.
            - ``"cifar10"``, ``"cifar100"``: downloaded into ``data_root`` (by default into the
              cache) where they are not there yet.
            - ``"imagefolder"``: ``data_root`` holds ``train/``, ``test/`` and, for the search
              split, ``val/`` where there is one; each with one folder per class.
            - ``"imagenet"``: ``data_root`` is a copy as ``torchvision.datasets.ImageNet`` wants
              it; its validation images are the test split.
        data_root: folder of the images.
        seed: fixes the search split, at least 0.
        image_size: side in pixels for ``imagefolder`` (None: the images have one size already)
            and ``imagenet`` (None: 224); the others have their own. The image is resized with
            its proportions kept, then its centre is cut out.

    Raises:
        ValueError: an argument is unknown, missing or not allowed; or, when its images are
            asked for, an image is broken.
        FileNotFoundError: a folder is missing.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    root = None if data_root is None else Path(data_root).expanduser()
    return DATASETS[dataset](root, seed, image_size)
