"""The options of a transfer: those of a training, and where its agent comes from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from compress_agents.command_line.options import as_word, option, option_name
from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder

__all__ = ["TransferConfig", "transfer_config"]

CHOSEN = (
    "network", "dataset", "data_root", "weights", "target_reduction", "evaluations", "seed",
    "search_images", "device",
)  # fmt: skip
"""Options that a transfer may have of its own; all others are those of the run it starts from."""

_NOT_INHERITED = {
    # What belongs to the other network, and limits of the other run.
    "network": None, "weights": None, "latency_table": None, "image_size": None,
    "total_timesteps": None, "max_episodes": None, "solve_reward": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TrainingConfig):
    """A run whose agent has learned on another network."""

    command_name: ClassVar[str] = "transfer"

    source: str = option("", "The run folder that the agent comes from.")
    freeze_encoder: bool = option(False, "Do not train the graph network any more.")
    zero_shot: bool = option(False, "Do not train at all: one plan, by the agent as it is.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_shot and (self.freeze_encoder or self.evaluations != 1):
            raise ValueError("zero_shot trains nothing: leave --freeze-encoder and evaluations out")

    def command(self) -> str:
        """The command line of this transfer."""
        words = ["compress-agents", "transfer", shlex.quote(self.source), "--to", self.env_id]
        for entry in fields(self):
            value = getattr(self, entry.name)
            chosen = entry.name in CHOSEN and value is not None
            if chosen and not (self.zero_shot and entry.name == "evaluations"):
                words.append(f"--{option_name(entry)} {shlex.quote(as_word(value))}")
        words += ["--freeze-encoder"] * self.freeze_encoder + ["--zero-shot"] * self.zero_shot
        return " ".join(words)

    def default_run_dir(self) -> str:
        """Where the run is kept unless told otherwise."""
        how = "-zero-shot" if self.zero_shot else "-frozen" if self.freeze_encoder else ""
        return f"{super().default_run_dir()}-from-{Path(self.source).resolve().name}{how}"


def transfer_config(
    source: Path,
    env_id: str,
    freeze_encoder: bool = False,
    zero_shot: bool = False,
    **chosen: Any,
) -> TransferConfig:
    """The options of a transfer.

    Args:
        source: the run folder that the agent comes from.
        env_id: Gymnasium id of the other environment.
        freeze_encoder: do not train the graph network.
        zero_shot: train nothing.
        **chosen: by `CHOSEN`; None: as in the other run, or as the environment has it.

    Raises:
        ValueError: there is no run, or an option is not allowed.
    """
    config = RunFolder(source).read_config()
    values: Mapping[str, Any] = {e.name: getattr(config, e.name) for e in fields(TrainingConfig)}
    if zero_shot:
        if chosen.get("evaluations") is not None:
            raise ValueError("evaluations: zero_shot takes one, leave it out")
        chosen = {**chosen, "evaluations": 1}
        values = {**values, "num_envs": 1}
    return TransferConfig(
        **{
            **values,
            **_NOT_INHERITED,
            **{name: value for name, value in chosen.items() if value is not None},
            "env_id": env_id,
            "source": str(source),
            "freeze_encoder": freeze_encoder,
            "zero_shot": zero_shot,
        }
    )
