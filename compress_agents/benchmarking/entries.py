"""Entries of a benchmark: a plan with the figures that are claimed for it, which anybody can check.

``docs/benchmark.md`` describes the file.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from compress_agents.benchmarking.benchmark_options import agent_label
from compress_agents.config import SearchConfig, TrainingConfig, to_json
from compress_agents.environments import make_environment
from compress_agents.reporting import measure
from compress_agents.runs import RunFolder, read_json
from compress_env.calibration import dtype_name
from compress_env.plan import CompressionPlan

__all__ = ["FIGURES", "Entry", "entry_of_plan", "entry_of_run", "read_entry", "verify_entry"]

FORMAT = "compress-agents entry"
VERSION = 1

FIGURES = (
    "network", "dataset", "metric", "target_reduction", "reduction",
    "macs", "bops", "params", "size_bits",
    "dense_macs", "dense_bops", "dense_params", "dense_size_bits",
    "search_accuracy", "test_accuracy", "dense_search_accuracy", "baseline_test_accuracy",
    "uniform_search_accuracy", "uniform_test_accuracy", "uniform_reduction",
    "num_search_images", "num_test_images", "first_last_bits", "latency_ms", "dense_latency_ms",
)  # fmt: skip
"""What can be claimed of a plan: all that `compress_agents.reporting.measure` gives."""

_CLAIMED_AT_LEAST = ("reduction", "search_accuracy", "test_accuracy")
_ROUNDING = 1e-9

_NOT_OF_THE_TASK = {"seed", "data_root", "device"}
TASK_OPTIONS = tuple(e.name for e in fields(SearchConfig) if e.name not in _NOT_OF_THE_TASK)
"""Options of `compress-agents train` that make the task."""


@dataclass(frozen=True)
class Entry:
    """A plan and what is claimed for it.

    Attributes:
        agent: what has found the plan.
        seed: of its search.
        command: how to find it again.
        evaluations: that the search took.
        budget: that it was allowed.
        task: some of `TASK_OPTIONS`; the others have their defaults.
        figures: some of `FIGURES`.
        plan: as `CompressionPlan.to_json` has it.
        threads: on which the figures were measured; sums of floats depend on it.
        best_reward: reward of the plan, NaN if not told.
        late_accuracy: mean search accuracy of the last 100 plans tried, likewise.
        wall_seconds: of the search, likewise.
        versions: of the packages.
    """

    agent: str
    seed: int
    command: str
    evaluations: int
    budget: int
    task: Mapping[str, Any]
    figures: Mapping[str, Any]
    plan: Mapping[str, Any]
    threads: int = 1
    best_reward: float = math.nan
    late_accuracy: float = math.nan
    wall_seconds: float = math.nan
    versions: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-safe; what is not known is left out."""
        known = {
            name: value
            for name, value in vars(self).items()
            if not (isinstance(value, float) and math.isnan(value))
        }
        return {"format": FORMAT, "version": VERSION, **known}

    def config(
        self, data_root: str | None = None, weights: str | None = None, device: str = "cpu"
    ) -> TrainingConfig:
        """The task as options.

        Args:
            data_root: folder of the data set, which is not part of an entry.
            weights: file of the dense weights, if it is not where the entry says.
            device: where to run.

        Raises:
            ValueError: an option has a value that is not allowed.
        """
        task: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in self.task.items()
        }
        if weights is not None:
            task["weights"] = weights
        # The agent has no part in what a plan is worth, and need not be installed.
        return TrainingConfig(**task, agent="uniform", data_root=data_root, device=device)


def entry_of_run(folder: RunFolder, config: TrainingConfig, row: Mapping[str, Any]) -> Entry:
    """The entry of a finished run.

    Args:
        folder: the run folder.
        config: its options.
        row: its line of results.
    """
    report = folder.read_report()
    assert report is not None
    options = to_json(config)
    plan = read_json(folder.best_plan)
    return Entry(
        agent=agent_label(config.agent, config.agent_options),
        seed=config.seed,
        command=report["command"],
        evaluations=report["evaluations"],
        budget=config.evaluations,
        task=_task(options, report["calibration_dtype"]),
        figures={name: report[name] for name in FIGURES if name in report},
        plan={name: plan[name] for name in ("format", "network", "groups", "layers")},
        threads=report["threads"],
        best_reward=report["best_reward"],
        late_accuracy=row["late_accuracy"],
        wall_seconds=report["wall_seconds"],
        versions=row["versions"],
    )


