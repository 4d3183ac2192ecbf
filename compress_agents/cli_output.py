"""What the commands have in common: where they print, and how they end where something is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

__all__ = ["ERR", "INTERRUPTED", "OUT", "interrupted", "refuse", "user_errors"]

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


def interrupted(resume: str) -> typer.Exit:
    """Say how to go on after Ctrl-C; what is returned is to be raised."""
    ERR.print(f"\nInterrupted. Go on with: {resume}", markup=False, soft_wrap=True)
    return typer.Exit(INTERRUPTED)
