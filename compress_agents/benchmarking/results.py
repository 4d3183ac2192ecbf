"""What is kept of a benchmark's runs: a line of results each, and curves of the best so far."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_agents.benchmarking.benchmark_options import agent_label
from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder, write_atomically
from compress_agents.transfer_config import TransferConfig

__all__ = ["COLUMNS", "CURVE_COLUMNS", "Result", "read_result", "write_csv"]

LATE = 100
"""`late_accuracy` is the mean over so many plans, the last ones tried."""

_FROM_REPORT = {
    "network": "network",
    "dataset": "dataset",
    "metric": "metric",
    "evaluations": "evaluations",
    "reduction": "reduction",
    "search_accuracy": "search_accuracy",
    "test_accuracy": "test_accuracy",
    "dense_search_accuracy": "dense_search_accuracy",
    "dense_test_accuracy": "baseline_test_accuracy",
    "uniform_search_accuracy": "uniform_search_accuracy",
    "uniform_test_accuracy": "uniform_test_accuracy",
    "uniform_reduction": "uniform_reduction",
    "num_search_images": "num_search_images",
    "num_test_images": "num_test_images",
    "best_reward": "best_reward",
    "wall_seconds": "wall_seconds",
    "command": "command",
}

COLUMNS = (
    "env_id", "network", "dataset", "metric", "target_reduction", "agent", "seed", "budget",
    "evaluations", "reduction", "search_accuracy", "test_accuracy",
    "dense_search_accuracy", "dense_test_accuracy",
    "uniform_search_accuracy", "uniform_test_accuracy", "uniform_reduction",
    "best_reward", "late_accuracy", "num_search_images", "num_test_images", "wall_seconds",
    "run", "command", "versions",
)  # fmt: skip
"""Columns of ``results.csv``. `budget` is what a search may evaluate, `evaluations` what it did."""

CURVE_COLUMNS = (
    "env_id", "network", "dataset", "metric", "target_reduction", "agent", "seed", "budget", "run",
    "evaluations", "search_accuracy", "reward",
)  # fmt: skip
"""Columns of ``curves.csv``: a line wherever the best plan so far is another, and the last one."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        row: by `COLUMNS`.
        curve: rows by `CURVE_COLUMNS`.
    """

    row: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]


def read_result(folder: RunFolder, config: TrainingConfig) -> Result | None:
    """The result of a run, or None where it has not ended.

    Args:
        folder: the run folder.
        config: its options.
    """
    report = folder.read_report()
    if report is None or report["command"] != config.command():
        return None
    with folder.episodes.open(newline="") as file:
        episodes = [row for row in csv.DictReader(file) if row["accuracy"]]
    late = [float(row["accuracy"]) for row in episodes[-LATE:]]
    row = {
        "env_id": config.env_id,
        "target_reduction": config.target_reduction,
        "agent": _label(config),
        "seed": config.seed,
        "budget": config.evaluations,
        "late_accuracy": statistics.fmean(late),
        "run": folder.path.name,
        "versions": " ".join(f"{name}={v}" for name, v in report["versions"].items()),
        **{name: report[source] for name, source in _FROM_REPORT.items()},
    }
    points = best_so_far(episodes, config.target_reduction)
    return Result(row, [{**row, **point} for point in points])


def _label(config: TrainingConfig) -> str:
    """The agent as tables name it."""
    label = agent_label(config.agent, config.agent_options)
    if not isinstance(config, TransferConfig):
        return label
    how = ", zero-shot" if config.zero_shot else ", frozen" if config.freeze_encoder else ""
    return f"{label} from {Path(config.source).name}{how}"


def best_so_far(
    episodes: Sequence[Mapping[str, str]], target_reduction: float
) -> list[dict[str, Any]]:
    """Where the best plan so far changes: evaluations, its accuracy, its reward.

    Args:
        episodes: lines of ``episodes.csv`` with an evaluation.
        target_reduction: plans that cost more are not among the best.
    """
    points: list[dict[str, Any]] = []
    best = float("-inf")
    for row in episodes:
        # A base plan may miss the target by rounding only.
        met = row["best_accuracy"] and float(row["reduction"]) >= target_reduction - 1e-9
        if met and float(row["reward"]) > best:
            best = float(row["reward"])
            points.append(
                {
                    "evaluations": int(row["evaluations"]),
                    "search_accuracy": float(row["best_accuracy"]),
                    "reward": best,
                }
            )
    last = int(episodes[-1]["evaluations"])
    if points and points[-1]["evaluations"] < last:
        points.append({**points[-1], "evaluations": last})
    return points


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows atomically; what is in no column is left out."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())
