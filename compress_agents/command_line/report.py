"""The command that shows runs: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_agents.command_line.output import OUT, user_errors

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command("report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The .html file to write.")] = Path("report.html"),
    data_root: Annotated[
        str | None,
        typer.Option(
            help="Folder of the data set, for runs of earlier versions.",
            show_default="that of the run",
        ),
    ] = None,
) -> None:
    """Show runs, with their fine-tuning and latencies, on one HTML page that opens offline."""
    with user_errors():
        from compress_agents.html_report import write_page  # noqa: PLC0415

        write_page(runs, out, data_root)
    OUT.print(f"Written to {out}", markup=False, soft_wrap=True)
