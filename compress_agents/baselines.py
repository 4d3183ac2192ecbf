"""Searches that learn nothing: what an agent has to beat at the same number of evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from compress_agents.config import BaselineConfig
from compress_agents.environments import make_environment
from compress_agents.records import Record
from compress_agents.reporting import finish
from compress_agents.runs import RunFolder, read_json, write_json

__all__ = ["Baseline", "baseline_action"]

_CHECKPOINT_INTERVAL = 25


def baseline_action(config: BaselineConfig, index: int, size: int) -> np.ndarray:
    """The action of an episode; it depends on nothing but the options and the episode's number.

    Args:
        config: the options.
        index: number of the episode, from 0.
        size: entries of an action.

    Returns:
        float32 (size,), in [-1, 1].
    """
    if config.method == "uniform":
        return np.zeros(size, np.float32)
    generator = np.random.default_rng([config.seed, index])
    if config.method == "random":
        return generator.uniform(-1.0, 1.0, size).astype(np.float32)
    normal = generator.normal(0.0, config.action_std, size)
    return np.clip(normal, -1.0, 1.0).astype(np.float32)


class Baseline:
    """A run of a baseline, new or resumed; see `compress_agents.training.Training`."""

    def __init__(
        self, config: BaselineConfig, run_dir: str | None = None, resume: bool = False
    ) -> None:
        self.config = config
        self.folder = RunFolder(run_dir or config.default_run_dir())
        self.folder.check(config, resume)
        self.env = make_environment(config)
        self.record = Record(self.folder)
        self.folder.claim(config)
        self.resumed = resume and self.folder.state.exists()
        if self.resumed:
            self.record.load_state_dict(read_json(self.folder.state), self.env.task.graph)

    def run(self, show: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
        """Evaluate what is left of the budget and write the report.

        Args:
            show: called after every episode, for a progress bar.

        Returns:
            The report.
        """
        try:
            done = self.folder.read_report()
            if done is not None and self.record.episodes >= self.config.budget:
                return done
            self.folder.report.unlink(missing_ok=True)
            show(self.record)
            self._search(show)
            return finish(self.config, self.folder, self.env, self.record)
        finally:
            self.folder.release()

    def _search(self, show: Callable[[Record], None]) -> None:
        size = int(np.prod(self.env.action_space.shape or ()))
        before, started = self.record.wall_seconds, time.perf_counter()
        for index in range(self.record.episodes, self.config.budget):
            self.env.reset()
            _, reward, _, _, info = self.env.step(baseline_action(self.config, index, size))
            self.record.wall_seconds = before + time.perf_counter() - started
            self.record.step()
            # Rounded as agents see it, so that ties are the same ties.
            self.record.end_episode(float(np.float32(reward)), info)
            show(self.record)
            if (index + 1) % _CHECKPOINT_INTERVAL == 0 or index + 1 == self.config.budget:
                self.record.flush()
                write_json(self.folder.state, self.record.state_dict())
