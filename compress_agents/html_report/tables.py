"""The figures of runs as rows of text, for the page's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress_agents.html_report.reading import Run
from compress_agents.html_report.statistics import wilson_interval
from compress_agents.html_report.words import (
    TIMES,
    amount,
    bits_text,
    compared,
    duration,
    kibibytes,
    metric_word,
    plural,
    times_less,
    when_judged,
)

__all__ = ["Cell", "Tile", "comparison_rows", "facts", "figure_table", "latency_table", "tiles"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table, or a fact.

    Attributes:
        text: what it says.
        detail: more, in small print.
    """

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure to be seen first.

    Attributes:
        label: what it is.
        value: the figure.
        detail: what to compare it with.
    """

    label: str
    value: str
    detail: str


def tiles(run: Run) -> list[Tile]:
    """The figures of a run that matter most."""
    report = run.report
    final = report if run.finetuning is None else run.finetuning.results
    dense, images = report["baseline_test_accuracy"], report["num_test_images"]
    change = 100 * (final["test_accuracy"] - dense)
    when = when_judged(run.config) or "without fine-tuning"
    if run.finetuning is not None:
        when = "after fine-tuning"
    low, high = wilson_interval(final["test_accuracy"], int(images))
    return [
        Tile(
            f"test accuracy {when}",
            f"{final['test_accuracy']:.2%}",
            f"95%: {low:.1%} to {high:.1%}; dense {dense:.2%}, {change:+.2f} points",
        ),
        Tile(
            f"reduction of {metric_word(report)}",
            f"{report['reduction']:.2%}",
            f"target {report['target_reduction']:.2%}; "
            f"{times_less(report['bops'], report['dense_bops'])} fewer BOPs",
        ),
        Tile(
            "size of the parameters",
            kibibytes(report["size_bits"] / 8),
            f"{times_less(report['size_bits'], report['dense_size_bits'])} smaller than "
            f"{kibibytes(report['dense_size_bits'] / 8)}",
        ),
        Tile(
            "MACs for an image",
            amount(report["macs"]),
            f"{report['macs'] / report['dense_macs']:.1%} of {amount(report['dense_macs'])}",
        ),
    ]


@dataclass(frozen=True)
class _Column:
    """A column of the table of figures; the prefix is that of its costs in the report."""

    heading: str
    prefix: str
    search_accuracy: float
    test_accuracy: float


_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("MACs", "macs", amount),
    ("BOPs", "bops", amount),
    ("parameters", "params", amount),
    ("size", "size_bits", lambda bits: kibibytes(bits / 8)),
    ("layers, by the latency table", "latency_ms", lambda time: f"{time:.2f} ms"),
)


def figure_table(run: Run) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Dense network, uniform bits, best plan and, where there is one, the fine-tuned network.

    Returns:
        The headings of the columns, and for every row its heading and its cells.
    """
    report = run.report
    test_images = int(report["num_test_images"])
    columns = [_Column("dense", "dense_", report["dense_search_accuracy"],
                       report["baseline_test_accuracy"])]  # fmt: skip
    for heading, prefix, finetuning in (
        ("uniform bits", "uniform_", run.uniform_finetuning),
        ("best plan", "", run.finetuning),
    ):
        plain = ", ".join(filter(None, (heading, when_judged(run.config))))
        for title, found in ((plain, report), (f"{heading}, fine-tuned", finetuning)):
            if found is report:
                accuracies = [report[f"{prefix}{split}_accuracy"] for split in ("search", "test")]
            elif finetuning is not None:
                results = finetuning.results
                accuracies = [results["search_accuracy"], results["test_accuracy"]]
            else:
                continue
            columns.append(_Column(title, prefix, *accuracies))
    rows = [
        (
            f"reduction of {metric_word(report)}, target {report['target_reduction']:.2%}",
            [Cell("0%"), *(Cell(f"{report[f'{c.prefix}reduction']:.2%}") for c in columns[1:])],
        ),
        (
            f"search accuracy, {report['num_search_images']:,} images",
            [Cell(f"{column.search_accuracy:.2%}") for column in columns],
        ),
        (
            f"test accuracy, {test_images:,} images",
            [accuracy_cell(column.test_accuracy, test_images) for column in columns],
        ),
    ]
    for heading, name, write in _COSTS:
        if name not in report:
            continue
        dense = report[f"dense_{name}"]
        cells = []
        for column in columns:
            value = report.get(f"{column.prefix}{name}")
            text = "" if value is None else write(value)
            cells.append(Cell(text, "" if value in (None, dense) else compared(value, dense)))
        rows.append((heading, cells))
    return [column.heading for column in columns], rows


def accuracy_cell(accuracy: float, images: int) -> Cell:
    """An accuracy with its 95% interval."""
    low, high = wilson_interval(accuracy, images)
    return Cell(f"{accuracy:.2%}", f"{low:.1%} to {high:.1%}")


