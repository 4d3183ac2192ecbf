"""The commands that compare agents: ``benchmark | leaderboard | verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compress_agents.benchmarking.benchmark_options import BENCHMARK_OPTIONS
from compress_agents.command_line.cli_options import build_config, takes_options
from compress_agents.command_line.output import ERR, OUT, interrupted, user_errors

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command("benchmark")
@takes_options(BENCHMARK_OPTIONS)
def benchmark(
    options: dict[str, Any],
    jobs: Annotated[
        int | None,
        typer.Option(help="Searches at a time, on a thread each.", show_default="the cores"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs and results.")] = Path("runs/benchmark"),
) -> None:
    """Run agents at equal numbers of evaluations; the same command again goes on."""
    with user_errors():
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs must be at least 1, not {jobs}")
        from compress_agents.benchmarking.benchmark_options import list_searches  # noqa: PLC0415

        searches = list_searches(build_config(BENCHMARK_OPTIONS, options))
        from compress_agents.benchmarking.benchmark import Benchmark, default_jobs  # noqa: PLC0415

        made = Benchmark(searches, out)
    from compress_agents.progress import benchmark_progress  # noqa: PLC0415

    total = sum(search.config.evaluations for search in searches)
    try:
        with user_errors(), benchmark_progress(OUT, total, len(searches)) as show:
            made.run(jobs or default_jobs(), show)
    except KeyboardInterrupt:
        raise interrupted("the same command") from None
    OUT.print(
        f"{len(made.results)} of {len(searches)} searches are finished; "
        f"results are in {out / 'results.csv'}",
        markup=False,
        soft_wrap=True,
    )
    for name, failure in made.failures.items():
        ERR.print(f"Failed: {name}: {failure.message}", markup=False, soft_wrap=True)
    if made.failures:
        ERR.print(f"What they printed is in {out / 'logs'}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command("leaderboard")
def leaderboard(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders of benchmarks, run folders, files of entries.",
            show_default=False,
        ),
    ],
    score: Annotated[
        str, typer.Option(help="Rank by search_accuracy, test_accuracy or best_reward.")
    ] = "search_accuracy",
    speedup: Annotated[
        list[str] | None,
        typer.Option(
            help="A:B: evaluations that agent A needs to come where B ends; may be repeated.",
            show_default="none",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of table and pictures.", show_default="FOLDER/leaderboard"),
    ] = None,
) -> None:
    """Rank agents with intervals; draw best-so-far curves and the accuracy-reduction front."""
    with user_errors():
        from compress_agents.benchmarking.leaderboard import leaderboard_tables  # noqa: PLC0415
        from compress_agents.benchmarking.leaderboard_figures import write_leaderboard  # noqa: PLC0415
        from compress_agents.benchmarking.scores import read_scores  # noqa: PLC0415

        scores = read_scores(folders)
        tables = leaderboard_tables(scores, score, speedup or [])
        first = folders[0] if folders[0].is_dir() else folders[0].parent
        written = write_leaderboard(scores, score, tables, out or first / "leaderboard")
    for table in tables:
        OUT.print(table.terminal())
    OUT.print(f"Written to {written}, with the pictures", markup=False, soft_wrap=True)


@app.command("verify")
def verify(
    entry: Annotated[
        Path, typer.Argument(metavar="ENTRY", help="The file of an entry.", show_default=False)
    ],
    data_root: Annotated[
        str | None, typer.Option(help="Folder of the data set.", show_default="none")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="File of the dense weights.", show_default="as the entry says"),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")] = "cpu",
    tolerance: Annotated[
        float, typer.Option(help="By how much an accuracy may differ, 0 to 1.")
    ] = 0.0,
) -> None:
    """Rebuild an entry's network and recompute its figures; 1: they differ, 2: no entry."""
    with user_errors():
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1, not {tolerance}")
        from compress_agents.benchmarking.entries import read_entry, verify_entry  # noqa: PLC0415

        read = read_entry(entry)
        measured, problems = verify_entry(read, data_root, weights, device, tolerance)
    from compress_agents.reporting import report_table  # noqa: PLC0415

    OUT.print(report_table(measured, f"Plan of {entry}"))
    for problem in problems:
        ERR.print(f"Differs: {problem}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    OUT.print(f"All {len(read.figures)} figures are as claimed.")
