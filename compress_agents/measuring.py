"""How every agent is measured: an environment that counts, records, and ends at the budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from compress_agents.records import Record
from compress_env.env import Appraisal, JointPruneQuantEnv
from compress_env.plan import CompressionPlan

__all__ = ["BudgetSpent", "EvaluationLog", "MeasuredEnv", "Measurement", "unwrap"]


class BudgetSpent(BaseException):
    """Ends a search; the run catches it.

    Not an `Exception`, so that an agent which catches errors of its own does not go on for ever.
    """


@dataclass(frozen=True)
class Measurement:
    """What an evaluated plan achieved.

    Attributes:
        reward: as the environment pays it for a plan that meets the target.
        accuracy: on the search split, 0 to 1.
        reduction: in the environment's metric, 0 to 1.
        target_met: whether the plan may be a run's result.
    """

    reward: float
    accuracy: float
    reduction: float
    target_met: bool


@dataclass(frozen=True)
class _Entry:
    plan: str
    reward: float
    accuracy: float
    wall_seconds: float


class EvaluationLog:
    """Every plan that was evaluated, in a file: a line of JSON each, written at once.

    A resumed search runs again from its seed and is answered from here, so that no agent has to
    know how to save itself. A line that was only half written is forgotten.

    Args:
        path: the file; it is made by the first `add`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, _Entry] = {}
        if path.exists():
            self._load()

    def _load(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                entry = _Entry(**json.loads(line))
                self._entries[entry.plan] = entry
        except (ValueError, TypeError) as error:
            raise ValueError(f"resume: {self.path} is not readable: {error}") from error
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, plan: CompressionPlan) -> tuple[Appraisal, float] | None:
        """What a plan is worth and when that was found, in seconds; None: not known."""
        entry = self._entries.get(_name(plan))
        if entry is None:
            return None
        return Appraisal(entry.reward, entry.accuracy), entry.wall_seconds

    def add(self, plan: CompressionPlan, appraisal: Appraisal, wall_seconds: float) -> None:
        """Keep a plan."""
        entry = _Entry(_name(plan), appraisal.reward, appraisal.accuracy, round(wall_seconds, 3))
        with self.path.open("ab") as file:
            file.write((json.dumps(asdict(entry)) + "\n").encode())
        self._entries[entry.plan] = entry


def _name(plan: CompressionPlan) -> str:
    return hashlib.sha256(plan.key()).hexdigest()


class MeasuredEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The environment that agents search in.

    It is `JointPruneQuantEnv` and, besides, writes every episode to the record, has plans
    evaluated that were not made by actions, answers for known plans from a log, and raises
    `BudgetSpent` when an agent acts although there is nothing left to spend. Rewards are rounded
    to float32, as vectorised environments have them, so that ties are the same ties everywhere.

    Args:
        env: the environment.
        record: where episodes go.
        is_finished: whether the budget is spent.
        log: known plans; None: nothing is known, nothing kept.
        on_episode: called after every episode.
    """

    env: JointPruneQuantEnv

    def __init__(
        self,
        env: JointPruneQuantEnv,
        record: Record,
        is_finished: Callable[[], bool],
        log: EvaluationLog | None = None,
        on_episode: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(env)
        self.record, self.log = record, log
        self._is_finished, self._on_episode = is_finished, on_episode
        self._appraise = env.appraise
        env.appraise = self._answer
        self._total = 0.0
        self._last = time.perf_counter()

    def close_measuring(self) -> None:
        """Leave the environment as it was."""
        self.env.appraise = self._appraise

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._total = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step.

        Raises:
            BudgetSpent: there is nothing left.
        """
        self._check()
        observation, paid, terminated, truncated, info = super().step(action)
        reward = float(np.float32(paid))
        self._total += reward
        self.record.step()
        if terminated or truncated:
            self._end_episode(self._total, info)
        return observation, reward, terminated, truncated, info

    def measure(self, plan: CompressionPlan) -> Measurement:
        """Evaluate a plan, whatever it costs; this counts like an episode of one step.

        A plan that misses the target is recorded, but cannot be the best.

        Args:
            plan: for the network of the environment.

        Raises:
            BudgetSpent: there is nothing left.
        """
        self._check()
        decoder = self.env.decoder
        appraisal = self.env.appraise(plan)
        result = Measurement(
            reward=float(np.float32(appraisal.reward)),
            accuracy=appraisal.accuracy,
            reduction=decoder.reduction(plan),
            target_met=decoder.cost_of_plan(plan) <= decoder.budget,
        )
        self.record.step()
        self._end_episode(result.reward, {**asdict(result), "plan": plan})
        return result

    def _check(self) -> None:
        if self._is_finished():
            raise BudgetSpent

    def _end_episode(self, reward: float, info: dict[str, Any]) -> None:
        self._pass_time()
        self.record.end_episode(reward, info)
        self._on_episode()

    def _pass_time(self) -> None:
        now = time.perf_counter()
        self.record.wall_seconds += now - self._last
        self._last = now

    def _answer(self, plan: CompressionPlan) -> Appraisal:
        known = None if self.log is None else self.log.find(plan)
        if known is not None:
            appraisal, seconds = known
            if seconds > self.record.wall_seconds:
                # Found by the run that this one resumes: its clock counts, not ours.
                self.record.wall_seconds, self._last = seconds, time.perf_counter()
            return appraisal
        appraisal = self._appraise(plan)
        self._pass_time()
        if self.log is not None:
            self.log.add(plan, appraisal, self.record.wall_seconds)
        return appraisal


def unwrap(env: gymnasium.Env[Any, Any]) -> JointPruneQuantEnv:
    """The environment under all wrappers, for its task and its decoder.

    Raises:
        ValueError: it is another environment.
    """
    if not isinstance(env.unwrapped, JointPruneQuantEnv):
        raise ValueError(f"env must be a JointPruneQuantEnv, not {env.unwrapped}")
    return env.unwrapped
