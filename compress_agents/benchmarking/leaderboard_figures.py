"""Pictures of a leaderboard: best plan so far against evaluations, accuracy against reduction."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from compress_agents.benchmarking.aggregates import (
    Array,
    estimate,
    interquartile_mean,
    percentile_interval,
    stratified_resamples,
)
from compress_agents.benchmarking.leaderboard import Table, ranked
from compress_agents.benchmarking.scores import Scores, Task, curve_name
from compress_agents.runs import write_atomically

__all__ = ["curves_figure", "front_figure", "nondominated", "write_leaderboard"]

_RESAMPLES = 500
_DPI = 150
_SIZE = (9.0, 5.0)


def curves_figure(scores: Scores, task: Task, score: str) -> Figure:
    """Interquartile means of the best plan so far, with 95% bootstrap bands.

    Args:
        scores: the results.
        task: which task.
        score: what agents are ranked by; it names the curve and the order of the legend.
    """
    name = curve_name(score)
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    evaluations = np.arange(1, task.budget + 1)
    lowest = []
    for number, (agent, _) in enumerate(ranked(scores, task, score)):
        curves = scores.curves(task, agent, name)
        if not len(curves):
            continue
        middle = interquartile_mean(curves)
        low, high = percentile_interval(
            interquartile_mean(stratified_resamples([curves], _RESAMPLES))
        )
        color, style = _style(number)
        axes.plot(evaluations, middle, style, color=color, linewidth=1.7, label=agent)
        axes.fill_between(evaluations, low, high, color=color, alpha=0.15, linewidth=0)
        if np.isfinite(middle[-1]):
            lowest.append(float(middle[-1]))
    first = scores.runs(task)[0]
    for what, label, gray in (
        ("dense", "dense network", "#222222"),
        ("uniform", "uniform bits", "#888888"),
    ):
        value = first[f"{what}_search_accuracy"]
        axes.axhline(value, color=gray, linestyle=":", linewidth=1.2, label=label)
        lowest.append(value)
    # First plans that are guesses, and agents that stay far below uniform bits, must not press
    # all others into one line; where the latter end is in the table.
    best, uniform = max(lowest), first["uniform_search_accuracy"]
    shown = max(min(lowest), 2 * uniform - best)
    margin = 0.25 * max(best - shown, 0.01)
    axes.set_ylim(shown - margin, best + margin)
    axes.set_xlim(0, task.budget * 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("evaluations")
    axes.set_ylabel(f"{name.replace('_', ' ')} of the best plan so far, IQM")
    axes.set_title(task.title, fontsize=11)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def front_figure(scores: Scores, family: Task, score: str) -> Figure:
    """Accuracy of every run's best plan against its reduction, and the front of them all.

    Args:
        scores: the results.
        family: a task without its target; all of its targets are drawn.
        score: what agents are ranked by; it orders the legend.
    """
    tasks = [task for task in scores.tasks if task.without_target == family]
    order = list(dict.fromkeys(a for task in tasks for a, _ in ranked(scores, task, score)))
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, name in zip(panels, ("search_accuracy", "test_accuracy"), strict=True):
        for number, agent in enumerate(order):
            color, style = _style(number)
            own = [task for task in tasks if agent in scores.agents(task)]
            x = [float(np.mean(scores.column(task, agent, "reduction"))) for task in own]
            means = [estimate([scores.column(task, agent, name)]) for task in own]
            y = np.array([mean.value for mean in means])
            ends = np.array([[m.value - m.low for m in means], [m.high - m.value for m in means]])
            axes.errorbar(
                x, y, np.maximum(ends, 0), color=color, linestyle=style, marker="o",
                markersize=4, capsize=3, linewidth=1.2, label=agent,
            )  # fmt: skip
        runs = [row for task in tasks for row in scores.runs(task)]
        plans = np.array([[row["reduction"], row[name]] for row in runs])
        axes.scatter(plans[:, 0], plans[:, 1], s=6, color="#999999", alpha=0.6, linewidths=0)
        front = nondominated(plans)
        axes.step(
            front[:, 0], front[:, 1], "--", where="pre", color="#777777", linewidth=0.8,
            label="best plans",
        )  # fmt: skip
        dense = name.replace("search", "dense_search").replace("test", "dense_test")
        axes.axhline(
            runs[0][dense],
            color="#222222",
            linestyle=":",
            linewidth=1.2,
            label="dense network",
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{family.metric} reduction")
        axes.set_ylabel(f"{name.replace('_', ' ')}, IQM and 95%")
        axes.grid(alpha=0.25)
    figure.suptitle(
        f"{family.network} on {family.dataset}, {family.budget} evaluations", fontsize=11
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def nondominated(points: Array) -> Array:
    """The points to which no other is better in one number and at least equal in the other.

    Args:
        points: (points, 2); more is better in both.

    Returns:
        (some, 2), by the first number, rising; equal points once.
    """
    kept: list[Array] = []
    for point in sorted(points, key=lambda p: (-p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return np.array(kept[::-1])


def write_leaderboard(scores: Scores, score: str, tables: Sequence[Table], folder: Path) -> Path:
    """Write ``leaderboard.md`` and its pictures.

    Args:
        scores: the results.
        score: what agents are ranked by.
        tables: of `compress_agents.benchmarking.leaderboard.leaderboard_tables`.
        folder: where to.

    Returns:
        The path of the document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    families = sorted({task.without_target for task in scores.tasks})
    figures = [
        (f"curves-{number}", task.title, curves_figure(scores, task, score))
        for number, task in enumerate(scores.tasks, start=1)
    ] + [
        (f"front-{number}", f"{family.network} on {family.dataset}, accuracy against reduction",
         front_figure(scores, family, score))
        for number, family in enumerate(families, start=1)
    ]  # fmt: skip
    parts = ["# Leaderboard\n", *(table.markdown() for table in tables)]
    for name, title, figure in figures:
        _write_figure(figure, folder, name)
        parts.append(f"![{title}]({name}.svg)\n")
    path = folder / "leaderboard.md"
    write_atomically(path, "\n".join(parts).encode())
    return path


def _write_figure(figure: Figure, folder: Path, name: str) -> None:
    """As SVG and PNG; the same figure gives the same files."""
    FigureCanvasAgg(figure)
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": _DPI}),
    )
    with mpl.rc_context({"svg.hashsalt": name}):
        for kind, keywords in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **keywords)
            write_atomically(folder / f"{name}.{kind}", buffer.getvalue())


def _style(number: int) -> tuple[tuple[float, float, float], str]:
    """A colour and a line for the agent in this place."""
    colors = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return colors[number % 10], ("-", "--", "-.")[number // 10 % 3]
