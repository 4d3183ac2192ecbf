"""Timing a run's network against the dense one, and tables of layers for searches to come."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from compress_agents.command_line.options import command_line
from compress_agents.deployment import FoundRun
from compress_agents.deployment.exporting import dense_float
from compress_agents.runs import write_json
from compress_env.export import export_onnx
from compress_env.latency import LatencyReport, LatencyTable, measure_latency
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import NETWORKS, build_network

__all__ = ["make_latency_table", "parse_counts", "table_graph", "table_summary", "time_run"]

DENSE, EXACT, INTEGER = "dense float32", "compressed, exact form", "compressed, integer form"
"""Names of the files in a report."""

_DATASETS: Mapping[str, tuple[int, int]] = {
    "digits": (8, 10),
    "cifar10": (32, 10),
    "cifar100": (32, 100),
    "imagenet": (224, 1000),
}
"""Side of the images in pixels and number of classes, where the data set says them."""

BATCH_SIZES, REPEATS = (1, 32), 50
"""Images per pass, and interleaved runs, unless told otherwise."""

_DEFAULTS = {"batch_sizes": BATCH_SIZES, "repeats": REPEATS, "memory": True}


def parse_counts(name: str, text: str) -> tuple[int, ...]:
    """`"1,32"` as numbers.

    Raises:
        ValueError: it is something else; names the option.
    """
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(f"{name} must be whole numbers from 1, such as 1,32, not '{text}'")
    return counts


def time_run(
    found: FoundRun,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = REPEATS,
    threads: int | None = None,
    engine: str | None = None,
    memory: bool = True,
    json_file: Path | None = None,
) -> tuple[LatencyReport, Path]:
    """Export a run's network and the dense one, and time them against each other.

    Args:
        found: the run.
        batch_sizes: images per pass.
        repeats: interleaved runs that medians are over.
        threads: threads per pass; None: as many as there are cores.
        engine: one of `compress_env.latency.ENGINES`; None: all that are installed.
        memory: measure peak memory too.
        json_file: gets the report; None: `latency.json` where the run is.

    Returns:
        The report, and the file that it was written to.

    Raises:
        ValueError: an argument is not allowed, or the network cannot be exported.
        ImportError: a package is missing.
    """
    written = json_file or found.folder / "latency.json"
    if not written.parent.is_dir():
        raise ValueError(f"json: there is no folder {written.parent}")
    if written.is_dir():
        raise ValueError(f"json must be a file, and {written} is a folder")
    task = found.task()
    network, plan = found.network(task)
    shape, images = task.graph.input_shape, task.calibration.images.cpu()
    names = (DENSE, EXACT, INTEGER)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{index}.onnx" for index, name in enumerate(names)}
        export_onnx(dense_float(task), shape, files[DENSE])
        export_onnx(network, shape, files[EXACT], plan=plan)
        export_onnx(network, shape, files[INTEGER], plan=plan, calibration_images=images)
        with _Bar("Timing", "row") as bar:
            engines = None if engine is None else [engine]
            report = measure_latency(
                files, batch_sizes, repeats, threads, engines, memory, progress=bar.show
            )
    options = {
        "batch_sizes": tuple(batch_sizes), "repeats": repeats, "threads": threads,
        "engine": engine, "memory": memory, "json": json_file, "data_root": found.data_root,
    }  # fmt: skip
    about = {
        "command": command_line("compress-agents latency", options, _DEFAULTS, str(found.given)),
        "network": task.network_name,
        "input_shape": list(shape),
    }
    write_json(written, {**about, **asdict(report)})
    return report, written


class _Bar:
    """A progress bar that takes how much is done and how much there is."""

    def __init__(self, text: str, unit: str) -> None:
        self._bar = tqdm(desc=text, unit=unit, leave=False, disable=None)

    def show(self, done: int, total: int) -> None:
        """Show."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def table_graph(
    network: str, dataset: str | None, image_size: int | None, num_classes: int | None
) -> LayerGraph:
    """The layer graph that a table is for; its weights do not matter.

    Args:
        network: by name, or `"module.path:factory"`.
        dataset: name of the data set, for what follows; None: that of the network's environment.
        image_size: side of the images in pixels, where the data set does not say it.
        num_classes: outputs of the network, likewise.

    Raises:
        ValueError: an argument is not allowed, or missing.
    """
    if dataset is None:
        dataset = NETWORKS[network].default_dataset if network in NETWORKS else "digits"
    size, classes = _DATASETS.get(dataset, (None, None))
    size = size if image_size is None else image_size
    classes = classes if num_classes is None else num_classes
    if size is None or classes is None:
        raise ValueError(
            f"image_size and num_classes must be given for dataset '{dataset}': it does not say "
            "them by its name"
        )
    if size < 1:
        raise ValueError(f"image_size must be at least 1, not {size}")
    with torch.random.fork_rng([]):
        return trace(build_network(network, classes), (3, size, size))


def make_latency_table(
    graph: LayerGraph,
    out: Path,
    engine: str = "openvino",
    batch_size: int = 1,
    threads: int | None = None,
    repeats: int = 20,
    resume: bool = False,
) -> LatencyTable:
    """Time the layers of a network and write the table.

    Measurements are kept in a file beside `out` until the table is written.

    Args:
        graph: what `table_graph` gives.
        out: the file to write.
        engine: one of `compress_env.latency.ENGINES`.
        batch_size: images per pass.
        threads: threads per pass; None: as many as there are cores.
        repeats: runs of every layer, of which the fastest counts.
        resume: go on from an interrupted measurement.

    Raises:
        ValueError: an argument is not allowed, or there is already what must not be overwritten.
        ImportError: a package is missing.
    """
    if out.exists():
        raise ValueError(f"out: {out} exists; delete it, or name another --out")
    if out.suffix != ".json":
        raise ValueError(f"out must end in .json, not '{out.name}'")
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = out.with_name(f"{out.name}.measurements")
    with _Bar("Timing layers", "run") as bar:
        table = LatencyTable.measure(
            graph,
            engine,
            batch_size,
            threads,
            repeats=repeats,
            progress=bar.show,
            journal=journal,
            resume=resume,
        )
    table.save(out)
    journal.unlink()
    return table


def table_summary(table: LatencyTable) -> dict[str, Any]:
    """Milliseconds of the whole network in float32 and in 8-bit integers, and the conditions."""
    totals = {
        kind: sum(float(getattr(layer, kind)[-1, -1]) for layer in table.layers)
        for kind in ("float32", "int8")
    }
    return {**totals, **table.conditions}
