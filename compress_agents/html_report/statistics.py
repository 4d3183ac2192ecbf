"""What the page computes from the figures of runs: intervals, and fronts."""

from __future__ import annotations

from collections.abc import Iterable

from scipy.stats import binomtest

__all__ = ["pareto_front", "wilson_interval"]


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """The 95% interval of an accuracy, by Wilson's score (Wilson, 1927).

    Args:
        accuracy: share of images that were predicted rightly, 0 to 1.
        images: how many were looked at, at least 1.

    Returns:
        Lower and upper end, 0 to 1.
    """
    interval = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point equals or exceeds in both coordinates.

    Args:
        points: (reduction, accuracy).

    Returns:
        Those on the front, without repetition, reduction rising and so accuracy falling.
    """
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]
