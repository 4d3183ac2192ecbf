"""Batches on several threads, each of which computes alone.

Small convolutions gain little from being split among threads; whole batches gain all there is. And
what a batch gives does not depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

Input = TypeVar("Input")
Output = TypeVar("Output")


def threads_for(device: torch.device) -> int:
    """How many batches to run at once."""
    return torch.get_num_threads() if device.type == "cpu" else 1


class Workers:
    """Threads each of which runs its operations alone."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def map(
        self,
        run: Callable[[Input], Output],
        inputs: Sequence[Input],
        threads: int,
        alone: bool = False,
    ) -> list[Output]:
        """`run` of every input, by so many threads.

        Args:
            run: what to do.
            inputs: with what.
            threads: how many inputs at once.
            alone: whether a single input, too, is left to one thread. Else it has all of them.
        """
        if threads == 1 or (len(inputs) == 1 and not alone):
            return [run(each) for each in inputs]
        with self._lock:
            if self._pool is None or self._threads != threads:
                self._start(threads)
            assert self._pool is not None
            results = self._pool.map(run, inputs)
        return list(results)

    def _start(self, threads: int) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._threads = ThreadPoolExecutor(threads), threads
        started = Barrier(threads)

        def alone() -> None:
            # A thread takes over the common setting when it is first asked for, and never again.
            torch.get_num_threads()
            torch.set_num_threads(1)
            started.wait()

        for job in [self._pool.submit(alone) for _ in range(threads)]:
            job.result()
        torch.set_num_threads(threads)  # the setting of threads started later
