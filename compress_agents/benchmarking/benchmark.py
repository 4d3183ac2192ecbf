"""A benchmark: agents at equal numbers of evaluations, in parallel, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from compress_agents.benchmarking.benchmark_options import Search
from compress_agents.benchmarking.entries import entry_of_run
from compress_agents.benchmarking.processes import Failure, Send, run_in_processes
from compress_agents.benchmarking.results import (
    COLUMNS,
    CURVE_COLUMNS,
    Result,
    read_result,
    write_csv,
)
from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder, write_json
from compress_agents.training import open_run

__all__ = ["Benchmark", "Progress", "default_jobs"]

_SECONDS_BETWEEN_MESSAGES = 0.5


@dataclass(frozen=True)
class Progress:
    """How far a benchmark has come.

    Attributes:
        evaluations: done, of all runs together; a run that has ended counts in full.
        finished: runs that have ended well.
        failed: runs that have not.
    """

    evaluations: int
    finished: int
    failed: int


@dataclass(frozen=True)
class _Job:
    search: Search
    folder: Path
    log: Path


class Benchmark:
    """Searches in run folders, with the results of all that are finished.

    | in the folder | content |
    |---|---|
    | ``runs/NAME/`` | a run folder for every search |
    | ``logs/NAME.txt`` | what it printed, and its error |
    | ``results.csv`` | a line per finished run, of earlier benchmarks in the folder too |
    | ``curves.csv`` | best plan so far against evaluations |
    | ``entries/NAME.json`` | its plan and figures, for `compress-agents verify` |

    Finished runs are read, interrupted ones gone on with. Nothing is written before `run`.

    Args:
        searches: what to run.
        out: the folder.

    Raises:
        ValueError: the folder holds runs of these names with other options.
    """

    def __init__(self, searches: Sequence[Search], out: Path) -> None:
        self.searches, self.out = list(searches), out
        if out.exists() and not out.is_dir():
            raise ValueError(f"out: {out} is not a folder")
        for search in self.searches:
            folder = self._folder(search)
            folder.check(search.config, resume=folder.config.exists())
        self.results: dict[str, Result] = {}
        self.failures: dict[str, Failure] = {}
        self._others: dict[str, Result] = {}
        self._done: dict[str, int] = {}

    def run(self, jobs: int, show: Callable[[Progress], None] = lambda progress: None) -> None:
        """Run what is not finished, and write the results whenever a run ends.

        Args:
            jobs: processes at a time, each computing on one thread.
            show: called after every change.

        Raises:
            ValueError: another process is at work in the folder.
        """
        self.failures.clear()
        with self._alone():
            self._read_finished()
            self._write()
            show(self.progress)
            waiting = [
                _Job(search, self._folder(search).path, self.out / "logs" / f"{search.name}.txt")
                for search in self.searches
                if search.name not in self.results
            ]

            def on_message(job: _Job, episodes: int) -> None:
                self._done[job.search.name] = episodes
                show(self.progress)

            ended = run_in_processes(waiting, _search, jobs, on_message, [__name__])
            for job, failure in ended:
                if failure is None:
                    self._read(job.search, self.results)
                    self._write()
                else:
                    self.failures[job.search.name] = failure
                    with job.log.open("a") as log:
                        log.write(failure.traceback or f"{failure.message}\n")
                show(self.progress)

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        evaluations = sum(
            search.config.evaluations
            if search.name in self.results or search.name in self.failures
            else self._done.get(search.name, 0)
            for search in self.searches
        )
        return Progress(evaluations, len(self.results), len(self.failures))

    def _folder(self, search: Search) -> RunFolder:
        return RunFolder(self.out / "runs" / search.name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        for name in ("runs", "logs", "entries"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out / ".lock", timeout=0)
        try:
            with lock:
                yield
        except Timeout as error:
            raise ValueError(f"out: another process is at work in {self.out}") from error

    def _read_finished(self) -> None:
        """The results of this benchmark's searches, and of others that the folder holds."""
        for search in self.searches:
            self._read(search, self.results)
        own = {search.name for search in self.searches}
        for path in sorted((self.out / "runs").iterdir()):
            if path.name not in own and RunFolder(path).config.exists():
                config = RunFolder(path).read_config()
                assert isinstance(config, TrainingConfig)
                self._read(Search(path.name, config), self._others)

    def _read(self, search: Search, results: dict[str, Result]) -> None:
        result = read_result(self._folder(search), search.config)
        if result is not None:
            results[search.name] = result
            entry = entry_of_run(self._folder(search), search.config, result.row)
            write_json(self.out / "entries" / f"{search.name}.json", entry.to_json())

    def _write(self) -> None:
        ordered = [self.results[s.name] for s in self.searches if s.name in self.results]
        ordered += self._others.values()
        write_csv(self.out / "results.csv", COLUMNS, [result.row for result in ordered])
        curves = [point for result in ordered for point in result.curve]
        write_csv(self.out / "curves.csv", CURVE_COLUMNS, curves)


def _search(job: _Job, send: Send) -> None:
    """Run one search, in a process of its own."""
    torch.set_num_threads(1)
    sent = 0.0

    def show(record: Any) -> None:
        nonlocal sent
        if time.perf_counter() - sent > _SECONDS_BETWEEN_MESSAGES:
            send(record.episodes)
            sent = time.perf_counter()

    with job.log.open("w") as log, redirect_stdout(log), redirect_stderr(log):
        resume = RunFolder(job.folder).config.exists()
        open_run(job.search.config, str(job.folder), resume).run(show)


def default_jobs() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
