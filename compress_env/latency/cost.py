"""The cost of a plan in milliseconds, from the table that a search names."""

from __future__ import annotations

import os
from pathlib import Path

from compress_env.complexity import LATENCY
from compress_env.latency.layer_table import LatencyTable
from compress_env.layer_graph import LayerGraph

LatencyTableFile = str | os.PathLike[str] | None
"""File of a table, for the metric `"latency"`; None for every other metric."""


def check_latency_table(metric: str, latency_table: LatencyTableFile) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        ValueError: there is a table and another metric, or the metric and no table.
    """
    if metric != LATENCY:
        if latency_table is not None:
            raise ValueError(
                f"latency_table must be left out for metric '{metric}': it is for '{LATENCY}'"
            )
    elif latency_table is None:
        raise ValueError(
            f"latency_table must be given for metric '{LATENCY}': a file that "
            "'compress-agents latency-table' has written on the machine in question"
        )
    elif not Path(latency_table).is_file():
        raise ValueError(f"latency_table: there is no file {latency_table}")


def latency_cost(
    metric: str, latency_table: LatencyTableFile, graph: LayerGraph
) -> LatencyTable | None:
    """What `compress_env.actions.ActionDecoder` takes as `cost` for a metric.

    Returns:
        The table for the metric `"latency"`, None for every other.

    Raises:
        ValueError: there is no table, or one that does not fit the network.
    """
    check_latency_table(metric, latency_table)
    return None if latency_table is None else LatencyTable.load(latency_table, graph)
