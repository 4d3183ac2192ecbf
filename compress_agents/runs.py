"""The run folder: its files, and who may write them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress_agents.command_line.options import option_name
from compress_agents.config import SearchConfig, from_json, to_json

__all__ = ["RunFolder", "read_json", "write_atomically", "write_json"]


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
    | ``agent.zip`` | the agent (Stable-Baselines3), of PPO with the state of the run |
    | ``evaluations.jsonl`` | all plans that were evaluated; runs other than PPO's resume from it |
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
        self.evaluations = self.path / "evaluations.jsonl"
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
