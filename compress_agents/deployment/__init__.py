"""From a run folder to its task, its plan and its fine-tuned network.

Nothing here needs DGL or a reinforcement-learning library: a plan can be trained, exported and
timed on a machine that has neither.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
from torch import nn

import compress_env  # noqa: F401  registers the ids
from compress_agents.config import SearchConfig, from_json
from compress_agents.runs import RunFolder
from compress_env.compressed_file import find_compressed, load_compressed
from compress_env.compression import compress
from compress_env.networks.weights import read_metadata
from compress_env.plan import CompressionPlan
from compress_env.task import CompressionTask

__all__ = ["BEST", "CONFIG_ENTRY", "UNIFORM", "FoundRun", "find_run"]

BEST, UNIFORM = "best", "uniform"
"""Plans by name: the best one that the run has found, and the one that it started from."""

CONFIG_ENTRY = "run"
"""Where a compressed network's metadata hold the options of the run it comes from."""

_TASK_ARGUMENTS = (
    "network", "dataset", "data_root", "weights", "importance", "search_images",
    "calibration_images", "calibration_dtype", "image_size", "device",
)  # fmt: skip


@dataclass(frozen=True)
class FoundRun:
    """What a folder or a file says of a run.

    Attributes:
        given: what was asked for.
        folder: where results go by default.
        config: options of the run.
        best_plan: file of its best plan, if it has one.
        compressed: file of its fine-tuned network, if it has one.
        data_root: folder of the data set, if it is not where the run found it.
    """

    given: Path
    folder: Path
    config: SearchConfig
    best_plan: Path | None
    compressed: Path | None
    data_root: str | None = None

    def moved(self, data_root: str | None, device: str | None) -> FoundRun:
        """The same run with its images elsewhere, or on another device."""
        given = {"data_root": data_root, "device": device}
        changed: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        return replace(self, config=replace(self.config, **changed), data_root=data_root)

    def task(self) -> CompressionTask:
        """The dense network and its data, as the run had them.

        Raises:
            ValueError: they are not to be had.
        """
        arguments = dict(_environment_defaults(self.config.env_id))
        for name in _TASK_ARGUMENTS:
            if getattr(self.config, name) is not None:
                arguments[name] = getattr(self.config, name)
        known = inspect.signature(CompressionTask).parameters
        taken = {name: value for name, value in arguments.items() if name in known}
        return CompressionTask(**{**taken, "seed": self.config.split_seed, "finetune_steps": 0})

    def plan(self, name: str, task: CompressionTask) -> CompressionPlan:
        """A plan: `BEST`, `UNIFORM`, or one in a file.

        Raises:
            ValueError: there is none, or it is for another network.
        """
        if name == UNIFORM:
            config = self.config
            decoder = task.decoder(
                target_reduction=config.target_reduction,
                metric=config.metric,
                bits=config.bits,
                first_last_bits=config.first_last_bits,
                channel_multiple=config.channel_multiple,
                latency_table=config.latency_table,
            )
            return decoder.plan(decoder.base)
        if name == BEST and self.best_plan is None:
            raise ValueError(
                f"plan: {self.given} has no best_plan.json yet; name a run that has one"
            )
        path = self.best_plan if name == BEST else Path(name)
        assert path is not None
        if not path.exists():
            raise ValueError(f"plan must be '{BEST}', '{UNIFORM}' or a file, not '{name}'")
        return CompressionPlan.load(path, task.graph, task.network_name)

    def network(self, task: CompressionTask) -> tuple[nn.Module, CompressionPlan]:
        """The fine-tuned network or, where there is none, what the best plan gives untrained.

        Returns:
            The network on the CPU, in evaluation mode, and its plan.

        Raises:
            ValueError: there is neither.
        """
        if self.compressed is not None:
            network = load_compressed(self.compressed)  # first, as it sees that a plan is there
            data = json.loads(read_metadata(self.compressed)["plan"])
            return network, CompressionPlan.from_json(data, task.graph, task.network_name)
        plan = self.plan(BEST, task)
        network = compress(task.graph, plan, task.calibration.images, task.calibration_dtype)
        return network.cpu().eval(), plan


def find_run(path: Path) -> FoundRun:
    """Find a run.

    Args:
        path: a run folder, the folder of a fine-tuning, or the file of a fine-tuned network.

    Raises:
        ValueError: it is none of them.
    """
    path = path.expanduser()
    try:
        compressed: Path | None = find_compressed(path)
    except ValueError:
        compressed = None
    if (path / "config.json").is_file():
        run = RunFolder(path)
        plan = run.best_plan if run.best_plan.is_file() else None
        return FoundRun(path, path, run.read_config(), plan, compressed)
    if compressed is None:
        raise ValueError(
            f"run: {path} is neither a run folder (no config.json) nor a fine-tuned network"
        )
    try:
        metadata = read_metadata(compressed)
    except ValueError as error:
        raise ValueError(f"run: {compressed} is not a fine-tuned network: {error}") from error
    above = compressed.resolve().parent.parent
    if CONFIG_ENTRY in metadata:
        config = _config_of(metadata, compressed)
    elif (above / "config.json").is_file():
        config = RunFolder(above).read_config()
    else:
        raise ValueError(
            f"run: {compressed} does not say which run it comes from: name the run folder"
        )
    return FoundRun(path, compressed.parent, config, None, compressed)


def _config_of(metadata: Mapping[str, str], file: Path) -> SearchConfig:
    try:
        return from_json(json.loads(metadata[CONFIG_ENTRY]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: {file} is damaged: {error}") from error


def _environment_defaults(env_id: str) -> Mapping[str, Any]:
    """What an environment id stands for: arguments of its constructor."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name).kwargs
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"env_id '{env_id}' is not to be had: {error}") from error
