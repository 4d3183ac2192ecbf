"""The command line: ``compress-agents train | evaluate | agents | train-network | ...``.

Only what ``--help`` needs is imported here; torch and the rest follow when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from compress_agents.command_line.benchmark import app as _benchmark_app
from compress_agents.command_line.cli_options import build_config, takes_options
from compress_agents.command_line.deployment import app as _deployment_app
from compress_agents.command_line.output import (
    ERR,
    INTERRUPTED,
    OUT,
    interrupted,
    run_errors,
    user_errors,
)
from compress_agents.command_line.report import app as _report_app
from compress_agents.command_line.transfer import app as _transfer_app
from compress_agents.config import TrainingConfig

__all__ = ["app", "main"]

app = typer.Typer(
    name="compress-agents",
    help="Agents that compress neural networks: joint pruning and quantization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir", help="The run folder.", show_default="runs/<env-id>-<agent>-seed<seed>"
    ),
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]


@app.command("train")
@takes_options(TrainingConfig)
def train(options: dict[str, Any], run_dir: _RunDir = None, resume: _Resume = False) -> None:
    """Run an agent; keep the best plan, with a report, in a run folder."""
    _run_agent(options, run_dir, resume)


@app.command("baseline")
@takes_options(TrainingConfig, agent="random", renamed={"agent": "method"})
def baseline(options: dict[str, Any], run_dir: _RunDir = None, resume: _Resume = False) -> None:
    """The same as train, with --method in place of --agent and random search by default."""
    _run_agent(options, run_dir, resume)


@app.command("agents")
def agents(
    name: Annotated[
        str | None, typer.Argument(help="Show the settings of this one.", show_default=False)
    ] = None,
) -> None:
    """List the agents, a line each; or the settings of one."""
    from compress_agents.agents import agent_settings, find_agent, list_agents  # noqa: PLC0415

    if name is None:
        listed = list_agents()
        width = max(map(len, listed))
        for known, entry in listed.items():
            OUT.print(f"{known:{width}}  {entry.summary}", markup=False, soft_wrap=True)
        return
    with user_errors():
        settings = agent_settings(name)
        entry = find_agent(name)
    for line in (entry.summary, f"source: {entry.source}" if entry.source else ""):
        if line:
            OUT.print(line, markup=False, highlight=False, soft_wrap=True)
    for setting, value in settings.items():
        OUT.print(f"  {setting}={value}", markup=False, highlight=False)


def _run_agent(options: dict[str, Any], run_dir: Path | None, resume: bool) -> None:
    def prepare() -> Any:
        config = build_config(TrainingConfig, options)
        from compress_agents.training import open_run  # noqa: PLC0415

        return open_run(config, None if run_dir is None else str(run_dir), resume)

    _run(prepare)


def _run(prepare: Callable[[], Any]) -> None:
    """Prepare a search, run it behind a progress bar, show its report."""
    from compress_agents.progress import search_progress  # noqa: PLC0415

    where = ""
    try:
        with user_errors():
            search = prepare()
        where = f"{search.config.command()} --run-dir {search.folder.path} --resume"
        with search_progress(OUT, search.config.budget) as show, run_errors():
            report = search.run(show)
    except KeyboardInterrupt:
        raise interrupted(where or "the same command") from None
    from compress_agents.reporting import report_table  # noqa: PLC0415

    OUT.print(report_table(report, f"Report of {search.folder.path}"))
    OUT.print(f"Files are in {search.folder.path}", markup=False, soft_wrap=True)


@app.command("evaluate")
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    data_root: Annotated[
        str | None,
        typer.Option(help="Folder of the data set.", show_default="that of the run"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to run.", show_default="that of the run")
    ] = None,
) -> None:
    """Rebuild the best plan's network and measure it again, on the test split too."""
    with user_errors():
        from compress_agents.evaluation import evaluate_run  # noqa: PLC0415

        measured, reported, problems = evaluate_run(run, data_root, device)
    from compress_agents.reporting import report_table  # noqa: PLC0415

    OUT.print(report_table({**(reported or {}), **measured}, f"Plan of {run}"))
    if reported is None:
        OUT.print("The run has no report.json yet to compare with.")
    elif problems:
        for problem in problems:
            ERR.print(f"Differs: {problem}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    else:
        OUT.print("All figures equal those of report.json.")


@app.command("train-network")
def train_dense_network(
    network: Annotated[str, typer.Option(help="Name, or 'module.path:factory'.")] = "resnet20",
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The .safetensors file to write.", show_default="<network>-<dataset>.safetensors"
        ),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Folder of the data set.", show_default="none")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images.", show_default="that of the data set"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 40,
    learning_rate: Annotated[
        float, typer.Option(help="The highest one, for 128 images per step.")
    ] = 0.1,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", show_default="by the data set's size")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Nesterov's.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of every parameter.")] = 5e-4,
    schedule: Annotated[str, typer.Option(help="cosine or onecycle.")] = "onecycle",
    label_smoothing: Annotated[float, typer.Option(help="From 0 to below 1.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of splits, weights and order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    resume: _Resume = False,
) -> None:
    """Train a dense network, the one to be compressed afterwards."""
    given = dict(locals())
    del given["resume"], given["out"]
    path = out or Path(f"{network.replace(':', '.')}-{dataset}.safetensors")
    try:
        with user_errors():
            from compress_env.network_training import (  # noqa: PLC0415
                NetworkTraining,
                train_network,
            )

            results = train_network(NetworkTraining(**given), path, resume)
    except KeyboardInterrupt:
        raise interrupted("the same command and --resume") from None
    OUT.print(f"Written to {path}", markup=False, soft_wrap=True)
    OUT.print(
        f"search accuracy {results['search_accuracy']:.2%}, "
        f"test accuracy {results['test_accuracy']:.2%}, {results['wall_seconds']:.0f} s"
    )


app.add_typer(_benchmark_app)
app.add_typer(_deployment_app)
app.add_typer(_report_app)
app.add_typer(_transfer_app)


def main() -> None:
    """The console command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
