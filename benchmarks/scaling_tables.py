"""The tables of `benchmarks.scaling`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.tables import machine, markdown_table
from benchmarks.timing import fit_line

__all__ = ["section"]

Rows = list[dict[str, Any]]


def section(results: Mapping[str, Rows], command: str) -> str:
    """All tables that there are results for.

    Args:
        results: rows by part.
        command: what made them.
    """
    parts = [f"Made by `{command}` with {machine()}."]
    parts += [table(results[name]) for name, table in _TABLES.items() if name in results]
    return "\n\n".join(part.strip() for part in parts)


def images_table(rows: Rows) -> str:
    """Milliseconds against images, with the line through them."""
    line = fit_line([row["images"] for row in rows], [row["seconds"] for row in rows])
    table = markdown_table(
        ("search images", "new plan, ms", "images per second"),
        [
            (
                str(row["images"]),
                f"{1e3 * row['seconds']:.0f}",
                f"{row['images'] / row['seconds']:.0f}",
            )
            for row in rows
        ],
    )
    return (
        f"An evaluation of a plan never seen before, ResNet-20, 6 bits, 30% of the channels gone."
        f"\n\n{table}\nThe line {1e3 * line.offset:.0f} ms + {1e6 * line.slope:.0f} us per image "
        f"is missed by {line.largest_deviation:.0%} at most."
    )


def depth_table(rows: Rows) -> str:
    """Milliseconds against depth, with the line through them."""
    line = fit_line([row["layers"] for row in rows], [row["seconds"] for row in rows])
    table = markdown_table(
        ("network", "layers", "new plan, ms", "per layer, ms"),
        [
            (
                row["network"],
                str(row["layers"]),
                f"{1e3 * row['seconds']:.0f}",
                f"{1e3 * row['seconds'] / row['layers']:.1f}",
            )
            for row in rows
        ],
    )
    return (
        f"The same against the depth, with {rows[0]['images']} images.\n\n{table}\n"
        f"The line {1e3 * line.offset:.0f} ms + {1e3 * line.slope:.1f} ms per layer is missed by "
        f"{line.largest_deviation:.0%} at most."
    )


def environments_table(rows: Rows) -> str:
    """Evaluations per second, and how many times those of one thread."""
    head = ("threads each", "evaluations per second", "times the first")
    text = f"Steps of environments, each with an evaluation on {rows[0]['images']} images."
    for name, sentence in (
        ("environments", ""),
        (
            "independent_processes",
            "The control: processes that share nothing and wait for nothing, each evaluating an "
            "unpruned plan again and again. More than this the cores do not give.",
        ),
    ):
        some = [row for row in rows if name in row]
        if not some:
            continue
        first = some[0]["evaluations_per_second"]
        lines = [
            (
                str(row[name]),
                str(row["threads_each"]),
                f"{row['evaluations_per_second']:.2f}",
                f"{row['evaluations_per_second'] / first:.2f}",
            )
            for row in some
        ]
        table = markdown_table((name.replace("_", " "), *head), lines)
        text = f"{text}\n\n{sentence}\n\n{table}" if sentence else f"{text}\n\n{table}"
    return text


def layers_table(rows: Rows) -> str:
    """An episode of many evaluated steps in evaluations."""
    row = rows[0]
    return (
        f"In `layer` mode an episode on {row['network']} has {row['steps']} steps. With every one "
        f"of them evaluated, the last on {row['images']} images and the others on the default of "
        f"`step_images`, it takes {1e3 * row['episode']:.0f} ms, which is "
        f"{row['episode'] / row['evaluation']:.1f} times the {1e3 * row['evaluation']:.0f} ms of "
        f"an episode of one step in `network` mode (median of new plans, in turn)."
    )


def memory_table(rows: Rows) -> str:
    """Peak and growth."""
    row = rows[0]
    table = markdown_table(
        ("steps", "resident, MiB"),
        [(f"{steps:,}", f"{size / 2**20:.0f}") for steps, size in row["growth_points"]],
    )
    return (
        f"The process of a search on {row['network']} with {row['images']} images and "
        f"{row['evaluations']} evaluations, from the start to the report, held at most "
        f"{row['peak_bytes'] / 2**30:.2f} GiB. Steps on the digits, every 20th with a real "
        f"evaluation that the bounded caches keep until they are full, which takes some tens of "
        f"thousands of steps; in the second half memory changed by "
        f"{row['growth_bytes_per_step']:+.0f} bytes per step.\n\n{table}"
    )


def search_table(rows: Rows) -> str:
    """Seconds of whole searches, and the share of the updates."""
    head = [
        "network", "images", "environments", "evaluations", "seconds", "evaluations per second",
        "updates",
    ]  # fmt: skip
    return "Whole searches of PPO, from making the environment to the report.\n\n" + markdown_table(
        head,
        [
            (
                row["network"],
                str(row["images"]),
                str(row["environments"]),
                str(row["evaluations"]),
                f"{row['seconds']:.0f}",
                f"{row['evaluations'] / row['seconds']:.2f}",
                f"{row['update_seconds'] / row['seconds']:.1%}",
            )
            for row in rows
        ],
    )


_TABLES: dict[str, Callable[[Rows], str]] = {
    "images": images_table,
    "depth": depth_table,
    "environments": environments_table,
    "layers": layers_table,
    "memory": memory_table,
    "search": search_table,
}
