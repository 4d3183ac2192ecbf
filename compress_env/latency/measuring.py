"""Latency of a compressed network against the dense one, as deployed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress_env.latency.engines import (
    ENGINES,
    Run,
    Session,
    available_cores,
    open_session,
    peak_memory,
)

_WARMUPS = 3


@dataclass(frozen=True)
class LatencyRow:
    """One file in one engine at one batch size.

    Attributes:
        file: name it was given.
        engine: `"onnxruntime"` or `"openvino"`.
        batch_size: images per run.
        milliseconds: median time of a run.
        ratio: how many times as fast as the first file: median over rounds.
        creation_seconds: time to load and compile the file.
        file_bytes: its size.
        peak_bytes: peak memory of a process that does nothing else; 0 if not measured.
    """

    file: str
    engine: str
    batch_size: int
    milliseconds: float
    ratio: float
    creation_seconds: float
    file_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class LatencyReport:
    """What `measure_latency` found.

    Attributes:
        rows: in the order of engines, batch sizes and files.
        threads: threads per run.
        repeats: rounds that the medians are over.
        versions: of the engines, by name.
    """

    rows: tuple[LatencyRow, ...]
    threads: int
    repeats: int
    versions: Mapping[str, str]


def measure_latency(
    files: Mapping[str, str | os.PathLike[str]],
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 50,
    threads: int | None = None,
    engines: Sequence[str] | None = None,
    memory: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyReport:
    """Time ONNX files against each other.

    Within an engine and a batch size every round runs all files once, one after the other, so that
    whatever else the machine does strikes all of them; ratios are taken within a round.

    Args:
        files: ONNX files by the name they shall have in the report; the first is what the others
            are compared to: the dense network.
        batch_sizes: images per run.
        repeats: rounds, at least 1.
        threads: threads per run; None for as many as this process has cores.
        engines: some of `ENGINES`; None for those that are installed.
        memory: measure peak memory too, in a process for every row.
        progress: called with how many rows are done, and how many there are.

    Raises:
        ValueError: an argument is not allowed, or an engine cannot load a file.
        ImportError: no engine is installed.
        OSError: a file is missing, or a process that shall show its peak memory fails.
    """
    if not files:
        raise ValueError("files must hold at least one file")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be at least 1, not {list(batch_sizes)}")
    threads = available_cores() if threads is None else threads
    versions = installed_engines() if engines is None else versions_of(engines)
    if not versions:
        raise ImportError(
            "latency needs onnxruntime or openvino: pip install 'compress-env[export]'"
        )
    rows = []
    for engine in versions:
        for batch in batch_sizes:
            sessions = [open_session(engine, path, batch, threads) for path in files.values()]
            seconds = interleaved([session.run for session in sessions], sessions[0], repeats)
            for place, (name, path) in enumerate(files.items()):
                rows.append(
                    LatencyRow(
                        file=name,
                        engine=engine,
                        batch_size=batch,
                        milliseconds=1e3 * float(np.median(seconds[:, place])),
                        ratio=float(np.median(seconds[:, 0] / seconds[:, place])),
                        creation_seconds=sessions[place].creation_seconds,
                        file_bytes=Path(path).stat().st_size,
                        peak_bytes=peak_memory(engine, path, batch, threads) if memory else 0,
                    )
                )
                if progress is not None:
                    progress(len(rows), len(versions) * len(batch_sizes) * len(files))
    return LatencyReport(tuple(rows), threads, repeats, versions)


def interleaved(runs: Sequence[Run], session: Session, repeats: int) -> np.ndarray:
    """Seconds of every run in every round, float64 (repeats, runs), on the session's example."""
    images = session.example()
    for run in runs:
        for _ in range(_WARMUPS):
            run(images)
    seconds = np.empty((repeats, len(runs)))
    for row in seconds:
        for place, run in enumerate(runs):
            start = time.perf_counter()
            run(images)
            row[place] = time.perf_counter() - start
    return seconds


def installed_engines() -> dict[str, str]:
    """Versions of the engines that are installed, by name."""
    found = {}
    for engine in ENGINES:
        try:
            found.update(versions_of([engine]))
        except ImportError:
            continue
    return found


def versions_of(engines: Sequence[str]) -> dict[str, str]:
    """Versions of engines by name.

    Raises:
        ValueError: an engine is not known.
        ImportError: an engine is not installed.
    """
    versions = {}
    for engine in engines:
        if engine not in ENGINES:
            raise ValueError(f"engines must be among {', '.join(ENGINES)}, not '{engine}'")
        version = str(__import__(engine).__version__)
        versions[engine] = version.partition("-")[0]  # OpenVINO's has its commit behind it
    return versions


def latency_table(report: LatencyReport) -> str:
    """The report as text in columns."""
    titles = ["engine", "batch", "file", "median ms", "times as fast", "load s", "KiB", "peak MiB"]
    lines = [titles]
    for row in report.rows:
        peak = f"{row.peak_bytes / 2**20:.0f}" if row.peak_bytes else ""
        lines.append(
            [
                row.engine,
                str(row.batch_size),
                row.file,
                f"{row.milliseconds:.2f}",
                f"{row.ratio:.2f}",
                f"{row.creation_seconds:.2f}",
                f"{row.file_bytes / 2**10:.0f}",
                peak,
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    texts = {0, 2}
    text = [
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    engines = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    note = f"{engines}; threads: {report.threads}; medians of {report.repeats} interleaved runs"
    return "\n".join([*text, note])
