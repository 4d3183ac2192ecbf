"""What a run folder holds, read and checked for the page."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress_agents.runs import RunFolder, read_json
from compress_env.compressed_file import COMPRESSED_FILE, FINETUNED_FOLDER
from compress_env.data import load_splits
from compress_env.finetune import CHECKPOINT_FILE, CURVE_FILE
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.networks.weights import read_metadata
from compress_env.plan import CompressionPlan

__all__ = ["Episode", "Finetuning", "Run", "read_run"]

UNIFORM_FOLDER = f"{FINETUNED_FOLDER}-uniform"
"""Where in a run folder uniform bits are fine-tuned, to compare with."""

_NUMBERS = (
    *("target_reduction", "reduction", "uniform_reduction", "macs", "bops", "params", "size_bits"),
    *("dense_macs", "dense_bops", "dense_params", "dense_size_bits", "num_test_images"),
    *("baseline_test_accuracy", "test_accuracy", "uniform_test_accuracy", "num_search_images"),
    *("dense_search_accuracy", "search_accuracy", "uniform_search_accuracy"),
    *("evaluations", "wall_seconds"),
)
_WORDS = ("network", "dataset", "metric", "method")
_SHIPPED = ("*.safetensors", "*.onnx", "*.pt2")


@dataclass(frozen=True)
class Episode:
    """An episode that ended with an evaluated plan.

    Attributes:
        evaluations: how many plans had been evaluated by then, this one among them.
        accuracy: of this plan on the search split, 0 to 1.
        best_accuracy: of the best plan so far, 0 to 1; None where none met the target yet.
        reduction: of this plan, 0 to 1.
    """

    evaluations: int
    accuracy: float
    best_accuracy: float | None
    reduction: float


@dataclass(frozen=True)
class Finetuning:
    """A finished fine-tuning.

    Attributes:
        options: what it was asked to do.
        results: its figures, as `compress_env.finetune` returns them.
        curve: its looks at the search split, first to last.
        command: the command line that made it, or empty.
    """

    options: Mapping[str, Any]
    results: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]
    command: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        config: its options, as its `config.json` has them.
        report: its `report.json`.
        episodes: those with an evaluated plan.
        graph: layer graph of the dense network; the weights in it are of no meaning.
        plan: the best plan.
        finetuning: of the best plan; None where there is none.
        uniform_finetuning: of uniform bits, the plan to compare with; None where there is none.
        is_finetuning_unfinished: whether one was begun that has not ended.
        latencies: contents of every `latency.json` that has rows, by its path in the folder.
        files: bytes of the networks kept in the folder, by their path in it.
    """

    path: Path
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    episodes: Sequence[Episode]
    graph: LayerGraph
    plan: CompressionPlan
    finetuning: Finetuning | None
    uniform_finetuning: Finetuning | None
    is_finetuning_unfinished: bool
    latencies: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, int]

    @property
    def name(self) -> str:
        """What the run is called: the name of its folder."""
        return self.path.resolve().name


def read_run(path: Path, data_root: str | None = None) -> Run:
    """Read a finished run. Nothing is evaluated.

    Args:
        path: the run folder.
        data_root: folder of the data set. It is looked at only for runs whose report does not say
            what shape the images have.

    Raises:
        ValueError: there is no run, it has not ended, or a file in it is damaged; names the run.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"run: there is no run in {path} (no {folder.config.name})")
    config, report = read_json(folder.config), folder.read_report()
    if report is None:
        raise ValueError(
            f"run: {path} has not ended yet (no {folder.report.name}); go on with it by its "
            "command and --resume"
        )
    _check(report, folder.report, numbers=_NUMBERS, words=_WORDS)
    graph = _layer_graph(folder, config, report, data_root)
    try:
        plan = CompressionPlan.load(folder.best_plan, graph, report["network"])
    except (ValueError, OSError) as error:
        raise ValueError(f"run: {folder.best_plan} cannot be read: {error}") from error
    finetuned = folder.path / FINETUNED_FOLDER
    return Run(
        path=folder.path,
        config=config,
        report=report,
        episodes=_read_episodes(folder.episodes),
        graph=graph,
        plan=plan,
        finetuning=_read_finetuning(finetuned),
        uniform_finetuning=_read_finetuning(folder.path / UNIFORM_FOLDER),
        is_finetuning_unfinished=(finetuned / CHECKPOINT_FILE).is_file(),
        latencies=_read_latencies(folder.path),
        files={
            str(file.relative_to(folder.path)): file.stat().st_size
            for pattern in _SHIPPED
            for file in _at_hand(folder.path, pattern)
        },
    )


def _layer_graph(
    folder: RunFolder, config: Mapping[str, Any], report: Mapping[str, Any], data_root: str | None
) -> LayerGraph:
    """The dense network's graph, built without its weights and, where possible, without data."""
    try:
        if "input_shape" in report:
            shape, classes = report["input_shape"], int(report["num_classes"])
        else:
            root = config.get("data_root") if data_root is None else data_root
            splits = load_splits(
                report["dataset"], root, config.get("split_seed", 0), config.get("image_size")
            )
            height, width = splits.search.images.shape[-2:]
            shape, classes = (3, height, width), splits.num_classes
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run has given the same ones
            return trace(build_network(report["network"], classes), shape)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"run: {folder.path}: its network cannot be built: {error}") from error


def _read_episodes(path: Path) -> list[Episode]:
    try:
        with path.open(newline="") as file:
            return [
                Episode(
                    int(row["evaluations"]),
                    float(row["accuracy"]),
                    float(row["best_accuracy"]) if row["best_accuracy"] else None,
                    float(row["reduction"]),
                )
                for row in csv.DictReader(file)
                if row["accuracy"] != ""
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"run: {path} cannot be read: {error!r}") from error


def _read_finetuning(folder: Path) -> Finetuning | None:
    path, network = folder / CURVE_FILE, folder / COMPRESSED_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    options, results, curve = (data.get(name) for name in ("options", "results", "curve"))
    if not isinstance(options, dict) or not isinstance(results, dict) or not curve:
        raise ValueError(f"run: {path} is not the record of a fine-tuning")
    _check(results, path, numbers=("search_accuracy", "test_accuracy", "steps", "wall_seconds"))
    for look in curve:
        _check(look, path, numbers=("step", "search_accuracy"))
    try:
        command = read_metadata(network).get("command", "") if network.is_file() else ""
    except ValueError as error:
        raise ValueError(f"run: {network} cannot be read: {error}") from error
    return Finetuning(options, results, curve, command)


def _read_latencies(folder: Path) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in _at_hand(folder, "latency.json"):
        data = read_json(path)
        rows = data.get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"run: {path} must hold rows")
        if rows:
            found[str(path.relative_to(folder))] = data
    return found


def _at_hand(folder: Path, pattern: str) -> list[Path]:
    """Files in the folder and in the folders in it."""
    return [*sorted(folder.glob(pattern)), *sorted(folder.glob(f"*/{pattern}"))]


def _check(data: Any, path: Path, numbers: Sequence[str] = (), words: Sequence[str] = ()) -> None:
    """See that entries are there and of the right type."""
    if not isinstance(data, dict):
        raise ValueError(f"run: {path} must hold objects, not {json.dumps(data)[:40]}")
    for name in numbers:
        value = data.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise ValueError(f"run: {path}: '{name}' must be a number, not {value!r}")
    for name in words:
        if not isinstance(data.get(name), str):
            raise ValueError(f"run: {path}: '{name}' must be a word, not {data.get(name)!r}")
