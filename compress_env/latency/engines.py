"""Running ONNX files with ONNX Runtime and OpenVINO, and what that takes of time and memory.

This file imports nothing of the package, so that a process that runs it alone holds an engine and
nothing else: `python engines.py ENGINE FILE BATCH THREADS` prints that process's peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("onnxruntime", "openvino")
"""Engines by the name of their package."""

Run = Callable[[np.ndarray], np.ndarray]
"""A batch of images, float32 (batch, channels, height, width), to outputs (batch, classes)."""


@dataclass(frozen=True)
class Session:
    """An ONNX file made ready by an engine, for one batch size.

    Attributes:
        creation_seconds: how long it took to load and compile the file.
        run: computes the outputs of a batch.
        input_shape: of a batch.
        input_type: dtype of a batch.
        profile: where it was asked for: ends the session and gives, for every run, the seconds
            that every type of operator took.
    """

    creation_seconds: float
    run: Run
    input_shape: tuple[int, ...]
    input_type: np.dtype[Any]
    profile: Callable[[], list[dict[str, float]]] | None = None

    def example(self) -> np.ndarray:
        """A batch of noise."""
        noise = np.random.default_rng(0).normal(size=self.input_shape)
        if self.input_type == np.uint8:
            noise = np.abs(noise) * 10
        return noise.astype(self.input_type)


def open_session(
    engine: str,
    path: str | os.PathLike[str],
    batch: int,
    threads: int | None = None,
    profile: bool = False,
) -> Session:
    """Load a file with an engine.

    Both engines compute in float32 what the file does not quantize (OpenVINO would by itself take
    bfloat16 on some machines), and compile for this batch size.

    Args:
        engine: one of `ENGINES`.
        path: an ONNX file whose batch dimension is named "batch".
        batch: images per run, at least 1.
        threads: threads per run; None for as many as there are cores to this process.
        profile: time operators, which makes runs slower.

    Raises:
        ValueError: the engine is not known or cannot load the file, or batch or threads are below
            1.
        ImportError: the engine is not installed.
        FileNotFoundError: there is no such file.
    """
    threads = available_cores() if threads is None else threads
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not '{engine}'")
    if batch < 1 or threads < 1:
        raise ValueError(f"batch and threads must be at least 1, not {batch} and {threads}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    opened = _open_onnxruntime if engine == "onnxruntime" else _open_openvino
    try:
        return opened(Path(path), batch, threads, profile)
    except ImportError:
        raise
    except Exception as error:  # every engine has types of its own
        raise ValueError(f"{engine} cannot load {path}: {error}") from error


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def int8_sessions(
    onnx_path: str | os.PathLike[str], batch: int, threads: int | None = None
) -> dict[str, tuple[float, Run]]:
    """A file in every engine that is installed: `(creation seconds, run)` by engine."""
    sessions = {}
    for engine in ENGINES:
        try:
            session = open_session(engine, onnx_path, batch, threads)
        except ImportError:
            continue
        sessions[engine] = (session.creation_seconds, session.run)
    return sessions


def _open_onnxruntime(path: Path, batch: int, threads: int, profile: bool) -> Session:
    import onnxruntime  # noqa: PLC0415  (an extra)

    def create(fuse: bool) -> tuple[float, Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name("batch", batch)
        # Waiting threads would take the cores from the engine measured next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(path)
        if not fuse:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        start = time.perf_counter()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return time.perf_counter() - start, session

    seconds, session = create(fuse=True)
    # The exact form has nothing that could be fused into integer kernels here; without the search
    # for it, weights become floats once instead of at every run.
    if session.get_modelmeta().custom_metadata_map.get("form") == "exact":
        seconds, session = create(fuse=False)
    given, output = session.get_inputs()[0], session.get_outputs()[0].name
    dtype = np.dtype(np.uint8 if "uint8" in given.type else np.float32)

    def run(images: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run([output], {given.name: images})[0]
        return result

    def read_profile() -> list[dict[str, float]]:
        file = Path(session.end_profiling())
        events = json.loads(file.read_text())
        file.unlink()
        return _sorted_by_run(events)

    shape = (batch, *given.shape[1:])
    return Session(seconds, run, shape, dtype, read_profile if profile else None)


def _sorted_by_run(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Seconds by type of operator, for every run in a profile of ONNX Runtime."""
    runs: list[dict[str, float]] = []
    # A run may begin in the same microsecond as its first operator.
    for event in sorted(events, key=lambda e: (e.get("ts", 0), e.get("name") != "model_run")):
        if event.get("name") == "model_run":
            runs.append({})
        elif event.get("name", "").endswith("_kernel_time") and runs:
            operator = event["args"]["op_name"]
            runs[-1][operator] = runs[-1].get(operator, 0.0) + 1e-6 * event["dur"]
    return runs


def _open_openvino(path: Path, batch: int, threads: int, profile: bool) -> Session:
    import openvino  # noqa: PLC0415  (an extra)

    start = time.perf_counter()
    network = openvino.Core().read_model(path)
    shape = tuple(d.get_length() for d in list(network.input(0).get_partial_shape())[1:])
    network.reshape([batch, *shape])
    compiled = openvino.Core().compile_model(
        network,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": profile,
        },
    )
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - start
    dtype = np.dtype(compiled.input(0).get_element_type().to_dtype())

    def run(images: np.ndarray) -> np.ndarray:
        result: np.ndarray = request.infer([images])[0]
        if profile:
            times: dict[str, float] = {}
            for operator in request.profiling_info:
                spent = operator.real_time.total_seconds()
                times[operator.node_type] = times.get(operator.node_type, 0.0) + spent
            profiled.append(times)
        return result

    profiled: list[dict[str, float]] = []
    read_profile = (lambda: profiled) if profile else None
    return Session(seconds, run, (batch, *shape), dtype, read_profile)


def peak_memory(engine: str, path: str | os.PathLike[str], batch: int, threads: int) -> int:
    """Peak resident memory in bytes of a process that loads a file and runs it a few times.

    Raises:
        ChildProcessError: the process failed.
    """
    command = [sys.executable, __file__, engine, str(path), str(batch), str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise ChildProcessError(f"{engine} cannot run {path}: {reason}")
    return int(json.loads(result.stdout)["peak_bytes"])


def own_peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # not `getrusage`, which counts what the parent had before `exec`
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource  # noqa: PLC0415  (not on Windows)

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    opened = open_session(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    for _ in range(3):
        opened.run(opened.example())
    print(json.dumps({"peak_bytes": own_peak_memory()}))
