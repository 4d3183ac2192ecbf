"""The picture of a transfer: what agents propose against evaluations, by how they began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.pictures import save_svg

__all__ = ["curves_figure"]

_COLORS = ("#4c72b0", "#dd8452", "#55a868")


def curves_figure(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Medians over seeds, the range of the seeds around them; a panel per agent.

    Args:
        points: with `agent`, `method`, `seed`, `evaluations`, `mean_search_accuracy`.
        path: the SVG file to write.
    """
    agents = list(dict.fromkeys(point["agent"] for point in points))
    methods = list(dict.fromkeys(point["method"] for point in points))
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(agents), sharey=True, squeeze=False)[0]
    for axes, agent in zip(panels, agents, strict=True):
        for method, color in zip(methods, _COLORS, strict=False):
            own = [p for p in points if (p["agent"], p["method"]) == (agent, method)]
            x = sorted({point["evaluations"] for point in own})
            values = [[p["mean_search_accuracy"] for p in own if p["evaluations"] == e] for e in x]
            curves = np.array(values).T
            axes.plot(x, np.median(curves, 0), color=color, label=method)
            axes.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0)
        axes.set_title(agent)
        axes.set_xlabel("evaluations")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean search accuracy of 25 plans")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    panels[-1].legend(frameon=False, loc="lower right")
    save_svg(figure, path)
