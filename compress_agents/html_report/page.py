"""The page: what runs found, in one file that needs nothing else."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from compress_agents.html_report.curves import run_curves
from compress_agents.html_report.fronts import comparable, outcome_front, run_style, search_front
from compress_agents.html_report.plan_picture import layer_figures, plan_picture
from compress_agents.html_report.reading import Run, read_run
from compress_agents.html_report.svg import Picture
from compress_agents.html_report.tables import (
    comparison_rows,
    facts,
    figure_table,
    latency_table,
    tiles,
)
from compress_agents.html_report.words import amount, kibibytes
from compress_agents.runs import write_atomically
from compress_env.rendering import BITS_COLOURS

__all__ = ["bits_colours", "make_page", "write_page"]

_LIGHT_INK_UP_TO = 4


def write_page(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    data_root: str | None = None,
) -> list[Run]:
    """Write the page about some runs.

    Args:
        runs: run folders; one that is named twice is shown once.
        out: the file to write; its folder is made.
        data_root: folder of the data set, for runs whose report does not say what their images
            are like.

    Returns:
        The runs, as they were read.

    Raises:
        ValueError: `out` is no name for a page, or a run cannot be shown; names it.
    """
    target = Path(out).expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out must end in .html, not '{out}'")
    if target.is_dir():
        raise ValueError(f"out must be a file, and {out} is a folder")
    folders = {Path(run).expanduser().resolve(): Path(run).expanduser() for run in runs}
    found = [read_run(folder, data_root) for folder in folders.values()]
    words = [shlex.quote(str(word)) for word in (*folders.values(), "--out", target)]
    page = make_page(found, "compress-agents report " + " ".join(words))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names of files may hold bytes that are no text.
    write_atomically(target, page.encode("utf-8", "replace"))
    return found


def make_page(runs: Sequence[Run], command: str = "") -> str:
    """The page about some runs.

    Args:
        runs: at least one.
        command: what makes this page again.
    """
    environment = Environment(
        loader=PackageLoader("compress_agents.html_report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fronts: list[Picture] = []
    for places in comparable(runs):
        fronts.append(search_front(runs, places))
        if len(places) > 1:
            fronts.append(outcome_front(runs, places))
    return environment.get_template("page.html.jinja").render(
        title=_title(runs),
        runs=[_run_part(place, run) for place, run in enumerate(runs)],
        comparison=comparison_rows(runs) if len(runs) > 1 else [],
        fronts=fronts,
        bits_colours=bits_colours(),
        command=command,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _title(runs: Sequence[Run]) -> str:
    subjects = dict.fromkeys(f"{run.report['network']} on {run.report['dataset']}" for run in runs)
    return ", ".join(subjects)


def _run_part(place: int, run: Run) -> dict[str, Any]:
    report, finetuning = run.report, run.finetuning
    headings, rows = figure_table(run)
    commands = [
        ("The search", f"{report.get('command', '')} --run-dir {shlex.quote(str(run.path))}")
    ]
    for what, found in (
        ("The fine-tuning", finetuning),
        ("The fine-tuning of uniform bits", run.uniform_finetuning),
    ):
        if found is not None and found.command:
            commands.append((what, found.command))
    for name, data in run.latencies.items():
        if isinstance(data.get("command"), str):
            commands.append((f"The latencies in {name}", data["command"]))
    versions = report.get("versions")
    return {
        "name": run.name,
        "path": str(run.path),
        "style": run_style(place),
        "anchor": f"run-{place + 1}",
        "tiles": tiles(run),
        "facts": facts(run),
        "headings": headings,
        "rows": rows,
        "plan": plan_picture(run.graph, run.plan),
        "layers": layer_figures(run.graph, run.plan),
        "amount": amount,
        "curves": run_curves(run),
        "is_finetuned": finetuning is not None,
        "is_finetuning_unfinished": run.is_finetuning_unfinished,
        "latencies": [(name, *latency_table(data)) for name, data in run.latencies.items()],
        "files": [(name, kibibytes(size)) for name, size in run.files.items()],
        "dense_size": kibibytes(report["dense_size_bits"] / 8),
        "commands": commands,
        "versions": versions if isinstance(versions, dict) else {},
    }


def bits_colours() -> list[tuple[int, str, str]]:
    """For every bit-width its colour, and that of text on it."""
    return [
        (
            bits,
            "#{:02x}{:02x}{:02x}".format(*colour),
            "#fff" if bits <= _LIGHT_INK_UP_TO else "#14181d",
        )
        for bits, colour in BITS_COLOURS.items()
    ]
