"""What is on record of a search: its counts, its episodes and the best plan so far."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder, write_atomically, write_json
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan

__all__ = ["COLUMNS", "Best", "Record", "is_finished", "is_solved"]

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
"""Columns of ``episodes.csv``; the accuracy is empty for an episode that was not evaluated."""


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
            # An agent may also measure plans that cost too much, to learn from them.
            if info["target_met"] and (self.best is None or reward > self.best.reward):
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

    def load_state_dict(self, state: Mapping[str, Any], graph: LayerGraph) -> None:
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


def is_finished(config: TrainingConfig, record: Record, spare: int = 0) -> bool:
    """Whether a limit of the options has been reached.

    Args:
        config: the options.
        record: of the search.
        spare: evaluations to leave.
    """
    return (
        record.episodes + spare >= config.evaluations
        or (config.total_timesteps is not None and record.env_steps >= config.total_timesteps)
        or (config.max_episodes is not None and record.episodes >= config.max_episodes)
        or is_solved(config, record)
    )


def is_solved(config: TrainingConfig, record: Record) -> bool:
    """Whether a plan has been found that is good enough."""
    best = record.best
    return (
        config.solve_reward is not None and best is not None and best.reward >= config.solve_reward
    )
