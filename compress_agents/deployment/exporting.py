"""Writing a run's network for other programs, and seeing that it still says the same there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn
from tqdm.auto import tqdm

from compress_agents.deployment import FoundRun
from compress_env.data import ImageSet, Splits, normalize
from compress_env.evaluation import run_network
from compress_env.export import export_onnx, export_torch
from compress_env.latency import ENGINES, open_session
from compress_env.latency.engines import Run
from compress_env.latency.measuring import installed_engines
from compress_env.quantized_training import folded_copy
from compress_env.task import CompressionTask

__all__ = ["FORMATS", "GOAL", "Exported", "dense_float", "export_run", "export_table"]

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Ending of the file by the name of the format."""

GOAL = 0.995
"""Share of test images on which an exact file should predict what PyTorch predicts."""

_BATCH = 100

Predict = Callable[[torch.Tensor], torch.Tensor]
"""float32 (images, channels, height, width), at most `_BATCH`, to classes int64 (images,)."""


@dataclass(frozen=True)
class Runner:
    """How a file fared in one program.

    Attributes:
        name: of the program.
        agreement: share of the test images on which it predicts what PyTorch predicts, 0 to 1.
        accuracy: on the test images, 0 to 1.
    """

    name: str
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class Exported:
    """A file and what is known of it.

    Attributes:
        path: of the file.
        file_bytes: its size.
        dense_bytes: size of the dense float32 network in the same format.
        trained: whether it is the fine-tuned network.
        exact: whether it means exactly what the network computes.
        accuracy: of the network in PyTorch on the test images.
        test_images: how many these are.
        runners: the programs that it was run in.
    """

    path: Path
    file_bytes: int
    dense_bytes: int
    trained: bool
    exact: bool
    accuracy: float
    test_images: int
    runners: tuple[Runner, ...]

    @property
    def faithful(self) -> bool:
        """Whether it agrees with PyTorch as it should; the integer form need not."""
        return not self.exact or all(runner.agreement >= GOAL for runner in self.runners)


def export_run(
    found: FoundRun,
    format_name: str = "onnx",
    out: Path | None = None,
    integer: bool = False,
    low_bit_storage: bool = True,
) -> Exported:
    """Write a run's fine-tuned network (or its best plan's, untrained) and run the file.

    Args:
        found: the run.
        format_name: one of `FORMATS`.
        out: the file; None: `compressed.onnx`, `compressed-integer.onnx` or `compressed.pt2` where
            the run is.
        integer: ONNX in the integer form, for ONNX Runtime; see `compress_env.export.export_onnx`.
        low_bit_storage: whether ONNX stores weights of 4 bits and fewer as INT4.

    Raises:
        ValueError: an argument is not allowed, or the network has an operation that cannot be
            written.
        ImportError: a package is missing.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not '{format_name}'")
    if integer and format_name != "onnx":
        raise ValueError(f"integer is a form of onnx, not of {format_name}")
    if not low_bit_storage and format_name != "onnx":
        raise ValueError(
            f"--no-low-bit-storage is an option of --format onnx, not of {format_name}"
        )
    form = "-integer" if integer else ""
    path = out or found.folder / f"compressed{form}{FORMATS[format_name]}"
    if path.suffix != FORMATS[format_name]:
        raise ValueError(f"out must end in {FORMATS[format_name]}, not '{path.name}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    task = found.task()
    network, plan = found.network(task)
    shape = task.graph.input_shape
    dense = dense_float(task)
    with tempfile.TemporaryDirectory() as folder:
        dense_path = Path(folder) / f"dense{FORMATS[format_name]}"
        if format_name == "onnx":
            ranges = task.calibration.images.cpu() if integer else None
            export_onnx(dense, shape, dense_path)
            export_onnx(
                network, shape, path, plan=plan, low_bit_storage=low_bit_storage,
                calibration_images=ranges,
            )  # fmt: skip
        else:
            export_torch(dense, shape, dense_path)
            export_torch(network, shape, path)
        dense_bytes = dense_path.stat().st_size
    test = task.splits.test
    expected = _predictions(_torch_runner(network), test, task.splits, "PyTorch")
    runners = []
    for name, predict in _runners(path):
        found_classes = _predictions(predict, test, task.splits, name)
        agreement = float(np.mean(found_classes == expected))
        runners.append(Runner(name, agreement, float(np.mean(found_classes == test.labels))))
    return Exported(
        path=path,
        file_bytes=path.stat().st_size,
        dense_bytes=dense_bytes,
        trained=found.compressed is not None,
        exact=not integer,
        accuracy=float(np.mean(expected == test.labels)),
        test_images=len(test),
        runners=tuple(runners),
    )


def dense_float(task: CompressionTask) -> nn.Module:
    """The dense network as it would be shipped: BatchNorm folded, on the CPU."""
    return folded_copy(task.graph).cpu()


def _torch_runner(network: nn.Module) -> Predict:
    return lambda images: run_network(network, images).argmax(1)


def _runners(path: Path) -> Iterator[tuple[str, Predict]]:
    """Programs that run a file, each opened when it is its turn."""
    if path.suffix == FORMATS["torch"]:
        yield "torch.export", _torch_runner(torch.export.load(path).module())
        return
    versions = installed_engines()
    for engine in ENGINES:
        if engine not in versions:
            continue
        run = open_session(engine, path, _BATCH).run
        yield f"{engine} {versions[engine]}", partial(_predict_in_full_batches, run)


def _predict_in_full_batches(run: Run, images: torch.Tensor) -> torch.Tensor:
    # Sessions are made for one batch size; the last batch is filled up with its first image.
    full = torch.cat([images, images[:1].expand(_BATCH - len(images), -1, -1, -1)])
    return torch.from_numpy(run(full.numpy())).argmax(1)[: len(images)]


def _predictions(predict: Predict, images: ImageSet, splits: Splits, name: str) -> np.ndarray:
    """Classes of all images, int64 (images,), of which only a batch at a time is in memory."""
    classes = []
    for start in tqdm(
        range(0, len(images), _BATCH), desc=name, unit="batch", leave=False, disable=None
    ):
        some = torch.from_numpy(np.array(images.images[start : start + _BATCH]))
        classes.append(predict(normalize(some, splits)).numpy())
    return np.concatenate(classes)


def export_table(exported: Exported) -> Table:
    """What is known of a file, for the terminal."""
    form = "" if exported.exact else ", integer form"
    table = Table(title=f"{exported.path.name}{form}", title_justify="left")
    for name in (f"on {exported.test_images} test images", "same as PyTorch", "accuracy"):
        table.add_column(name, justify="left" if name.startswith("on") else "right", no_wrap=True)
    table.add_row("PyTorch", "", f"{exported.accuracy:.2%}")
    for runner in exported.runners:
        table.add_row(runner.name, f"{runner.agreement:.2%}", f"{runner.accuracy:.2%}")
    dense, small = exported.dense_bytes / 1024, exported.file_bytes / 1024
    table.caption = f"{small:.1f} KiB; dense in float32 {dense:.1f} KiB ({dense / small:.1f} times)"
    table.caption_justify = "left"
    return table
