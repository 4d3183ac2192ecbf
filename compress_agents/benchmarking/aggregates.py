"""Scores of several runs in one number, and how sure it is.

The interquartile mean and stratified bootstrap intervals as in Agarwal et al., *Deep reinforcement
learning at the edge of the statistical precipice*, NeurIPS 2021. Their package rliable needs
one that does not import beside a current pandas, and as many runs in every task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "Estimate",
    "estimate",
    "interquartile_mean",
    "percentile_interval",
    "stratified_resamples",
]

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From (..., runs, points) to (..., points)."""

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: of the runs as they are.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def interquartile_mean(scores: Array, axis: int = -2) -> Array:
    """The mean of the middle half: a quarter of the scores is cut off at each end, rounded down.

    Args:
        scores: scores of all runs along ``axis``.
        axis: that of the runs.
    """
    mean: Array = np.asarray(stats.trim_mean(scores, 0.25, axis=axis))
    return mean


def median(scores: Array, axis: int = -2) -> Array:
    """The median; see `interquartile_mean`."""
    middle: Array = np.asarray(np.median(scores, axis=axis))
    return middle


def stratified_resamples(
    tasks: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Runs drawn with replacement, task by task.

    Args:
        tasks: for every task (runs, points); the numbers of runs may differ.
        resamples: how many.
        seed: of the draw.

    Returns:
        (resamples, runs of all tasks, points).
    """
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [task[generator.integers(len(task), size=(resamples, len(task)))] for task in tasks],
        axis=1,
    )


def percentile_interval(values: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """The two ends between which the middle share of resampled values lies.

    Args:
        values: (resamples, ...).
        level: the share, 0 to 1.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def estimate(tasks: Sequence[Array], statistic: Statistic = interquartile_mean) -> Estimate:
    """A statistic over the runs of all tasks, with its stratified bootstrap interval.

    Args:
        tasks: for every task the scores of its runs, (runs,).
        statistic: what to compute.

    Raises:
        ValueError: a task has no run.
    """
    if not tasks or not all(len(task) for task in tasks):
        raise ValueError("tasks must have a run each")
    columns = [np.asarray(task, dtype=np.float64)[:, None] for task in tasks]
    value = statistic(np.concatenate(columns))
    low, high = percentile_interval(statistic(stratified_resamples(columns)))
    return Estimate(float(value[0]), float(low[0]), float(high[0]))
