"""How many times fewer evaluations one agent needs to come as far as another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress_agents.benchmarking.aggregates import (
    Array,
    interquartile_mean,
    percentile_interval,
    stratified_resamples,
)

__all__ = ["Speedup", "evaluations_to_reach", "parse_pair", "speedup"]

_RESAMPLES = 1000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Speedup:
    """One agent against another in a task.

    Attributes:
        score: what the slower agent has at its end; interquartile mean over runs.
        slow: evaluations after which the slower agent first has it.
        fast: evaluations after which the faster agent has it, or None if it never does.
        ratio: ``slow / fast``, 0 where it is never reached.
        low: lower end of the 95% bootstrap interval of the ratio.
        high: upper end.
        reached: share of the resamples in which it is reached.
    """

    score: float
    slow: int
    fast: int | None
    ratio: float
    low: float
    high: float
    reached: float


def evaluations_to_reach(curves: Array, scores: Array) -> Array:
    """The first evaluation at which a curve is at least so high; infinite where it never is.

    Args:
        curves: (..., evaluations), NaN where there is nothing yet.
        scores: (...).

    Returns:
        (...), from 1 on.
    """
    there = curves >= scores[..., None] - _ROUNDING
    return np.where(there.any(axis=-1), there.argmax(axis=-1) + 1.0, np.inf)


def speedup(fast: Array, slow: Array) -> Speedup:
    """Compare two agents by their curves.

    The ratio is that of the interquartile mean curves; runs of both agents are resampled, each
    agent's by themselves, for its interval.

    Args:
        fast: best so far, (runs, evaluations).
        slow: of the other agent.

    Raises:
        ValueError: one of them has no run, or the second no plan at its end.
    """
    if not len(fast) or not len(slow):
        raise ValueError("speedup: both agents must have a run with a curve")
    score = interquartile_mean(slow)[-1]
    if np.isnan(score):
        raise ValueError("speedup: the second agent must have found a plan in every run")
    needed = evaluations_to_reach(interquartile_mean(fast), score)
    own = evaluations_to_reach(interquartile_mean(slow), score)
    resampled = [
        interquartile_mean(stratified_resamples([curves], _RESAMPLES, seed))
        for seed, curves in enumerate((fast, slow))
    ]
    finals = resampled[1][:, -1]
    ratios = evaluations_to_reach(resampled[1], finals) / evaluations_to_reach(resampled[0], finals)
    low, high = percentile_interval(ratios)
    return Speedup(
        score=float(score),
        slow=int(own),
        fast=int(needed) if np.isfinite(needed) else None,
        ratio=float(own / needed),
        low=float(low),
        high=float(high),
        reached=float((ratios > 0).mean()),
    )


def parse_pair(text: str, agents: Sequence[str]) -> tuple[str, str]:
    """``"ppo:ppo-mlp"`` as two agents; names may have colons of their own.

    Raises:
        ValueError: it is not two of the agents.
    """
    parts = text.split(":")
    for index in range(1, len(parts)):
        first, second = ":".join(parts[:index]), ":".join(parts[index:])
        if first in agents and second in agents:
            return first, second
    raise ValueError(f"speedup must be two of {', '.join(agents)}, as A:B, not '{text}'")
