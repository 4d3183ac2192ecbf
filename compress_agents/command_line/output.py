"""What the commands have in common: where they print, and how they end where something is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

__all__ = ["ERR", "INTERRUPTED", "OUT", "interrupted", "refuse", "run_errors", "user_errors"]

OUT = Console()
ERR = Console(stderr=True)

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


class _Refused(typer.Exit):
    """What ends a command with exit status 2, its message being printed."""


def refuse(error: BaseException) -> _Refused:
    """Print the message of an error; what is returned is to be raised."""
    # One line whatever the message: it is for people and for scripts that look for it.
    ERR.print(f"Error: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
    return _Refused(2)


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors of the user's are one line and exit status 2, not a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("COMPRESS_AGENTS_TRACEBACK"):
            raise
        raise refuse(error) from None


@contextmanager
def run_errors() -> Iterator[None]:
    """During a search only a disk that fails, or a target never met, is the user's concern."""
    from compress_agents.reporting import NoPlanError  # noqa: PLC0415

    try:
        yield
    except (NoPlanError, OSError) as error:
        raise refuse(error) from None


def interrupted(resume: str) -> typer.Exit:
    """Say how to go on after Ctrl-C; what is returned is to be raised."""
    ERR.print(f"\nInterrupted. Go on with: {resume}", markup=False, soft_wrap=True)
    return typer.Exit(INTERRUPTED)
