"""Tasks in processes of their own: a task that fails, or is killed, does not stop the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

__all__ = ["Failure", "run_in_processes"]

Task = TypeVar("Task")
Send = Callable[[Any], None]

_PATIENCE = 5.0
"""Seconds that a process has to leave in order."""


@dataclass(frozen=True)
class Failure:
    """Why a task has failed: in one line, and where."""

    message: str
    traceback: str


@dataclass(frozen=True)
class _End:
    failure: Failure | None


@dataclass(frozen=True)
class _Running(Generic[Task]):
    task: Task
    process: Any


def run_in_processes(
    tasks: Sequence[Task],
    work: Callable[[Task, Send], None],
    processes: int,
    on_message: Callable[[Task, Any], None],
    preload: Sequence[str] = (),
) -> Iterator[tuple[Task, Failure | None]]:
    """Work on tasks, several at a time.

    Processes are ended when the iteration is, and when this process is killed; they do not see
    Ctrl-C, which is this process's affair.

    Args:
        tasks: what to work on, in this order.
        work: a function of a module, called in a process of its own with a task and a function
            that sends a message.
        processes: how many at a time.
        on_message: called here with a task and what it has sent.
        preload: modules that every process needs; on Linux they are imported once for all.

    Yields:
        Every task when it has ended, and why it has failed, if it has.
    """
    context = _context(preload)
    waiting = deque(tasks)
    running: dict[Connection, _Running[Task]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                task = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, work, task))
                process.start()
                sender.close()
                running[receiver] = _Running(task, process)
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                one = running[connection]
                message = _receive(connection, one.process)
                if isinstance(message, _End):
                    one.process.join()
                    del running[connection]
                    connection.close()
                    yield one.task, message.failure
                else:
                    on_message(one.task, message)
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.join(_PATIENCE)
            if one.process.is_alive():
                one.process.kill()
                one.process.join()


def _context(preload: Sequence[str]) -> Any:
    """How processes start: copies of one that has imported everything, where that is safe."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _receive(connection: Connection, process: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        text = f"its process ended with exit status {process.exitcode}"
        if process.exitcode == -signal.SIGKILL:
            text += ", as it does where memory runs out"
        return _End(Failure(text, ""))


def _child(sender: Connection, work: Callable[[Task, Send], None], task: Task) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Leave in order, so that locks and files in memory are given back.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(task, sender.send)
    except Exception as error:
        text = " ".join(str(error).split())
        message = text if isinstance(error, ValueError) and text else (
            f"{type(error).__name__}: {text}"
        )  # fmt: skip
        sender.send(_End(Failure(message, traceback.format_exc())))
    else:
        sender.send(_End(None))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
