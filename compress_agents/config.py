"""What a run is: the options of a search, shown by ``--help`` and kept in ``config.json``.

Every option is defined once, here: its name, default, and the line that the command line shows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from compress_agents.command_line.options import (
    command_line,
    option,
    parse_bits,
    parse_first_last_bits,
    parse_settings,
)

__all__ = [
    "SearchConfig",
    "TrainingConfig",
    "from_json",
    "to_json",
]

DEFAULT_EVALUATIONS = 400
"""Evaluations of a search unless told otherwise: with the default task about a minute."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(ABC):
    """What every search has: the task, as the environment takes it, and a seed.

    ``None`` leaves an option to the environment id. Raises ``ValueError``, naming the option, where
    a value is not allowed; the environment checks what concerns it.
    """

    command_name: ClassVar[str] = ""

    env_id: str = option("JointPruneQuant-ResNet20-v0", "Gymnasium id of the environment.")
    network: str | None = option(
        None, "Network by name, or 'module.path:factory'.", shown="that of the environment"
    )
    dataset: str | None = option(
        None, "digits, cifar10, cifar100, imagefolder, imagenet.", shown="that of the environment"
    )
    data_root: str | None = option(
        None, "Folder of the data set.", shown="none, or the cache for cifar", movable=True
    )
    weights: str | None = option(
        None, "File of the dense weights.", shown="embedded or published ones"
    )
    target_reduction: float = option(0.9636, "Share of the dense cost to remove, 0 to 1.")
    metric: str = option("bops", "What is reduced: bops, macs, params, size, latency.")
    latency_table: str | None = option(
        None, "File of latency-table, for metric latency.", shown="none"
    )
    bits: tuple[int, ...] = option(
        tuple(range(2, 9)), "Allowed bit-widths, 2,4,8 or 2-8; 32 prunes only.", shown="2-8",
        parse=parse_bits,
    )  # fmt: skip
    importance: str = option("l1", "Which channels stay, by name.")
    reward: str = option(
        "accuracy_and_divergence",
        "accuracy, agreement, divergence, accuracy_and_divergence.",
    )
    search_images: int = option(1000, "Images that a plan is evaluated on, at most.")
    calibration_images: int = option(128, "Images for BatchNorm and activation ranges.")
    calibration_dtype: str = option(
        "auto", "In what to calibrate: float32, bfloat16, auto (by the processor)."
    )
    finetune_steps: int = option(0, "Training steps of every plan's network before its reward.")
    first_last_bits: int | None = option(
        8, "Bits of first and last layer, or none: searched too.", shown="8",
        parse=parse_first_last_bits,
    )  # fmt: skip
    channel_multiple: int = option(1, "Kept channels are rounded to a multiple of this.")
    image_size: int | None = option(
        None, "Side of the images in pixels.", shown="that of the data set"
    )
    split_seed: int = option(0, "Seed of the splits and of the choice of images.")
    seed: int = option(0, "Seed of the search.")
    device: str = option("cpu", "Where the networks run: cpu, cuda, ...", movable=True)

    def __post_init__(self) -> None:
        self._check("seed", self.seed >= 0, "at least 0")
        self._check("split_seed", self.split_seed >= 0, "at least 0")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    def environment_arguments(self, needs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for ``gymnasium.make``.

        Args:
            needs: arguments that the agent cannot do without.

        Raises:
            ValueError: an option asks for something else.
        """
        given = {
            name: getattr(self, name)
            for name in (
                "network", "dataset", "data_root", "weights", "image_size", "latency_table",
            )
            if getattr(self, name) is not None
        }  # fmt: skip
        return {
            **given,
            "target_reduction": self.target_reduction,
            "metric": self.metric,
            "bits": list(self.bits),
            "importance": self.importance,
            "reward": self.reward,
            "search_images": self.search_images,
            "calibration_images": self.calibration_images,
            "calibration_dtype": self.calibration_dtype,
            "finetune_steps": self.finetune_steps,
            "first_last_bits": self.first_last_bits,
            "channel_multiple": self.channel_multiple,
            "device": self.device,
            "seed": self.split_seed,
        }

    @property
    @abstractmethod
    def budget(self) -> int:
        """Evaluations that the search may take."""

    @abstractmethod
    def default_run_dir(self) -> str:
        """Where the run is kept unless told otherwise."""

    def command(self) -> str:
        """The command line of this run; what has its default is left out."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        defaults = {entry.name: entry.default for entry in fields(self)}
        return command_line(f"compress-agents {self.command_name}", values, defaults)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(SearchConfig):
    """A run of an agent, whether it learns or only searches.

    The algorithm of the joint pruning-quantization paper takes E_max, R_solve, N_max, I_update and
    K: here ``max_episodes``, ``solve_reward``, ``max_steps``, ``update_interval`` and
    ``update_epochs``.
    """

    command_name: ClassVar[str] = "train"

    agent: str = option("ppo", "One of those that 'agents' lists, or 'module.path:factory'.")
    agent_options: str = option(
        "", "Settings of the agent, name=value,name=value; 'agents NAME' lists them.", shown="none"
    )
    evaluations: int = option(
        DEFAULT_EVALUATIONS, "Episodes, each with its plan evaluated.", movable=True
    )
    total_timesteps: int | None = option(
        None, "Learn for no more steps of the environment than this.", shown="no", movable=True
    )
    max_episodes: int | None = option(None, "Learn for no more episodes.", shown="no", movable=True)
    solve_reward: float | None = option(
        None, "Stop at the first episode that is paid this much.", shown="no", movable=True
    )
    step_mode: str = option("network", "What a step decides: network or layer.")
    observation: str = option(
        "layer", "What the agent is shown: layer, hierarchical, channel.", shown="what it reads"
    )
    max_steps: int = option(10, "Steps of an episode in network mode.")
    project: bool = option(True, "Move every action onto the budget, so a step is an episode.")
    update_interval: int | None = option(
        None, "Steps of each environment between updates of the agent.", shown="that of the agent"
    )
    update_epochs: int | None = option(
        None, "Passes over the gathered steps per update.", shown="that of the agent"
    )
    learning_rate: float | None = option(
        None, "Learning rate of the agent.", shown="that of the agent"
    )
    action_std: float | None = option(
        None, "Standard deviation of the first actions, 0 to 1.", shown="that of the agent"
    )
    num_envs: int = option(1, "Environments side by side, each in a process of its own (PPO).")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("evaluations", "num_envs"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("total_timesteps", "max_episodes", "update_epochs"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 1, "at least 1")
        solved = self.solve_reward
        self._check("solve_reward", solved is None or math.isfinite(solved), "a finite number")
        interval, rate, std = self.update_interval, self.learning_rate, self.action_std
        self._check("update_interval", interval is None or interval >= 2, "at least 2")
        self._check("learning_rate", rate is None or 0 < rate < math.inf, "above 0")
        self._check("action_std", std is None or 0 < std <= 1, "above 0 and at most 1")
        parse_settings(self.agent_options)

    def settings(self) -> dict[str, Any]:
        """The settings of the agent that these options give."""
        named = ("update_interval", "update_epochs", "learning_rate", "action_std")
        given = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return {**given, **parse_settings(self.agent_options)}

    def environment_arguments(self, needs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for ``gymnasium.make``; see `SearchConfig`."""
        own = {
            "step_mode": self.step_mode,
            "observation": self.observation,
            "max_steps": self.max_steps,
            "project_to_budget": self.project,
        }
        return {**super().environment_arguments(needs), **_reconciled(self.agent, own, needs)}

    @property
    def budget(self) -> int:
        """Evaluations that the search may take."""
        return self.evaluations

    def default_run_dir(self) -> str:
        """Where the run is kept unless told otherwise."""
        return f"runs/{_file_name(self.env_id)}-{_file_name(self.agent)}-seed{self.seed}"


def _reconciled(agent: str, own: Mapping[str, Any], needs: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say, with the agent's needs in place of what nobody asked for."""
    options = {"project_to_budget": "project"}
    defaults = {entry.name: entry.default for entry in fields(TrainingConfig)}
    for name, needed in needs.items():
        word = options.get(name, name)
        if name in own and own[name] not in (needed, defaults[word]):
            raise ValueError(f"{word} must be {needed} for agent '{agent}', not {own[name]!r}")
    return {**own, **needs}


def to_json(config: SearchConfig) -> dict[str, Any]:
    """JSON-safe options, with the command they belong to."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return {"command": config.command_name, **values}


def from_json(data: Mapping[str, Any]) -> SearchConfig:
    """The options of a ``config.json``.

    Raises:
        ValueError: it is not one.
    """
    from compress_agents.transfer_config import TransferConfig  # noqa: PLC0415  it needs this

    kinds = {kind.command_name: kind for kind in (TrainingConfig, TransferConfig)}
    values = dict(data)
    kind = kinds.get(values.pop("command", ""))
    if kind is None:
        raise ValueError("it does not say which command it belongs to")
    known = {entry.name for entry in fields(kind)}
    strange = sorted(set(values) - known)
    if strange:
        raise ValueError(f"it holds the unknown option '{strange[0]}'")
    if "bits" in values:
        values["bits"] = tuple(values["bits"])
    return kind(**values)


def _file_name(env_id: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in env_id)
