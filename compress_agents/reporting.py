"""The report of a run: its figures, the file they go to, and the table on the terminal."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

import compress_env
from compress_agents.config import TrainingConfig
from compress_agents.figures import draw_figures
from compress_agents.records import Record
from compress_agents.runs import RunFolder, write_json
from compress_env.actions import ActionDecoder
from compress_env.calibration import dtype_name
from compress_env.complexity import LATENCY
from compress_env.env import JointPruneQuantEnv
from compress_env.plan import CompressionPlan

__all__ = ["describe", "differences", "finish", "measure", "report_table"]


class NoPlanError(ValueError):
    """A search that has ended without a plan that meets the target."""


def measure(env: JointPruneQuantEnv, plan: CompressionPlan) -> dict[str, Any]:
    """The figures that a plan gives again whenever it is measured, the test split's among them.

    Args:
        env: the environment, for its task.
        plan: a plan for its network.

    Returns:
        A part of the report: accuracies from 0 to 1, complexities of one image, sizes in bits.
    """
    task = env.task
    uniform = env.decoder.plan(env.decoder.base)
    dense, cost = task.costs.dense, task.complexity(plan)
    return {
        "network": task.network_name,
        "dataset": task.splits.name,
        "metric": env.metric,
        "target_reduction": env.target_reduction,
        "reduction": env.decoder.reduction(plan),
        "macs": cost.macs,
        "bops": cost.bops,
        "params": cost.params,
        "size_bits": cost.size_bits,
        "dense_macs": dense.macs,
        "dense_bops": dense.bops,
        "dense_params": dense.params,
        "dense_size_bits": dense.size_bits,
        "baseline_test_accuracy": task.test(task.dense_plan).accuracy,
        "test_accuracy": task.test(plan).accuracy,
        "uniform_test_accuracy": task.test(uniform).accuracy,
        "dense_search_accuracy": task.dense_evaluation.accuracy,
        "search_accuracy": task.evaluator.evaluate(plan).accuracy,
        "uniform_search_accuracy": task.evaluator.evaluate(uniform).accuracy,
        "uniform_reduction": env.decoder.reduction(uniform),
        "num_test_images": len(task.splits.test),
        "num_search_images": len(task.search.labels),
        "first_last_bits": env.decoder.fixed_bits,
        **_latencies(env.decoder, plan),
    }


def _latencies(decoder: ActionDecoder, plan: CompressionPlan) -> dict[str, float]:
    """Milliseconds of the plan and of the dense network, if that is what the search reduces."""
    if decoder.metric != LATENCY:
        return {}
    return {"latency_ms": decoder.cost_of_plan(plan), "dense_latency_ms": decoder.dense_cost}


def describe(env: JointPruneQuantEnv) -> dict[str, Any]:
    """What else a reader of the report wants to know without the data at hand.

    Args:
        env: the environment, for its task.

    Returns:
        A part of the report: shape of the images, outputs of the network, costs of uniform bits.
    """
    task = env.task
    uniform = task.complexity(env.decoder.plan(env.decoder.base))
    return {
        "input_shape": list(task.graph.input_shape),
        "num_classes": task.splits.num_classes,
        "num_calibration_images": len(task.calibration.labels),
        "calibration_dtype": dtype_name(task.calibration_dtype),
        "finetune_steps": task.finetune_steps,
        "uniform_macs": uniform.macs,
        "uniform_bops": uniform.bops,
        "uniform_params": uniform.params,
        "uniform_size_bits": uniform.size_bits,
    }


def finish(
    config: TrainingConfig, folder: RunFolder, env: JointPruneQuantEnv, record: Record
) -> dict[str, Any]:
    """Measure the best plan, and write ``report.json`` and the figures.

    Raises:
        NoPlanError: no episode met the target.
    """
    if record.best is None:
        raise NoPlanError(
            f"no episode of {record.episodes} met target_reduction {config.target_reduction}: "
            "raise --max-steps, lower --target-reduction, or leave --project on"
        )
    report = {
        **measure(env, record.best.plan),
        **describe(env),
        "method": config.agent,
        "env_id": config.env_id,
        "reward": config.reward,
        "best_reward": record.best.reward,
        "best_episode": record.best.episode,
        "episodes": record.episodes,
        "evaluations": record.evaluations,
        "env_steps": record.env_steps,
        "wall_seconds": round(record.wall_seconds, 2),
        "seed": config.seed,
        "split_seed": config.split_seed,
        "command": config.command(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }
    draw_figures(folder.figures, env.task.graph, record, report)
    # Last, so that a run with a report is a run with everything.
    write_json(folder.report, report)
    return report


def _versions() -> dict[str, str]:
    packages = ("torch", "dgl", "gymnasium", "stable-baselines3", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "compress-env": compress_env.__version__,
    }


def differences(measured: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Where figures measured again are not those of the report, in words."""
    return [
        f"{name} is {value} now and {report.get(name)} in the report"
        for name, value in measured.items()
        if report.get(name) != value
    ]


def report_table(report: dict[str, Any], title: str) -> Table:
    """The figures of a report, the dense network's beside the plan's.

    Args:
        report: what `finish` or `measure` returned.
        title: above the table.
    """
    table = Table(title=title, title_justify="left")
    for name in ("", "dense", "uniform", "best plan"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    metric = report["metric"]
    saved = "BOPs" if metric == "bops" else "MACs" if metric == "macs" else metric
    table.add_row(
        f"{saved} reduction (target {report['target_reduction']:.2%})",
        "",
        f"{report['uniform_reduction']:.2%}",
        f"{report['reduction']:.2%}",
    )
    for split in ("search", "test"):
        dense = "dense_search_accuracy" if split == "search" else "baseline_test_accuracy"
        table.add_row(
            f"{split} accuracy ({report[f'num_{split}_images']} images)",
            f"{report[dense]:.2%}",
            f"{report[f'uniform_{split}_accuracy']:.2%}",
            f"{report[f'{split}_accuracy']:.2%}",
        )
    for label, name, unit, scale in (
        ("MACs", "macs", "M", 1e6),
        ("BOPs", "bops", "M", 1e6),
        ("parameters", "params", "k", 1e3),
        ("size", "size_bits", "KiB", 8 * 1024),
        ("layers, by the table", "latency_ms", "ms", 1.0),
    ):
        if name not in report:
            continue
        table.add_row(
            label,
            f"{report[f'dense_{name}'] / scale:.2f} {unit}",
            "",
            f"{report[name] / scale:.2f} {unit}",
        )
    if "evaluations" in report:
        table.add_section()
        table.add_row("evaluations", "", "", f"{report['evaluations']}")
        table.add_row("steps of the environment", "", "", f"{report['env_steps']}")
        table.add_row("search took", "", "", f"{report['wall_seconds']:.0f} s")
    bits = report["first_last_bits"]
    fixed = "searched too" if bits is None else f"at {bits} bits"
    table.caption = f"{report['network']} on {report['dataset']}, first and last layer {fixed}"
    # Reports of before this option have no such entry.
    if report.get("finetune_steps"):
        table.caption += f"; every plan's network trained for {report['finetune_steps']} steps"
    table.caption_justify = "left"
    return table
