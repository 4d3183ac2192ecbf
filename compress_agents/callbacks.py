"""What happens during a training: episodes are recorded, checkpoints written, limits kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from compress_agents.config import TrainingConfig
from compress_agents.records import Record, is_finished, is_solved

__all__ = ["LearningFinished", "RunCallback"]


class LearningFinished(Exception):
    """Ends the learning between two rollouts, for which Stable-Baselines3 has no other way."""


class RunCallback(BaseCallback):
    """Records episodes, and tells when the agent has been updated.

    Args:
        config: the options, for the limits.
        record: what to record in.
        on_episode: called after every step that ended an episode.
        on_update: called after every update of the agent, and at the end.
    """

    def __init__(
        self,
        config: TrainingConfig,
        record: Record,
        on_episode: Callable[[], None],
        on_update: Callable[[], None],
    ) -> None:
        super().__init__()
        self.config, self.record = config, record
        self._on_episode, self._on_update = on_episode, on_update
        self.open_actions: list[list[np.ndarray]] = []
        """For every environment the actions of the episode that has not ended."""
        self.open_rewards: list[float] = []
        self._seconds_before = record.wall_seconds
        self._started = time.perf_counter()
        self._updated = False

    def _on_training_start(self) -> None:
        if not self.open_actions:
            self.open_actions = [[] for _ in range(self.training_env.num_envs)]
            self.open_rewards = [0.0] * self.training_env.num_envs

    def _on_rollout_start(self) -> None:
        # The agent is updated between two rollouts, and Stable-Baselines3 has no call for that.
        if self._updated:
            self._on_update()
            if self._is_finished():
                raise LearningFinished

    def _on_step(self) -> bool:
        self.record.wall_seconds = self._seconds_before + time.perf_counter() - self._started
        values: dict[str, Any] = self.locals
        for index, info in enumerate(values["infos"]):
            self.record.step()
            self.open_actions[index].append(values["clipped_actions"][index].copy())
            self.open_rewards[index] += float(values["rewards"][index])
            if values["dones"][index]:
                self.record.end_episode(self.open_rewards[index], info)
                self.open_actions[index], self.open_rewards[index] = [], 0.0
        if values["dones"].any():
            self._on_episode()
        # A rollout that is full is learned from, even if it is the last one.
        full = values["n_steps"] + 1 >= values["n_rollout_steps"]
        return not self._is_finished() or (full and not is_solved(self.config, self.record))

    def _is_finished(self) -> bool:
        # One evaluation is for the final action, and all environments act at once.
        return is_finished(self.config, self.record, self.training_env.num_envs)

    def _on_rollout_end(self) -> None:
        self._updated = True
        rows = self.record.rows[-self.locals["n_rollout_steps"] * self.training_env.num_envs :]
        accuracies = [row["accuracy"] for row in rows if row["accuracy"] != ""]
        if accuracies:
            self.logger.record("search/mean_accuracy", float(np.mean(accuracies)))
        if self.record.best is not None:
            self.logger.record("search/best_accuracy", self.record.best.accuracy)
            self.logger.record("search/best_reduction", self.record.best.reduction)
        self.logger.record("search/evaluations", self.record.evaluations)

    def _on_training_end(self) -> None:
        self._on_update()
