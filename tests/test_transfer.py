"""Agents taken to another network: what goes along, what stays, and that it can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_networks import TinyClassifier
from stable_baselines3 import PPO
from test_agents import config
from test_training import Killed, assert_same_run, kill_after
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from compress_agents.cli import app
from compress_agents.runs import RunFolder
from compress_agents.training import open_run
from compress_agents.transfer import open_transfer, read_parameters
from compress_agents.transfer_config import transfer_config

pytestmark = pytest.mark.filterwarnings("ignore:no weights given")

runner = CliRunner()
OTHER = {"network": "test_transfer:Deeper", "data_root": None}


class Deeper(TinyClassifier):
    """One convolution more, and so other groups and a longer action."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.between(functional.relu(x + self.second(x))))
        return self.last(functional.relu(self.third(x)).mean((2, 3)))


def trained(agent: str, path: Path) -> Path:
    """A run that has learned a little."""
    options = {"observation": "layer"} if agent != "gnn-rl" else {}
    open_run(config(agent, 9, env_id="JointPruneQuant-v0", **options), str(path)).run()
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: trained(name, folder / name) for name in ("ppo", "ppo-node", "ppo-mlp", "gnn-rl")}


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return dict(PPO.load(folder.agent).policy.state_dict())


@pytest.mark.parametrize(("agent", "encoder"), [("ppo", "encoder"), ("gnn-rl", "mgnn")])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_graph_network_goes_along_and_heads_are_new(
    runs: dict[str, Path], tmp_path: Path, agent: str, encoder: str, frozen: bool
) -> None:
    options = transfer_config(runs[agent], "JointPruneQuant-v0", frozen, evaluations=10, **OTHER)
    run = open_transfer(options, str(tmp_path / "run"))
    before = {name: value.clone() for name, value in run.learner.policy.state_dict().items()}
    source = read_parameters(runs[agent])
    inherited = {name for name in before if encoder in name.split(".")}
    assert inherited
    for name, value in before.items():
        same = value.shape == source[name].shape and torch.equal(value, source[name])
        # Biases and the like begin as they always do, so only what went along is sure.
        assert same or name not in inherited, name
    assert not torch.equal(before["value_net.weight"], source["value_net.weight"])
    report = run.run()
    assert report["evaluations"] == 10
    after = weights(run.folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "action_net.weight" in moved
    assert bool(moved & inherited) != frozen


def test_the_node_wise_agent_goes_whole_and_proposes_a_plan_untrained(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    options = transfer_config(runs["ppo-node"], "JointPruneQuant-v0", zero_shot=True, **OTHER)
    run = open_transfer(options, str(tmp_path / "run"))
    source = read_parameters(runs["ppo-node"])
    own = run.learner.policy.state_dict()
    assert own.keys() == source.keys()
    assert all(torch.equal(own[name], source[name]) for name in own)
    report = run.run()
    assert report["evaluations"] == 1
    assert report["reduction"] >= options.target_reduction
    plan = run.folder.best_plan.read_bytes()
    assert b"between" in plan
    again = open_transfer(options, str(tmp_path / "again"))
    again.run()
    assert again.folder.best_plan.read_bytes() == plan


def test_a_killed_transfer_goes_on_frozen(runs: dict[str, Path], tmp_path: Path) -> None:
    options = transfer_config(runs["ppo"], "JointPruneQuant-v0", True, evaluations=13, **OTHER)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    open_transfer(options, str(whole.path)).run()
    with pytest.raises(Killed):
        open_transfer(options, str(killed.path)).run(kill_after(6))
    open_transfer(options, str(killed.path), resume=True).run()
    assert_same_run(whole, killed)
    assert killed.read_config() == options


def test_what_cannot_be_transferred_is_said_before_anything_is_written(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    to = ["--to", "JointPruneQuant-v0", "--network", OTHER["network"]]
    out = tmp_path / "run"
    for arguments, named in (
        ([runs["ppo-mlp"], *to], "graph network"),
        ([runs["ppo"], *to, "--zero-shot"], "ppo-node"),
        ([runs["ppo-node"], *to, "--zero-shot", "--freeze-encoder"], "zero_shot"),
        ([runs["ppo-node"], *to, "--zero-shot", "--evaluations", "3"], "evaluations"),
        ([runs["ppo"], "--to", "JointPruneQuant-v0,JointPruneQuant-VGG16-v0"], "to must be one"),
        ([runs["ppo"], "--to", "NoSuch-v0"], "env_id"),
        ([tmp_path, *to], "no run"),
    ):
        words = ["transfer", *map(str, arguments), "--run-dir", str(out)]
        result = runner.invoke(app, words)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.strip().splitlines()) == 1 and named in result.stderr
        assert not out.exists()


def test_the_command_lists_networks_beside_uniform_bits(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    words = ["transfer", str(runs["ppo-node"]), "--to", "JointPruneQuant-v0", "--network"]
    words += [str(OTHER["network"]), "--zero-shot", "--run-dir", str(tmp_path / "run")]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    report = RunFolder(tmp_path / "run").read_report()
    assert report is not None and "transfer" in report["command"]
    for name in ("reduction", "search_accuracy", "uniform_search_accuracy", "test_accuracy"):
        assert f"{report[name]:.2%}" in result.output
