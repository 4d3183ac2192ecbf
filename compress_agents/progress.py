"""Progress bars: of a search, with the best plan so far; of a benchmark, with its searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from compress_agents.records import Record

if TYPE_CHECKING:
    from compress_agents.benchmarking.benchmark import Progress as BenchmarkProgress

__all__ = ["benchmark_progress", "search_progress"]


@contextmanager
def search_progress(console: Console, budget: int) -> Iterator[Callable[[Record], None]]:
    """Show a bar.

    Args:
        console: where.
        budget: evaluations in all.

    Yields:
        What to call with the record whenever it has changed.
    """
    progress = _bar(console)
    task = progress.add_task("search", total=budget, text="")

    def show(record: Record) -> None:
        best = record.best
        text = "nothing yet" if best is None else (
            f"best {best.accuracy:.2%} accuracy, {best.reduction:.2%} reduction"
        )  # fmt: skip
        progress.update(task, completed=min(record.episodes, budget), text=text)

    with progress:
        yield show


@contextmanager
def benchmark_progress(
    console: Console, budget: int, searches: int
) -> Iterator[Callable[[BenchmarkProgress], None]]:
    """Show a bar.

    Args:
        console: where.
        budget: evaluations of all searches.
        searches: how many there are.

    Yields:
        What to call with the state of the benchmark whenever it has changed.
    """
    progress = _bar(console)
    task = progress.add_task("benchmark", total=budget, text="")

    def show(state: BenchmarkProgress) -> None:
        failed = f", {state.failed} failed" if state.failed else ""
        text = f"{state.finished} of {searches} searches{failed}"
        progress.update(task, completed=state.evaluations, text=text)

    with progress:
        yield show


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=console,
    )
