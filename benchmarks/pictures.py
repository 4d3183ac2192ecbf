"""Pictures as files that are the same whenever the figures in them are."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from compress_agents.runs import write_atomically


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, atomically, without a date and without random names."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomically(path, content.getvalue())
