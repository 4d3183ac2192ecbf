"""Pictures of `docs/results.md`: points to the dense networks, and curves of the trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper_rows import REPORTED
from benchmarks.paper_tables import TITLES, Row, difference_to_dense
from benchmarks.pictures import save_svg

_COLORS = colormaps["tab20"]
_UNIFORM, _SEARCHED, _PAPERS = "0.45", "tab:blue", "tab:orange"


def write_differences(rows: Sequence[Row], path: Path) -> None:
    """Draw every row's difference to the dense network with its interval, as SVG.

    Beside the rows of a target stands what a paper reports for it.
    """
    networks = list(dict.fromkeys(str(row["network"]) for row in rows))
    tallest = max(sum(row["network"] == network for row in rows) for network in networks)
    size = (5.8 * len(networks), 1.4 + 0.27 * tallest)
    figure = Figure(figsize=size, layout="constrained")
    for place, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks), place + 1)
        _draw_differences(axes, [row for row in rows if row["network"] == network])
        axes.set(title=TITLES.get(network, network), xlabel="points to the dense network")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save_svg(figure, path)


def _draw_differences(axes: Axes, rows: Sequence[Row]) -> None:
    found = 100 * np.array([difference_to_dense(row) for row in rows])
    searched = np.array(["graph-q" in row["method"] or "PPO" in row["method"] for row in rows])
    height = np.arange(len(rows))
    for chosen, color, label in (
        (~searched, _UNIFORM, "the same bits, or share, everywhere"),
        (searched, _SEARCHED, "plan found by an agent"),
    ):
        middle, low, high = found[chosen].T
        axes.errorbar(
            middle, height[chosen], xerr=[middle - low, high - middle], fmt="o", color=color,
            label=label, capsize=2,
        )  # fmt: skip
    reported = [
        (place, report.difference)
        for place, row in enumerate(rows)
        for report in REPORTED
        if row["target_reduction"] != ""
        and report.network == row["network"]
        and report.difference is not None
        and report.reduction.startswith(f"{100 * row['target_reduction']:g}%")
    ]
    places, differences = zip(*reported, strict=True) if reported else ((), ())
    axes.plot(differences, places, "D", color=_PAPERS, mfc="none", label="reported by the papers")
    axes.axvline(0, color="0.7", zorder=0)
    axes.set_yticks(height, [_name(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _name(row: Row) -> str:
    target = row["target_reduction"]
    return str(row["method"]) if target == "" else f"{target:.2%} {row['method']}"


def write_curves(points: Sequence[Row], path: Path) -> None:
    """Draw search accuracy against steps of training, a panel per network, as SVG."""
    networks = list(dict.fromkeys(str(point["network"]) for point in points))
    figure = Figure(figsize=(5.5 * max(1, len(networks)), 4.2), layout="constrained")
    for place, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks), place + 1)
        own = [point for point in points if point["network"] == network]
        plans = dict.fromkeys((p["method"], p["target_reduction"]) for p in own)
        for number, (method, target) in enumerate(plans):
            line = [p for p in own if (p["method"], p["target_reduction"]) == (method, target)]
            axes.plot(
                [p["step"] for p in line],
                [100 * p["search_accuracy"] for p in line],
                label=_name(line[0]),
                color=_COLORS(number % _COLORS.N),
                linestyle="--" if "uniform" in method else "-",
            )
        axes.set(title=TITLES.get(network, network), xlabel="step", ylabel="search accuracy, %")
        axes.set_ylim(60, 101)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    save_svg(figure, path)