def comparison_rows(runs: Sequence[Run]) -> list[list[Cell]]:
    """A row for every run: what was done, and what came out."""
    rows = []
    for run in runs:
        report, images = run.report, int(run.report["num_test_images"])
        dense = report["baseline_test_accuracy"]
        row = [
            Cell(report["network"], report["dataset"]),
            Cell(report["method"], f"seed {report.get('seed', '?')}"),
            Cell(f"{report['reduction']:.2%}", metric_word(report)),
            Cell(
                f"{report['search_accuracy']:.2%}", f"dense {report['dense_search_accuracy']:.2%}"
            ),
            accuracy_cell(report["test_accuracy"], images),
        ]
        final = report["test_accuracy"]
        if run.finetuning is None:
            row.append(Cell("not done"))
        else:
            final = run.finetuning.results["test_accuracy"]
            row.append(accuracy_cell(final, images))
        row.append(Cell(f"{100 * (final - dense):+.2f}", f"dense {dense:.2%}"))
        rows.append(row)
    return rows


def facts(run: Run) -> list[tuple[str, list[str]]]:
    """What was compressed and how, as short lines under headings."""
    report, config, graph = run.report, run.config, run.graph
    shape = TIMES.join(map(str, graph.input_shape))
    classes = report.get("num_classes", graph.layers[-1].out_channels)
    fixed = report.get("first_last_bits")
    calibration = report.get("num_calibration_images", config.get("calibration_images"))
    found = [
        (
            "Network",
            [
                str(report["network"]),
                f"{len(graph.layers)} layers, {len(graph.groups)} coupling groups",
                f"{amount(report['dense_params'])} parameters, {amount(report['dense_macs'])} MACs",
                f"weights: {config.get('weights') or 'embedded or published ones'}",
            ],
        ),
        (
            "Data",
            [
                str(report["dataset"]),
                f"images of {shape}, {classes} classes",
                f"{report['num_search_images']:,} images to search, "
                f"{report['num_test_images']:,} to test, {calibration} to calibrate",
            ],
        ),
        (
            "Task",
            [
                f"remove {report['target_reduction']:.2%} of the {metric_word(report)}",
                f"bits to choose from: {bits_text(config)}",
                "first and last layer: " + ("searched too" if fixed is None else f"{fixed} bits"),
                f"importance of channels: {config.get('importance', '?')}",
                f"reward: {config.get('reward', '?')}",
            ],
        ),
        (
            "Search",
            [
                str(report["method"]),
                f"{report['evaluations']:,} plans evaluated in {duration(report['wall_seconds'])}"
                + (f", on {plural(report['threads'], 'thread')}" if "threads" in report else ""),
                f"seed {report.get('seed', '?')}, splits by seed {report.get('split_seed', '?')}",
            ],
        ),
    ]
    if run.finetuning is not None:
        found.append(
            ("Fine-tuning", _finetuning_lines(run.finetuning.options, run.finetuning.results))
        )
    return found


def _finetuning_lines(options: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    lines = [f"{results['steps']:,} steps in {duration(results['wall_seconds'])}"]
    if isinstance(results.get("epochs"), (int, float)):
        lines[0] = f"{results['epochs']:.3g} epochs, {lines[0]}"
    words = {
        "optimizer": "optimizer",
        "learning_rate": "learning rate",
        "batch_size": "images per step",
        "distill": "share of distillation",
        "seed": "seed",
    }
    lines += [f"{word}: {options[name]}" for name, word in words.items() if name in options]
    return lines


_LATENCY_COLUMNS = {
    "engine": ("engine", str),
    "batch_size": ("images per run", str),
    "file": ("network", str),
    "milliseconds": ("median ms", lambda value: f"{value:.2f}"),
    "ratio": ("times as fast", lambda value: f"{value:.2f}"),
    "creation_seconds": ("seconds to load", lambda value: f"{value:.2f}"),
    "file_bytes": ("file", kibibytes),
    "peak_bytes": ("peak memory", lambda value: kibibytes(value) if value else ""),
}


def latency_table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """The rows of a `latency.json`; what is not known is shown as it is.

    Returns:
        Headings of the columns, rows of text, and a line about how it was measured.
    """
    names = list(dict.fromkeys(name for row in data["rows"] for name in row))
    names.sort(key=[*_LATENCY_COLUMNS, *names].index)
    headings = [_LATENCY_COLUMNS.get(name, (name, str))[0] for name in names]
    rows = []
    for row in data["rows"]:
        texts = []
        for name in names:
            value, write = row.get(name, ""), _LATENCY_COLUMNS.get(name, (name, str))[1]
            is_number = isinstance(value, (int, float))
            texts.append(write(value) if is_number else str(value))
        rows.append(texts)
    notes = [f"{name}: {data[name]}" for name in ("threads", "repeats") if name in data]
    versions = data.get("versions")
    if isinstance(versions, dict):
        notes += [f"{name} {version}" for name, version in versions.items()]
    return headings, rows, ", ".join(notes)
