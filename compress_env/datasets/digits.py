"""Scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .image_sets import ImageSet, Splits, cut_search, stratified_order

_TEST_IMAGES = 360
_SEARCH_IMAGES = 540


def load_digits(data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    """897 images to train, 540 to search, 360 to test; grey, as three equal channels."""
    if data_root is not None:
        raise ValueError(f"data_root must be left out for dataset 'digits', got {data_root}")
    if image_size not in {None, 8}:
        raise ValueError(f"image_size must be 8 for dataset 'digits', got {image_size}")
    from sklearn import datasets  # noqa: PLC0415  (a second to import, for this data set alone)

    bunch = datasets.load_digits()
    # 17 shades, from 0 to 16.
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(grey[:, None], (len(grey), 3, 8, 8)))
    everything = ImageSet(images, bunch.target.astype(np.int64))
    order = stratified_order(everything.labels, 0)
    test, rest = everything.select(order[:_TEST_IMAGES]), everything.select(order[_TEST_IMAGES:])
    train, search = cut_search(rest.labels, seed, _SEARCH_IMAGES / len(rest))
    half = (0.5, 0.5, 0.5)
    return Splits(
        "digits", rest.select(train), rest.select(search), test, 10, half, half, mirror=False
    )
