"""Measuring the plan of a finished run again, from what its folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress_agents.environments import make_environment
from compress_agents.reporting import differences, measure
from compress_agents.runs import RunFolder
from compress_env.plan import CompressionPlan

__all__ = ["evaluate_run"]


def evaluate_run(
    run: Path, data_root: str | None = None, device: str | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None, list[str]]:
    """Rebuild the network of a run's best plan and measure it.

    Args:
        run: the run folder.
        data_root: folder of the data set, if it is not where the run found it.
        device: where to run, if not where the run did.

    Returns:
        The figures; the run's report, if it has one; and where the two differ, in words.

    Raises:
        ValueError: the folder holds no run or no plan, or one for another network.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if not folder.best_plan.is_file():
        raise ValueError(f"run: {run} has no {folder.best_plan.name} yet")
    if data_root is not None:
        config = replace(config, data_root=data_root)
    if device is not None:
        config = replace(config, device=device)
    reported = folder.read_report()
    if reported is not None and "threads" in reported:
        # Sums of floats, and so a prediction in a thousand, depend on how many share the work.
        torch.set_num_threads(reported["threads"])
        # A run by an earlier version calibrated in float32, whatever the machine.
        kept = reported.get("calibration_dtype", "float32")
        config = replace(config, calibration_dtype=kept)
    env = make_environment(config)
    plan = CompressionPlan.load(folder.best_plan, env.task.graph, env.task.network_name)
    measured = measure(env, plan)
    return measured, reported, [] if reported is None else differences(measured, reported)
