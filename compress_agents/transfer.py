"""Agents that go on with what they have learned on another network.

GNN-RL's experiment (Yu et al., ICML 2022, section 4.4 there): train on ResNet-56, keep the graph
network, learn the rest on ResNet-44. An agent whose weights fit any network, the node-wise one, is
transferred whole, and can do without training.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file
from torch import Tensor

from compress_agents.agents import build_agent
from compress_agents.agents.ppo import PPOAgent
from compress_agents.runs import RunFolder
from compress_agents.training import Training
from compress_agents.transfer_config import TransferConfig

__all__ = ["Inheritance", "open_transfer", "read_parameters", "zero_shot_table"]


@dataclass(frozen=True)
class Inheritance:
    """Gives an untrained agent the weights of a trained one.

    All of them where they fit. Where the size of something depends on the network, the graph
    network's only: what reads it out, and the heads, are as they were initialised.

    Attributes:
        parameters: the state dict of the trained actor-critic.
        encoder: name of the module that is the graph network.
        freeze: whether the graph network is not to be trained.
        whole: whether everything has to fit.
    """

    parameters: Mapping[str, Tensor]
    encoder: str
    freeze: bool = False
    whole: bool = False

    def __call__(self, learner: PPO) -> None:
        """Give the weights to an agent.

        Raises:
            ValueError: they do not fit.
        """
        own = learner.policy.state_dict()
        encoder = {name for name in own if self._is_encoder(name)}
        if self.freeze and not encoder:
            raise ValueError("freeze_encoder: this agent has no graph network")
        if own.keys() != self.parameters.keys() or self._misfits(own, own):
            self._check_partly(own, encoder)
            inherited = {name: self.parameters[name] for name in encoder}
        else:
            inherited = dict(self.parameters)
        learner.policy.load_state_dict({**own, **inherited})
        if self.freeze:
            for name, parameter in learner.policy.named_parameters():
                if self._is_encoder(name):
                    parameter.requires_grad_(False)

    def _is_encoder(self, name: str) -> bool:
        return self.encoder in name.split(".")

    def _misfits(self, own: Mapping[str, Tensor], names: Any) -> list[str]:
        return sorted(
            name
            for name in names
            if name not in self.parameters or self.parameters[name].shape != own[name].shape
        )

    def _check_partly(self, own: Mapping[str, Tensor], encoder: set[str]) -> None:
        misfits = self._misfits(own, own)
        if self.whole:
            raise ValueError(
                "zero_shot takes an agent whose weights fit any network, such as ppo-node; here "
                f"{misfits[0] if misfits else 'the heads'} depends on the network"
            )
        if not encoder:
            raise ValueError(
                "run: this agent has no graph network, and its weights fit no other network"
            )
        wrong = self._misfits(own, encoder)
        if wrong:
            raise ValueError(f"run: the graph network there is another one: {wrong[0]} differs")


def read_parameters(run: Path) -> Mapping[str, Tensor]:
    """The state dict of a run's actor-critic.

    Raises:
        ValueError: the run has kept no agent.
    """
    path = RunFolder(run).agent
    if not path.is_file():
        raise ValueError(
            f"run: {run} has no {path.name}; the first update writes it, so train for longer"
        )
    try:
        _, parameters, _ = load_from_zip_file(path, device="cpu", load_data=False)
        policy: Any = parameters["policy"]
    except (KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"run: {path} is not readable: {error}") from error
    return dict(policy)


def open_transfer(
    config: TransferConfig, run_dir: str | None = None, resume: bool = False
) -> Training:
    """A run that begins with the agent of another one.

    Args:
        config: the options.
        run_dir: the run folder; None: `TransferConfig.default_run_dir`.
        resume: go on with the run in the folder.

    Raises:
        ValueError: an option is not allowed, the weights do not fit, or the folder holds another
            run.
        OSError: a file cannot be read or written.
    """
    agent = build_agent(config.agent, config.settings())
    if not isinstance(agent, PPOAgent):
        raise ValueError(f"run: its agent must be one of PPO's, not '{config.agent}'")
    agent.prepare = Inheritance(
        read_parameters(Path(config.source)),
        agent.encoder_module,
        config.freeze_encoder,
        config.zero_shot,
    )
    return Training(config, run_dir, resume, agent)


def zero_shot_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """What an agent proposes for networks that it has not seen, beside uniform bits."""
    table = Table(title="Plans without training", title_justify="left")
    for column in ("network", "reduction", "split", "dense", "uniform", "agent"):
        table.add_column(column, justify="left" if column in ("network", "split") else "right")
    for report in reports:
        for split, dense in (("search", "dense_search"), ("test", "baseline_test")):
            first = split == "search"
            accuracies = [report[f"{name}_accuracy"] for name in (dense, f"uniform_{split}", split)]
            table.add_row(
                report["network"] if first else "",
                f"{report['reduction']:.2%}" if first else "",
                split,
                *(f"{value:.2%}" for value in accuracies),
            )
    return table
