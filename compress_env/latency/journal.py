"""Measurements kept in a file as they are made, so that an interrupted series can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Numbers by key, one line of JSON each, below a line that says under what conditions.

    Args:
        path: the file; None keeps the numbers in memory alone.
        conditions: what all measurements have in common.
        resume: take over what the file holds.

    Raises:
        ValueError: there is a file but `resume` is not set, or it holds measurements under other
            conditions.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, conditions: Mapping[str, Any], resume: bool
    ) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, float] = {}
        if self.path is None:
            return
        if self.path.exists():
            if not resume:
                raise ValueError(
                    f"resume must be set, or {self.path} deleted: it is an interrupted measurement"
                )
            self._read(self.path, conditions)
        else:
            self.path.write_text(json.dumps(dict(conditions)) + "\n")

    def _read(self, path: Path, conditions: Mapping[str, Any]) -> None:
        first, *lines = path.read_text().split("\n")
        try:
            stored = dict(json.loads(first))
        except (ValueError, TypeError) as error:
            raise ValueError(f"resume: {path} is not an interrupted measurement") from error
        for name, value in conditions.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"resume: {path} was measured with another {name}: {stored.get(name)!r} there "
                    f"and {value!r} here"
                )
        for line in lines[:-1]:  # what follows the last end of line was cut off, or is nothing
            key, value = json.loads(line)
            self._known[key] = float(value)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("\n".join([first, *lines[:-1]]) + "\n")
        os.replace(partial, path)

    def get(self, key: Hashable) -> float | None:
        """The number of a key, if it has been measured."""
        return self._known.get(repr(key))

    def add(self, key: Hashable, value: float) -> None:
        """Note a number."""
        self._known[repr(key)] = value
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([repr(key), value]) + "\n")
