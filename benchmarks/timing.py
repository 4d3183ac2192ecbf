"""Times of several things that are to be compared, and how straight a line through times is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

__all__ = ["Line", "fit_line", "interleaved_seconds"]


def interleaved_seconds(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of every call, in seconds.

    All are run once uncounted, then in turn, round after round, so that whatever else the machine
    does meanwhile slows down all of them alike: ratios hold where times do not.

    Args:
        runs: what to time, by name.
        repeats: rounds that count, at least 1.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


@dataclass(frozen=True)
class Line:
    """A straight line `y = offset + slope * x` through points.

    Attributes:
        offset: y where x is 0.
        slope: y per unit of x.
        largest_deviation: of a point from the line, as a share of the line's value there.
    """

    offset: float
    slope: float
    largest_deviation: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line with the least squared relative deviations, so that small values count as much.

    Args:
        x: at least two different values.
        y: positive, as many.
    """
    values, points = np.asarray(y, dtype=float), np.asarray(x, dtype=float)
    columns = np.stack([np.ones_like(points), points], axis=1)
    (offset, slope), *_ = np.linalg.lstsq(columns / values[:, None], np.ones_like(values))
    line = offset + slope * points
    return Line(float(offset), float(slope), float(np.abs(values / line - 1).max()))
