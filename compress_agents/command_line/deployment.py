"""The commands that ship a network: ``finetune | export | latency | latency-table``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from compress_agents.command_line.cli_options import takes_options
from compress_agents.command_line.documented_options import documented, load_alone
from compress_agents.command_line.output import ERR, OUT, interrupted, refuse, user_errors

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

_FINETUNE_OPTIONS = documented(
    load_alone("finetune_options", "FinetuneOptions"), {"learning_rate": ["--lr"]}
)

_Run = Annotated[
    Path,
    typer.Argument(
        help="A run folder, the folder of a fine-tuning, or its compressed.safetensors.",
        show_default=False,
    ),
]
_DataRoot = Annotated[
    str | None, typer.Option(help="Folder of the data set.", show_default="that of the run")
]
_Device = Annotated[
    str | None, typer.Option(help="Where to run: cpu, cuda, ...", show_default="that of the run")
]
_Threads = Annotated[
    int | None, typer.Option(help="Threads per pass.", show_default="as many as cores")
]


@contextmanager
def _deployment_errors() -> Iterator[None]:
    """Besides the user's errors, a package that is not installed is one line."""
    try:
        with user_errors():
            yield
    except ImportError as error:
        raise refuse(error) from None


@app.command("finetune")
@takes_options(_FINETUNE_OPTIONS)
def finetune(
    options: dict[str, Any],
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    plan: Annotated[
        str, typer.Option(help="best, uniform (where the search began), or the file of a plan.")
    ] = "best",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the result.", show_default="RUN/finetuned[-<plan>]"),
    ] = None,
    data_root: _DataRoot = None,
    device: _Device = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted training.")
    ] = False,
) -> None:
    """Train a run's best plan at its bits; keep the network as one file."""
    where = ""
    try:
        with _deployment_errors():
            from compress_agents.deployment.finetuning import Finetuning, finetuning_table  # noqa: PLC0415
            from compress_env.finetune_options import FinetuneOptions  # noqa: PLC0415

            given = FinetuneOptions(**options)
            finetuning = Finetuning(run, given, plan, out, data_root, device, resume)
            where = f"{finetuning.command} --resume"
            results = finetuning.run()
    except KeyboardInterrupt:
        raise interrupted(where or "the same command") from None
    OUT.print(finetuning_table(results, f"Fine-tuning of {run}"))
    OUT.print(f"Files are in {finetuning.folder}", markup=False, soft_wrap=True)
    if results["stopped"]:
        ERR.print(f"Stopped early: {results['stopped']}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command("export")
def export(
    run: _Run,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx, or torch (a program of torch.export).")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="RUN/compressed.<ending>")
    ] = None,
    integer: Annotated[
        bool,
        typer.Option(
            "--integer/--exact",
            help="onnx: what ONNX Runtime runs as integers, or what the network computes exactly.",
        ),
    ] = False,
    low_bit_storage: Annotated[
        bool, typer.Option(help="onnx: store weights of 4 bits and fewer as INT4, or as INT8.")
    ] = True,
    data_root: _DataRoot = None,
) -> None:
    """Write a run's network for other programs, and run it there on the test images."""
    with _deployment_errors():
        from compress_agents.deployment import find_run  # noqa: PLC0415
        from compress_agents.deployment.exporting import GOAL, export_run, export_table  # noqa: PLC0415

        found = find_run(run).moved(data_root, "cpu")
        exported = export_run(found, format_name, out, integer, low_bit_storage)
    if not exported.trained:
        OUT.print("The plan's network is not fine-tuned: see compress-agents finetune.")
    OUT.print(export_table(exported))
    OUT.print(f"Written to {exported.path}", markup=False, soft_wrap=True)
    if not exported.faithful:
        ERR.print(f"Differs from PyTorch on more than {1 - GOAL:.1%} of the test images")
        raise typer.Exit(1)


@app.command("latency")
def latency(
    run: _Run,
    batch_sizes: Annotated[str, typer.Option(help="Images per pass, such as 1,32.")] = "1,32",
    repeats: Annotated[int, typer.Option(help="Interleaved runs that medians are over.")] = 50,
    threads: _Threads = None,
    engine: Annotated[
        str | None,
        typer.Option(help="onnxruntime or openvino.", show_default="all that are installed"),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="File for the figures.", show_default="RUN/latency.json"),
    ] = None,
    data_root: _DataRoot = None,
) -> None:
    """Time a run's network against the dense one in ONNX Runtime and OpenVINO."""
    try:
        with _deployment_errors():
            from compress_agents.deployment import find_run  # noqa: PLC0415
            from compress_agents.deployment.timing import parse_counts, time_run  # noqa: PLC0415
            from compress_env.latency import latency_table as as_text  # noqa: PLC0415

            sizes = parse_counts("batch_sizes", batch_sizes)
            found = find_run(run).moved(data_root, "cpu")
            report, written = time_run(found, sizes, repeats, threads, engine, memory, json_file)
    except KeyboardInterrupt:
        raise interrupted("the same command") from None
    if found.compressed is None:
        OUT.print("The plan's network is not fine-tuned: see compress-agents finetune.")
    OUT.print(as_text(report), markup=False, highlight=False, soft_wrap=True)
    OUT.print(f"Written to {written}", markup=False, soft_wrap=True)


@app.command("latency-table")
def latency_table(
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    network: Annotated[str, typer.Option(help="Name, or 'module.path:factory'.")] = "resnet20",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="What it will be used with.", show_default="that of the network's environment"
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images in pixels.", show_default="that of the data set"),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Outputs.", show_default="that of the data set")
    ] = None,
    engine: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "openvino",
    batch_size: Annotated[int, typer.Option(help="Images per pass.")] = 1,
    threads: _Threads = None,
    repeats: Annotated[int, typer.Option(help="Runs of a layer; the fastest counts.")] = 20,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted measurement.")
    ] = False,
) -> None:
    """Time every layer of a network on this machine, for searches with --metric latency."""
    try:
        with _deployment_errors():
            from compress_agents.deployment.timing import (  # noqa: PLC0415
                make_latency_table,
                table_graph,
                table_summary,
            )

            graph = table_graph(network, dataset, image_size, num_classes)
            table = make_latency_table(graph, out, engine, batch_size, threads, repeats, resume)
    except KeyboardInterrupt:
        raise interrupted("the same command and --resume") from None
    found = table_summary(table)
    OUT.print(
        f"{found['engine']} {found['version']}, batch {found['batch_size']}, "
        f"threads: {found['threads']}; all layers together {found['float32']:.3f} ms in float32, "
        f"{found['int8']:.3f} ms in 8-bit integers",
        highlight=False,
        soft_wrap=True,
    )
    OUT.print(f"Written to {out}", markup=False, soft_wrap=True)
