"""The run folder: its files, who may write them, and what is on record of a search."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress_agents.config import SearchConfig, from_json, option_name, to_json
from compress_env.plan import CompressionPlan

__all__ = ["Record", "RunFolder", "write_atomically", "write_json"]

COLUMNS = (
    "episode",
    "env_steps",
    "evaluations",
    "reward",
    "accuracy",
    "reduction",
    "best_accuracy",
    "wall_seconds",
)
"""Columns of ``episodes.csv``; the accuracy is empty for an episode that missed the target."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is whole, old or new, whenever the process is killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


class RunFolder:
    """A folder that holds one run.

    | file | content |
    |---|---|
    | ``config.json`` | the options |
    | ``agent.zip`` | the agent (Stable-Baselines3) with the state of the run |
    | ``state.json`` | the state of a run without an agent |
    | ``episodes.csv`` | a line per episode |
    | ``best_plan.json`` | the best plan so far |
    | ``tensorboard/`` | logs |
    | ``report.json``, ``figures/`` | written at the end |

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.json"
        self.agent = self.path / "agent.zip"
        self.state = self.path / "state.json"
        self.episodes = self.path / "episodes.csv"
        self.best_plan = self.path / "best_plan.json"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report.json"
        self.figures = self.path / "figures"
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def check(self, config: SearchConfig, resume: bool) -> None:
        """See that a run with these options may use the folder; nothing is written.

        Raises:
            ValueError: it holds another run, or this one although ``resume`` is not set.
        """
        if not self.config.exists():
            if self.path.exists() and (not self.path.is_dir() or self.agent.exists()):
                raise ValueError(f"run_dir: {self.path} is no run folder; name another --run-dir")
            if resume:
                raise ValueError(f"resume: there is no run in {self.path}")
            return
        differences = _differences(to_json(self.read_config()), config)
        if differences:
            raise ValueError(
                f"run_dir: {self.path} holds another run ({'; '.join(differences[:3])}); "
                "name another --run-dir, or delete it"
            )
        if not resume:
            raise ValueError(
                f"run_dir: {self.path} holds this run already; add --resume to go on with it, or "
                "name another --run-dir"
            )

    def claim(self, config: SearchConfig) -> None:
        """Make the folder, keep other processes out, and write ``config.json``.

        Raises:
            ValueError: another process is at work in it.
        """
        self.figures.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"run_dir: another process is at work in {self.path}") from error
        write_json(self.config, to_json(config))

    def release(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def read_config(self) -> SearchConfig:
        """The options of the run.

        Raises:
            ValueError: the folder holds no run.
        """
        return from_json_file(self.config)

    def read_report(self) -> dict[str, Any] | None:
        """The report, or None where the run has not ended."""
        return read_json(self.report) if self.report.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: there is no such file, or something else in it.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"run: {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"run: {path} must hold a JSON object")
    return data


def from_json_file(path: Path) -> SearchConfig:
    """The options in a ``config.json``.

    Raises:
        ValueError: there is no such file, or it is not one.
    """
    if not path.is_file():
        raise ValueError(f"run: there is no run in {path.parent} (no {path.name})")
    data = read_json(path)
    try:
        return from_json(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: {path} is not the config of a run: {error}") from error


def _differences(stored: Mapping[str, Any], config: SearchConfig) -> list[str]:
    own = to_json(config)
    if stored["command"] != own["command"]:
        return [f"a {stored['command']}"]
    return [
        f"--{option_name(entry)} is {stored[entry.name]} there and {own[entry.name]} here"
        for entry in fields(config)
        if not entry.metadata["movable"] and stored[entry.name] != own[entry.name]
    ]


@dataclass(frozen=True)
class Best:
    """The best episode: its plan and what it achieved on the search split."""

    plan: CompressionPlan
    reward: float
    accuracy: float
    reduction: float
    episode: int

    def to_json(self) -> dict[str, Any]:
        """The plan, with its figures as further entries."""
        return {
            **self.plan.to_json(),
            "search_accuracy": self.accuracy,
            "search_reward": self.reward,
            "reduction": self.reduction,
            "episode": self.episode,
        }


class Record:
    """Counts, episodes and the best plan of a search, kept in the run folder.

    Rows are appended to ``episodes.csv`` by `flush`; a resumed run first cuts off those that were
    written after the state it goes on from.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.env_steps = 0
        self.evaluations = 0
        self.wall_seconds = 0.0
        self.rows: list[dict[str, Any]] = []
        self.best: Best | None = None
        self._flushed = 0

    @property
    def episodes(self) -> int:
        """Episodes that have ended."""
        return len(self.rows)

    def step(self) -> None:
        """Count a step of the environment."""
        self.env_steps += 1

    def end_episode(self, reward: float, info: Mapping[str, Any]) -> None:
        """Note an episode. The best is the first one with the highest reward that has a plan.

        Args:
            reward: sum of its rewards.
            info: the environment's at its last step.
        """
        accuracy = info.get("accuracy")
        number = self.episodes + 1
        if accuracy is not None:
            self.evaluations += 1
            if self.best is None or reward > self.best.reward:
                self.best = Best(info["plan"], reward, accuracy, info["reduction"], number)
        row = {
            "episode": number,
            "env_steps": self.env_steps,
            "evaluations": self.evaluations,
            "reward": reward,
            "accuracy": "" if accuracy is None else accuracy,
            "reduction": info["reduction"],
            "best_accuracy": "" if self.best is None else self.best.accuracy,
            "wall_seconds": round(self.wall_seconds, 3),
        }
        self.rows.append(row)

    def flush(self) -> None:
        """Write what is new to ``episodes.csv`` and ``best_plan.json``."""
        if self._flushed == 0:
            write_atomically(self.folder.episodes, _csv_lines(self.rows, header=True))
        else:
            with self.folder.episodes.open("ab") as file:
                file.write(_csv_lines(self.rows[self._flushed :]))
        self._flushed = len(self.rows)
        if self.best is not None:
            write_json(self.folder.best_plan, self.best.to_json())

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe counts and best plan; the rows are in ``episodes.csv``."""
        return {
            "episodes": self.episodes,
            "env_steps": self.env_steps,
            "evaluations": self.evaluations,
            "wall_seconds": self.wall_seconds,
            "best": None if self.best is None else self.best.to_json(),
        }

    def load_state_dict(self, state: Mapping[str, Any], graph: Any) -> None:
        """Go back to where ``state_dict`` was called.

        Args:
            state: what it returned.
            graph: layer graph of the network.

        Raises:
            ValueError: ``episodes.csv`` has fewer lines than the state knows of.
        """
        with self.folder.episodes.open(newline="") as file:
            rows = [
                {name: _number(text) for name, text in row.items()}
                for _, row in zip(range(state["episodes"]), csv.DictReader(file), strict=False)
            ]
        if len(rows) < state["episodes"]:
            raise ValueError(f"resume: {self.folder.episodes} has lost lines")
        self.rows = rows
        self.env_steps, self.evaluations = state["env_steps"], state["evaluations"]
        self.wall_seconds = state["wall_seconds"]
        best = state["best"]
        self.best = best and Best(
            CompressionPlan.from_json(best, graph),
            best["search_reward"],
            best["search_accuracy"],
            best["reduction"],
            best["episode"],
        )
        self._flushed = 0
        self.flush()


def _number(text: str) -> Any:
    if text == "":
        return ""
    return int(text) if text.isdigit() else float(text)


def _csv_lines(rows: list[dict[str, Any]], header: bool = False) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()
