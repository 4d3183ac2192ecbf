"""Image files: listing them by class, and decoding them into the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from .cache import cached_array
from .image_sets import Images, Indices

_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_CHUNK = 128
# Changes whenever decoding does, so that nobody reads what an older version wrote.
_VERSION = "1"


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, in order.

    Attributes:
        paths: the files, as bytes (N,): one array, which processes can share, of the size of the
            names, where a million strings would take several times that in each of them.
        size: side in pixels of the square to cut from the centre; None: as they are, all of
            one size.
        shorter_side: what the shorter side is resized to before the cut.
    """

    paths: NDArray[np.bytes_]
    size: int | None
    shorter_side: int

    @classmethod
    def of(cls, paths: Sequence[str], size: int | None, shorter_side: int) -> FileSource:
        """The source of files by their names."""
        return cls(np.array([os.fsencode(path) for path in paths]), size, shorter_side)

    def load(self) -> Images:
        """The images, uint8 (N, 3, H, W), decoded at the first call ever."""
        height, width = self._shape()
        shape = (len(self.paths), 3, height, width)
        return cached_array(self._key(), shape, np.uint8, self._fill)

    def select(self, indices: Indices) -> FileSource:
        """The files at ``indices``, in that order."""
        return FileSource(self.paths[indices], self.size, self.shorter_side)

    def _path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def _shape(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size, self.size
        first = _decode(self._path(0), None, 0)
        return first.shape[0], first.shape[1]

    def _key(self) -> str:
        digest = hashlib.sha256(f"{_VERSION} {self.size} {self.shorter_side}".encode())
        for path in map(os.fsdecode, self.paths):
            status = os.stat(path)
            digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
        return f"images-{digest.hexdigest()[:32]}"

    def _fill(self, images: Images) -> None:
        starts = range(0, len(self.paths), _CHUNK)
        # Threads, because Pillow decodes without the interpreter's lock; the bar stays away from
        # what takes less than a second.
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(self.paths), desc="Decoding images", unit="image", delay=1) as bar,
        ):
            for done in pool.map(lambda start: self._fill_chunk(images, start), starts):
                bar.update(done)

    def _fill_chunk(self, images: Images, start: int) -> int:
        paths = [os.fsdecode(path) for path in self.paths[start : start + _CHUNK]]
        for index, path in enumerate(paths, start):
            pixels = _decode(path, self.size, self.shorter_side)
            if pixels.shape[:2] != images.shape[2:]:
                raise ValueError(
                    f"image_size must be given, as the images differ in size: {path} is "
                    f"{pixels.shape[1]}x{pixels.shape[0]}, {self._path(0)} is "
                    f"{images.shape[3]}x{images.shape[2]}"
                )
            images[index] = pixels.transpose(2, 0, 1)
        return len(paths)


def _decode(path: str, size: int | None, shorter_side: int) -> Images:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise ValueError(f"image {path} is truncated or not an image: {error}") from error
    if size is not None:
        width, height = image.size
        scale = shorter_side / min(width, height)
        width, height = max(size, int(width * scale)), max(size, int(height * scale))
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if (width, height) != (size, size):
            image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def labelled_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Every image file below ``folder`` with its class, sorted.

    The class is the name of the folder directly below ``folder`` that holds the file, or what a
    file ``*_annotations.txt`` in ``folder`` says (Tiny-ImageNet's: file name, class, ...).
    """
    classes: dict[str, str] = {}
    for listing in sorted(folder.glob("*_annotations.txt")):
        for line in listing.read_text().splitlines():
            name, _, rest = line.partition("\t")
            classes[name] = rest.partition("\t")[0]
    for child in sorted(entry.path for entry in os.scandir(folder) if entry.is_dir()):
        for parent, folders, names in os.walk(child, followlinks=True):
            folders.sort()
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in _EXTENSIONS:
                    label = classes.get(name, os.path.basename(child))
                    yield os.path.join(parent, name), label
