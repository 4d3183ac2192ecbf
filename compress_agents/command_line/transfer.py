"""The command that takes an agent to another network: ``transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compress_agents.command_line.output import OUT, interrupted, run_errors, user_errors

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

_AS_THERE = "that of the run"


@app.command("transfer")
def transfer(
    run: Annotated[
        Path, typer.Argument(help="The run folder that the agent comes from.", show_default=False)
    ],
    to: Annotated[
        list[str],
        typer.Option(help="Environment to go on in; X,Y for --zero-shot.", show_default=False),
    ],
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Do not train the graph network any more.")
    ] = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Train nothing; one plan by the agent as it is.")
    ] = False,
    network: Annotated[
        str | None, typer.Option(help="Network.", show_default="that of the environment")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set.", show_default=_AS_THERE)] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Folder of the data set.", show_default=_AS_THERE)
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="File of the dense weights; of several environments one each, X,Y.",
            show_default="embedded or published ones",
        ),
    ] = None,
    target_reduction: Annotated[
        float | None, typer.Option(help="Share of the cost to remove.", show_default=_AS_THERE)
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Episodes, each evaluated.", show_default=_AS_THERE)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the run.", show_default=_AS_THERE)] = None,
    search_images: Annotated[
        int | None, typer.Option(help="Images per evaluation.", show_default=_AS_THERE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the networks run.", show_default=_AS_THERE)
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="The new run folder; of several environments one each in it.",
            show_default="runs/<...>-from-<run>",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
) -> None:
    """Go on with a trained agent on another network, or see what it proposes untrained."""
    chosen = {
        "network": network,
        "dataset": dataset,
        "data_root": data_root,
        "target_reduction": target_reduction,
        "evaluations": evaluations,
        "seed": seed,
        "search_images": search_images,
        "device": device,
    }
    env_ids = _words(to)
    files: list[str] | None = _words(weights) if weights else None
    with user_errors():
        if len(env_ids) != 1 and not zero_shot:
            raise ValueError("to must be one environment, unless with --zero-shot")
        if files is not None and len(files) != len(env_ids):
            raise ValueError(f"weights must be one file for each of {len(env_ids)} environments")
        from compress_agents.transfer_config import transfer_config  # noqa: PLC0415

        configs = [
            transfer_config(run, env_id, freeze_encoder, zero_shot, weights=file or None, **chosen)
            for env_id, file in zip(env_ids, files or [""] * len(env_ids), strict=True)
        ]
    folders = [
        None if run_dir is None else str(run_dir / env_id if len(env_ids) > 1 else run_dir)
        for env_id in env_ids
    ]
    reports = [
        _run(config, folder, resume) for config, folder in zip(configs, folders, strict=True)
    ]
    from compress_agents.reporting import report_table  # noqa: PLC0415
    from compress_agents.transfer import zero_shot_table  # noqa: PLC0415

    if zero_shot:
        OUT.print(zero_shot_table(reports))
    else:
        OUT.print(report_table(reports[0], f"After the transfer from {run}"))
    for config, folder in zip(configs, folders, strict=True):
        place = folder or config.default_run_dir()
        OUT.print(f"Files are in {place}", markup=False, soft_wrap=True)


def _words(values: list[str]) -> list[str]:
    return [word.strip() for value in values for word in value.split(",")]


def _run(config: Any, folder: str | None, resume: bool) -> dict[str, Any]:
    from compress_agents.progress import search_progress  # noqa: PLC0415

    where = ""
    try:
        with user_errors():
            from compress_agents.transfer import open_transfer  # noqa: PLC0415

            training = open_transfer(config, folder, resume)
        where = f"{config.command()} --run-dir {training.folder.path} --resume"
        with search_progress(OUT, config.budget) as show, run_errors():
            return training.run(show)
    except KeyboardInterrupt:
        raise interrupted(where or "the same command") from None
