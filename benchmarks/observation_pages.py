"""The tables of columns on the pages of the observations, from where the columns are defined.

Usage: python -m benchmarks.observation_pages [FOLDER]   (docs/observations by default)

Replaces what stands on every page between two marks. A test compares the committed pages with what
this gives.
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from compress_env.observations import OBSERVATIONS, channel, hierarchical, layer

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "observations"

BEGIN = "<!-- made by: python -m benchmarks.observation_pages -->"
END = "<!-- end of what is made -->"


@dataclass(frozen=True)
class Table:
    """Columns that a page explains.

    Attributes:
        title: heading above them.
        module: where they are defined.
        constant: the name of the tuple; the text below it explains them.
    """

    title: str
    module: ModuleType
    constant: str


GLOBALS = Table("Globals", layer, "GLOBAL_COLUMNS")
TABLES = {
    "layer": (Table("Features of a `layer`", layer, "NODE_COLUMNS"), GLOBALS),
    "hierarchical": (
        Table("Features of a `state`", hierarchical, "STATE_COLUMNS"),
        Table("Features of a `motif` edge", hierarchical, "MOTIF_COLUMNS"),
        Table("Features of a `value`", hierarchical, "VALUE_COLUMNS"),
        Table("Features of an `operation` edge", hierarchical, "OPERATION_COLUMNS"),
        GLOBALS,
    ),
    "channel": (
        Table("Features of a `channel`", channel, "NODE_COLUMNS"),
        Table("Features of a `similar` edge", channel, "EDGE_COLUMNS"),
        GLOBALS,
    ),
}
"""What the page of every observation explains, in order."""


def explained(table: Table) -> str:
    """The text below a constant."""
    for first, second in pairwise(ast.parse(inspect.getsource(table.module)).body):
        if (
            isinstance(first, ast.Assign)
            and isinstance(first.targets[0], ast.Name)
            and first.targets[0].id == table.constant
            and isinstance(second, ast.Expr)
            and isinstance(second.value, ast.Constant)
        ):
            return inspect.cleandoc(str(second.value.value))
    raise ValueError(f"{table.constant} in {table.module.__name__} has no text below it")


def section(table: Table) -> str:
    """A heading, the text, and the columns in order."""
    columns = ", ".join(f"`{name}`" for name in getattr(table.module, table.constant))
    return f"### {table.title}\n\n{explained(table)}\n\nIn this order: {columns}.\n"


def page(name: str, text: str) -> str:
    """A page with its tables made anew.

    Args:
        name: of the observation.
        text: the page as it is.

    Raises:
        ValueError: the page does not have the two marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page of '{name}' must have the lines '{BEGIN}' and '{END}'")
    return "\n".join([before + begin, "", *map(section, TABLES[name]), end + after])


def main(arguments: list[str]) -> None:
    """Write the pages."""
    folder = Path(arguments[0]) if arguments else FOLDER
    for name in OBSERVATIONS:
        path = folder / f"{name}.md"
        path.write_text(page(name, path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
