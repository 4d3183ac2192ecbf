"""A run: from options to a run folder with the best plan found and a report of it."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from compress_agents.agents import Agent, build_agent
from compress_agents.config import TrainingConfig
from compress_agents.environments import make_environment
from compress_agents.measuring import BudgetSpent, EvaluationLog, MeasuredEnv
from compress_agents.records import Record, is_finished
from compress_agents.reporting import finish
from compress_agents.runs import RunFolder

__all__ = ["Run", "SearchRun"]

_FLUSH_EPISODES, _FLUSH_SECONDS = 25, 10.0


class Run(ABC):
    """A run of an agent, new or resumed.

    The constructor does all that can fail for the options' sake; nothing is written before it has
    succeeded.

    Args:
        config: the options.
        run_dir: the run folder; None: `TrainingConfig.default_run_dir`.
        resume: go on with the run in the folder. The result is that of a run that was never
            interrupted.
        agent: the agent, if not the one that the options name.

    Raises:
        ValueError: an option is not allowed, or the folder holds another run.
        OSError: a file cannot be read or written.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run_dir: str | None = None,
        resume: bool = False,
        agent: Agent | None = None,
    ) -> None:
        self.config = config
        self.agent = agent or build_agent(config.agent, config.settings())
        self.folder = RunFolder(run_dir or config.default_run_dir())
        self.folder.check(config, resume)
        self.needs = dict(getattr(self.agent, "environment", {}))
        self.env = make_environment(config, self.needs)
        check = getattr(self.agent, "check", None)
        if check is not None:
            check(self.env)
        self.record = Record(self.folder)
        self.folder.claim(config)

    def run(self, show: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
        """Search to the end and write the report.

        Args:
            show: called after every episode, for a progress bar.

        Returns:
            The report.
        """
        try:
            done = self.folder.read_report()
            if done is not None and self._is_done(done):
                return done
            self.folder.report.unlink(missing_ok=True)
            show(self.record)
            self._search(show)
            self.record.flush()
            show(self.record)
            return finish(self.config, self.folder, self.env, self.record)
        finally:
            self.close()
            self.folder.release()

    @abstractmethod
    def _is_done(self, report: dict[str, Any]) -> bool:
        """Whether a report says all that this run would say."""

    @abstractmethod
    def _search(self, show: Callable[[Record], None]) -> None:
        """Spend what is left of the budget."""

    def close(self) -> None:
        """Let go of what the constructor made."""
        self.env.close()


class SearchRun(Run):
    """A run of any agent; it is resumed without the agent's help.

    Every evaluated plan is kept in the run folder at once. A resumed run starts the agent again
    from its seed and answers for known plans without evaluating them, so it comes to where the
    earlier one was, and goes on.
    """

    def _is_done(self, report: dict[str, Any]) -> bool:
        return bool(report["command"] == self.config.command())

    def _search(self, show: Callable[[Record], None]) -> None:
        flushed = time.perf_counter()

        def on_episode() -> None:
            nonlocal flushed
            late = time.perf_counter() - flushed > _FLUSH_SECONDS
            if late or self.record.episodes % _FLUSH_EPISODES == 0:
                self.record.flush()
                flushed = time.perf_counter()
            show(self.record)

        env = MeasuredEnv(
            self.env,
            self.record,
            lambda: is_finished(self.config, self.record),
            EvaluationLog(self.folder.evaluations),
            on_episode,
        )
        try:
            seed_everything(self.config.seed)
            self.agent.search(env, self.config.seed, self.config.evaluations)
        except BudgetSpent:
            pass
        finally:
            env.close_measuring()
        save = getattr(self.agent, "save", None)
        if save is not None:
            save(self.folder.agent)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
