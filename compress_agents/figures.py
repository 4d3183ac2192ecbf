"""Pictures of a run: its learning curve and its best plan."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from compress_agents.records import Record
from compress_agents.runs import write_atomically
from compress_env.layer_graph import LayerGraph
from compress_env.rendering import draw_plan

__all__ = ["draw_figures", "learning_curve", "plan_figure"]

_DPI, _PIXELS = 150, 100


def draw_figures(folder: Path, graph: LayerGraph, record: Record, report: dict[str, Any]) -> None:
    """Write ``learning_curve.png`` and ``plan.png``.

    Args:
        folder: where to.
        graph: the layer graph.
        record: a search that found a plan.
        report: its report.
    """
    assert record.best is not None
    _save(learning_curve(record.rows, report), folder / "learning_curve.png")
    _save(plan_figure(draw_plan(graph, record.best.plan), report), folder / "plan.png", _PIXELS)


def learning_curve(rows: list[dict[str, Any]], report: dict[str, Any]) -> Figure:
    """Accuracy on the search split over evaluations: every episode's, and the best so far.

    Args:
        rows: the lines of ``episodes.csv``.
        report: the report, for the lines to compare with.
    """
    evaluated = [row for row in rows if row["accuracy"] != ""]
    x = np.array([row["evaluations"] for row in evaluated])
    accuracies = np.array([row["accuracy"] for row in evaluated])
    # There is none yet while an agent only measures plans that cost too much.
    best = np.array([row["best_accuracy"] or np.nan for row in evaluated], dtype=float)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(x, accuracies, s=9, color="#7a8ca3", alpha=0.55, linewidths=0, label="an episode")
    if len(x) >= 20:
        window = max(5, len(x) // 20)
        # Not the mean: single plans that break the network would drown all others.
        middle = np.median(np.lib.stride_tricks.sliding_window_view(accuracies, window), axis=1)
        axes.plot(
            x[window - 1 :], middle, color="#d98324", linewidth=1.6, label=f"median of {window}"
        )
    axes.step(x, best, where="post", color="#26547c", linewidth=2.2, label="best plan so far")
    dense, uniform = report["dense_search_accuracy"], report["uniform_search_accuracy"]
    axes.axhline(dense, color="#2f7d4f", linestyle="--", linewidth=1.3, label=f"dense {dense:.2%}")
    axes.axhline(
        uniform,
        color="#b23a48",
        linestyle=":",
        linewidth=1.6,
        label=f"uniform {uniform:.2%}",
    )
    # A few plans that break the network must not press all others into one line.
    lowest = float(np.quantile(accuracies, 0.05))
    top = max(dense, float(accuracies.max()))
    margin = max(0.05 * (top - min(lowest, uniform)), 0.002)
    bottom = min(lowest, uniform) - margin
    axes.set_ylim(bottom, min(top + margin, 1.0 + 0.3 * margin))
    hidden = int((accuracies < bottom).sum())
    axes.set_xlim(0, max(float(x.max()), 1.0) * 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("evaluations" + (f" ({hidden} below the picture)" if hidden else ""))
    axes.set_ylabel(f"search accuracy, {report['num_search_images']} images")
    axes.set_title(
        f"{report['network']} on {report['dataset']}: {report['method']}, "
        f"{report['metric']} reduced by {report['target_reduction']:.2%}",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    return figure


def plan_figure(picture: np.ndarray, report: dict[str, Any]) -> Figure:
    """The picture of a plan with a title.

    Args:
        picture: uint8 (height, width, 3).
        report: the report, for the title.
    """
    height, width = picture.shape[:2]
    title_height = 54
    figure = Figure(figsize=(width / _PIXELS, (height + title_height) / _PIXELS))
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + title_height)))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.text(
        0.015,
        1.0 - 27 / (height + title_height),
        f"{report['network']} on {report['dataset']}: "
        f"{report['metric']} reduced by {report['reduction']:.2%}\n"
        f"search accuracy {report['search_accuracy']:.2%} "
        f"(dense {report['dense_search_accuracy']:.2%}), "
        f"test {report['test_accuracy']:.2%} (dense {report['baseline_test_accuracy']:.2%})",
        va="center",
        fontsize=9,
    )
    return figure


def _save(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())
