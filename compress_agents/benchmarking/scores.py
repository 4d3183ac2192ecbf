"""Results of benchmarks, read from their files and put in order by task and agent."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress_agents.benchmarking.aggregates import Array
from compress_agents.benchmarking.entries import read_entry
from compress_agents.benchmarking.results import COLUMNS, CURVE_COLUMNS, read_result
from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder

__all__ = ["SCORES", "Scores", "Task", "curve_name", "read_scores"]

SCORES = {
    "search_accuracy": "search_accuracy",
    "test_accuracy": "search_accuracy",
    "best_reward": "reward",
}
"""What agents can be ranked by, and the column of ``curves.csv`` that belongs to it."""

_TEXT = {"env_id", "network", "dataset", "metric", "agent", "run", "command", "versions"}
_WHOLE = {"seed", "budget", "evaluations", "num_search_images", "num_test_images"}
_SAME_IN_A_TASK = ("dense_search_accuracy", "uniform_search_accuracy")
_TOLERANCE = 0.005


@dataclass(frozen=True, order=True)
class Task:
    """What runs must have in common to be compared."""

    env_id: str
    network: str
    dataset: str
    metric: str
    budget: int
    num_search_images: int
    target_reduction: float

    @property
    def title(self) -> str:
        """For people."""
        return (
            f"{self.network} on {self.dataset}, {self.metric} reduced by "
            f"{self.target_reduction:.2%}, {self.budget} evaluations"
        )

    @property
    def without_target(self) -> Task:
        """The same for all tasks that differ in the reduction only."""
        return Task(**{**vars(self), "target_reduction": 0.0})


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """Results of runs.

    Attributes:
        rows: lines of ``results.csv``, numbers as numbers.
        points: lines of ``curves.csv`` by task, agent and seed.
    """

    rows: Sequence[Row]
    points: Mapping[tuple[Task, str, int], Sequence[Row]]

    @property
    def tasks(self) -> list[Task]:
        """All tasks, in order."""
        return sorted({task_of(row) for row in self.rows})

    def agents(self, task: Task) -> list[str]:
        """The agents that have a run of a task."""
        return list(dict.fromkeys(row["agent"] for row in self.runs(task)))

    def runs(self, task: Task, agent: str | None = None) -> list[Row]:
        """The lines of a task, or of one agent in it."""
        return [row for row in self.rows if task_of(row) == task and agent in (None, row["agent"])]

    def column(self, task: Task, agent: str, name: str) -> Array:
        """A column for the runs of an agent in a task, (runs,)."""
        return np.array([row[name] for row in self.runs(task, agent)], dtype=np.float64)

    def curves(self, task: Task, agent: str, name: str) -> Array:
        """Best plan so far after every evaluation, NaN before there is one.

        A search that ended early stays where it was.

        Args:
            task: the task.
            agent: the agent.
            name: ``search_accuracy`` or ``reward``.

        Returns:
            (runs with a curve, budget).
        """
        seeds = sorted(seed for t, a, seed in self.points if (t, a) == (task, agent))
        curves = np.full((len(seeds), task.budget), np.nan)
        for curve, seed in zip(curves, seeds, strict=True):
            for point in self.points[task, agent, seed]:
                curve[point["evaluations"] - 1 :] = point[name]
        return curves


def curve_name(score: str) -> str:
    """The column of the curves that belongs to a score.

    Raises:
        ValueError: there is no such score.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, not '{score}'")
    return SCORES[score]


def task_of(row: Row) -> Task:
    """The task of a line."""
    return Task(**{name: row[name] for name in Task.__dataclass_fields__})


def read_scores(sources: Iterable[Path]) -> Scores:
    """Read results.

    A run that several sources hold counts once.

    Args:
        sources: folders of benchmarks, run folders, files of entries (which have no curve).

    Raises:
        ValueError: one of them is none, or runs of one task differ in what they start from.
    """
    rows: dict[tuple[Task, str, int], Row] = {}
    points: dict[tuple[Task, str, int], Sequence[Row]] = {}
    for source in sources:
        for row, curve in _read_source(source):
            key = (task_of(row), row["agent"], row["seed"])
            rows.setdefault(key, row)
            if curve:
                points.setdefault(key, curve)
    if not rows:
        raise ValueError("folder: no run is finished yet")
    scores = Scores(list(rows.values()), points)
    for task in scores.tasks:
        _check_same_start(task, scores.runs(task))
    return scores


def _read_source(source: Path) -> Iterable[tuple[Row, Sequence[Row]]]:
    if source.is_file():
        return [(_entry_row(source), [])]
    run = RunFolder(source)
    if run.config.exists():
        config = run.read_config()
        assert isinstance(config, TrainingConfig)
        result = read_result(run, config)
        return [] if result is None else [(result.row, result.curve)]
    curves: dict[str, list[Row]] = {}
    for point in read_csv(source / "curves.csv", CURVE_COLUMNS):
        curves.setdefault(point["run"], []).append(point)
    rows = read_csv(source / "results.csv", COLUMNS)
    return [(row, curves.get(row["run"], [])) for row in rows]


def _entry_row(path: Path) -> Row:
    """An entry as a line of results.

    Raises:
        ValueError: it is none, or claims too little to be compared.
    """
    entry = read_entry(path)
    figures = {**entry.figures, "dense_test_accuracy": entry.figures.get("baseline_test_accuracy")}
    row = {**vars(entry), "env_id": entry.config().env_id, "run": path.name, **figures}
    missing = [name for name in COLUMNS if row.get(name) is None]
    if missing:
        raise ValueError(f"entry: {path} lacks figures.{missing[0]}, which comparing takes")
    return {name: row[name] for name in COLUMNS}


def _check_same_start(task: Task, rows: Sequence[Row]) -> None:
    for name in _SAME_IN_A_TASK:
        values = [row[name] for row in rows]
        if max(values) - min(values) > _TOLERANCE:
            raise ValueError(
                f"folder: runs of {task.title} cannot be compared: {name} is {min(values):.4f} "
                f"in one and {max(values):.4f} in another, so options or weights differ"
            )


def read_csv(path: Path, columns: Sequence[str]) -> list[Row]:
    """Lines of a CSV file, numbers as numbers.

    Raises:
        ValueError: there is no such file, or it lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"folder: {path.parent} is not the folder of a benchmark (no {path.name})")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"folder: {path} has no column {missing[0]}")
        try:
            return [{name: _value(name, row[name]) for name in columns} for row in reader]
        except (TypeError, ValueError) as error:
            raise ValueError(f"folder: {path} is not readable: {error}") from error


def _value(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    return int(text) if name in _WHOLE else float(text)