def entry_of_plan(
    plan: CompressionPlan, config: TrainingConfig, agent: str, command: str, evaluations: int
) -> Entry:
    """The entry of a plan that was found in any other way; its figures are measured.

    Args:
        plan: for the network of the task.
        config: options that make the task, and the seed; its agent plays no part.
        agent: what the one that found the plan is called.
        command: how to find it again.
        evaluations: that it took.

    Raises:
        ValueError: an option is not allowed.
    """
    env = make_environment(config)
    measured = measure(env, plan)
    options = to_json(config)
    return Entry(
        agent=agent,
        seed=config.seed,
        command=command,
        evaluations=evaluations,
        budget=evaluations,
        task=_task(options, dtype_name(env.task.calibration_dtype)),
        figures={name: measured[name] for name in FIGURES if name in measured},
        plan=plan.to_json(),
        threads=torch.get_num_threads(),
    )


def _task(options: Mapping[str, Any], calibration_dtype: str) -> dict[str, Any]:
    """The options that make the task, with what the machine chose: another may choose otherwise."""
    return {
        **{name: options[name] for name in TASK_OPTIONS},
        "calibration_dtype": calibration_dtype,
    }


def read_entry(path: Path) -> Entry:
    """Read an entry and check that it is one.

    Raises:
        ValueError: it is none; the message says what is wrong.
    """
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"entry{str(error).removeprefix('run')}") from error
    if data.pop("format", None) != FORMAT or data.pop("version", None) != VERSION:
        raise ValueError(f"entry: {path} must have format '{FORMAT}' and version {VERSION}")
    hints = get_type_hints(Entry)
    data.setdefault("budget", data.get("evaluations"))
    for entry in fields(Entry):
        if entry.name in data:
            _check_type(entry.name, data[entry.name], hints[entry.name])
        elif entry.default is MISSING:
            raise ValueError(f"entry: {path} has no '{entry.name}'")
    _check_names("", data, hints)
    _check_names("task.", data["task"], TASK_OPTIONS)
    _check_names("figures.", data["figures"], FIGURES)
    options = get_type_hints(SearchConfig)
    for name, value in data["task"].items():
        _check_type(f"task.{name}", value, options[name])
    for name in _CLAIMED_AT_LEAST:
        if name not in data["figures"]:
            raise ValueError(f"entry: {path} has no 'figures.{name}'")
    return Entry(**data)


def _check_names(where: str, data: Mapping[str, Any], known: Any) -> None:
    for name in data:
        if name not in known:
            raise ValueError(f"entry: there is no '{where}{name}'; known are {', '.join(known)}")


def _check_type(name: str, value: Any, hint: Any) -> None:
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not any(_is(value, kind) for kind in kinds):
        raise ValueError(f"entry: '{name}' must be {_words(kinds)}, not {value!r}")


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is tuple:
        return isinstance(value, list) and all(_is(one, int) for one in value)
    if origin is not None:
        return isinstance(value, dict)
    if kind in (int, float):
        allowed = int if kind is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kinds: Any) -> str:
    names = {tuple: "a list of whole numbers", int: "a whole number", float: "a number",
             str: "a word", type(None): "null"}  # fmt: skip
    return " or ".join(names.get(get_origin(kind) or kind, "an object") for kind in kinds)


def verify_entry(
    entry: Entry,
    data_root: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    tolerance: float = 0.0,
) -> tuple[dict[str, Any], list[str]]:
    """Rebuild the network of an entry's plan and measure it.

    Args:
        entry: the entry.
        data_root: folder of the data set.
        weights: file of the dense weights.
        device: where to run.
        tolerance: by how much an accuracy may differ, 0 to 1.

    Returns:
        The figures, and what differs from the claims, in words.

    Raises:
        ValueError: the task is not allowed, or the plan is none for its network.
        OSError: a file cannot be read.
    """
    torch.set_num_threads(max(1, entry.threads))
    config = entry.config(data_root, weights, device)
    env = make_environment(config)
    plan = CompressionPlan.from_json(entry.plan, env.task.graph, env.task.network_name)
    measured = measure(env, plan)
    problems = [
        f"{name} is {measured.get(name)}, and {claimed} is claimed"
        for name, claimed in entry.figures.items()
        if not _agree(measured.get(name), claimed, tolerance if "accuracy" in name else 0.0)
    ]
    if not env.decoder.cost_of_plan(plan) <= env.decoder.budget * (1 + _ROUNDING):
        problems.append(
            f"reduction is {measured['reduction']}, below the target of {env.target_reduction}"
        )
    return measured, problems


def _agree(measured: Any, claimed: Any, tolerance: float) -> bool:
    numbers = [_is(value, float) for value in (measured, claimed)]
    if all(numbers):
        return math.isclose(measured, claimed, rel_tol=_ROUNDING, abs_tol=tolerance)
    return bool(measured == claimed) and not any(numbers)
