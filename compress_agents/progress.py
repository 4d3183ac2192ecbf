"""The progress bar of a search: best accuracy and reduction so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from compress_agents.records import Record

__all__ = ["search_progress"]


@contextmanager
def search_progress(console: Console, budget: int) -> Iterator[Callable[[Record], None]]:
    """Show a bar.

    Args:
        console: where.
        budget: evaluations in all.

    Yields:
        What to call with the record whenever it has changed.
    """
    progress = Progress(
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(compact=True),
        console=console,
    )
    task = progress.add_task("search", total=budget, best="")

    def show(record: Record) -> None:
        best = record.best
        text = "nothing yet" if best is None else (
            f"best {best.accuracy:.2%} accuracy, {best.reduction:.2%} reduction"
        )  # fmt: skip
        progress.update(task, completed=min(record.episodes, budget), best=text)

    with progress:
        yield show
