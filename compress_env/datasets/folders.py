"""Folders of images by class: one's own, Tiny-ImageNet, ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import FileSource, labelled_files
from .image_sets import DeferredImageSet, Splits, cut_search, stratified_order

_IMAGENET_SIZE = 224
# The usual evaluation: shorter side to 256, then the 224 in the middle.
_IMAGENET_MARGIN = 256 / 224


def load_imagefolder(data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    """``train/``, ``test/`` and optionally ``val/``, each with one folder per class."""
    if data_root is None:
        raise ValueError("data_root must name the folder of dataset 'imagefolder'")
    if not data_root.is_dir():
        raise FileNotFoundError(f"data_root {data_root} is not a folder")
    for name in ("train", "test"):
        if not (data_root / name).is_dir():
            raise FileNotFoundError(
                f"data_root {data_root} must hold train/ and test/ (and val/ for a search split "
                f"of its own), each with one folder per class; {name}/ is missing"
            )
    found = {
        name: _list(data_root / name)
        for name in ("train", "val", "test")
        if (data_root / name).is_dir()
    }
    classes = sorted({label for _, label in found["train"]})
    if len(classes) < 2:
        raise ValueError(
            f"data_root: {data_root / 'train'} must hold images of at least 2 classes, "
            f"got {len(classes)}"
        )
    shorter_side = image_size or 0
    sets = {
        name: _image_set(data_root / name, files, classes, image_size, shorter_side)
        for name, files in found.items()
    }
    train, search = sets["train"], sets.get("val")
    test = sets["test"].select(stratified_order(sets["test"].labels, 0))
    if search is None:
        kept, searched = cut_search(train.labels, seed)
        return Splits("imagefolder", train.select(kept), train.select(searched), test, len(classes))
    return Splits(
        "imagefolder",
        train.select(stratified_order(train.labels, 0)),
        search.select(stratified_order(search.labels, 0)),
        test,
        len(classes),
    )


def load_imagenet(data_root: Path | None, seed: int, image_size: int | None) -> Splits:
    """ImageNet as torchvision's class finds it; its validation images are the test split."""
    if data_root is None:
        raise ValueError("data_root must name the folder of dataset 'imagenet'")
    from torchvision.datasets import ImageNet  # noqa: PLC0415  (a second, for this alone)

    size = image_size or _IMAGENET_SIZE
    sets = {}
    for name in ("train", "val"):
        try:
            samples = ImageNet(str(data_root), split=name).samples
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data_root {data_root} must be a copy of ImageNet as torchvision's class wants "
                f"it: {error}"
            ) from error
        source = FileSource.of([p for p, _ in samples], size, round(size * _IMAGENET_MARGIN))
        sets[name] = DeferredImageSet(source, np.array([y for _, y in samples], dtype=np.int64))
    kept, searched = cut_search(sets["train"].labels, seed)
    test = sets["val"].select(stratified_order(sets["val"].labels, 0))
    train = sets["train"]
    return Splits("imagenet", train.select(kept), train.select(searched), test, 1000)


def _list(folder: Path) -> list[tuple[str, str]]:
    files = list(labelled_files(folder.resolve()))
    if not files:
        raise ValueError(f"data_root: there are no images in the class folders of {folder}")
    return files


def _image_set(
    folder: Path,
    files: Sequence[tuple[str, str]],
    classes: Sequence[str],
    size: int | None,
    shorter_side: int,
) -> DeferredImageSet:
    number = {label: index for index, label in enumerate(classes)}
    for path, label in files:
        if label not in number:
            raise ValueError(
                f"data_root: {folder} holds a class {label!r} that train/ does not have ({path})"
            )
    labels = np.array([number[label] for _, label in files], dtype=np.int64)
    return DeferredImageSet(FileSource.of([p for p, _ in files], size, shorter_side), labels)
