"""Tables for people, the same on the terminal and in the documentation."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from compress_agents.tables import markdown_table

__all__ = ["machine", "markdown_table", "replace_section"]


def replace_section(path: Path, name: str, text: str) -> None:
    """Put a generated text into its place in a page, which keeps the rest.

    Args:
        path: the page; the place lies between the lines ``<!-- begin NAME -->`` and
            ``<!-- end NAME -->``.
        name: of the place.
        text: Markdown.

    Raises:
        ValueError: the page cannot be read, or has no such place.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    try:
        page = path.read_text()
    except OSError as error:
        raise ValueError(f"markdown: {path} cannot be read: {error}") from error
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"markdown: {path} must hold the lines '{begin[:-1]}' and '{end[:-1]}'")
    path.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def machine() -> str:
    """Where and with what figures were measured, for the line above a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}"
    instructions = torch.backends.cpu.get_cpu_capability()
    graphics = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{versions}, {cores} {platform.machine()} cores with {instructions}, {graphics}"
