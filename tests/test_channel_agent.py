"""The GCN agents that choose channels: what they compute, and that they learn."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_agents.agents import build_agent
from compress_agents.agents.channel_agent import ChannelAgent
from compress_agents.graph_networks.channel_gcn import ChannelGCN
from compress_env.env import Appraisal, JointPruneQuantEnv
from compress_env.graphs import FEATURES, ObservationGraph, to_dgl
from compress_env.observations import GraphArrays
from compress_env.observations.channel import SCHEMA
from compress_env.plan import CompressionPlan

SMALL = {"search_images": 20, "calibration_images": 16}
PRUNING = {"metric": "macs", "bits": [32], "target_reduction": 0.5}


def random_graph(nodes: int = 7, edges: int = 20, seed: int = 0) -> GraphArrays:
    rng = np.random.default_rng(seed)
    return GraphArrays(
        node_features=rng.normal(size=(nodes, SCHEMA.node_width)).astype(np.float32),
        edges=rng.integers(0, nodes, (2, edges)),
        edge_types=np.zeros(edges, np.int64),
        globals=rng.normal(size=len(SCHEMA.globals)).astype(np.float32),
        edge_features=rng.random((edges, 1)).astype(np.float32),
    )


def lively(network: nn.Module) -> nn.Module:
    """With parameters that matter; an untrained network says zero to everything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return network


def test_network_by_definition() -> None:
    arrays = random_graph()
    network = lively(ChannelGCN(hidden_dim=5, num_layers=2))
    assert isinstance(network, ChannelGCN)
    nodes = len(arrays.node_features)

    def normed(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-6)

    def numbers(parameter: Tensor) -> np.ndarray:
        return parameter.detach().numpy()

    features = arrays.node_features
    columns = np.concatenate([features, normed(features), np.tile(arrays.globals, (nodes, 1))], 1)
    weights, edges = np.eye(nodes), np.eye(nodes)
    for source, target, similarity in zip(*arrays.edges, arrays.edge_features[:, 0], strict=True):
        weights[target, source] += similarity
        edges[target, source] += 1
    scaled = weights / np.sqrt(np.outer(edges.sum(1), edges.sum(0)))

    def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ numbers(layer.weight).T + numbers(layer.bias)

    first = hidden = np.maximum(linear(network.node_input, columns), 0)
    for convolution in network.convolutions:
        hidden = scaled @ hidden @ numbers(convolution.weight) + numbers(convolution.bias)
        hidden = np.maximum(hidden, 0)
    both = np.concatenate([first, hidden], axis=1)
    odds, bits = network(to_dgl(arrays, SCHEMA))
    of_graph = linear(network.graph_head, both.mean(0))
    expected = normed(both) @ numbers(network.channel_head.weight)[0] + of_graph[0]
    np.testing.assert_allclose(numbers(odds), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(numbers(bits)[0], of_graph[1:], rtol=1e-4, atol=1e-5)


def test_odds_follow_a_renumbering_and_bits_do_not_change() -> None:
    arrays, network = random_graph(), lively(ChannelGCN())
    order = np.random.default_rng(1).permutation(len(arrays.node_features))
    place = np.argsort(order)
    renumbered = GraphArrays(
        arrays.node_features[order], place[arrays.edges], arrays.edge_types, arrays.globals,
        edge_features=arrays.edge_features,
    )  # fmt: skip
    odds, bits = network(to_dgl(arrays, SCHEMA))
    odds_again, bits_again = network(to_dgl(renumbered, SCHEMA))
    torch.testing.assert_close(odds[torch.from_numpy(order)], odds_again)
    torch.testing.assert_close(bits, bits_again)
    assert odds.std() > 0.1


class Small(nn.Module):
    """Two convolutions of eight channels and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Paying(gym.Wrapper[ObservationGraph, np.ndarray, ObservationGraph, np.ndarray]):
    """Pays for plans what a function says, and notes what was paid."""

    def __init__(self, pay: Any, **options: Any) -> None:
        torch.manual_seed(0)
        env = JointPruneQuantEnv(Small(), **SMALL, **ChannelAgent.environment, **options)
        super().__init__(env)
        env.appraise = lambda plan: Appraisal(pay(plan), 0.0)
        self.paid: list[float] = []
        self.last_plan: CompressionPlan | None = None

    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        if result[2] or result[3]:
            self.paid.append(float(result[1]))
            self.last_plan = result[4]["plan"]
        return result


WANTED = (
    np.array([1, 0, 1, 1, 0, 0, 1, 0], dtype=bool), np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype=bool)
)  # fmt: skip


def agreement(plan: CompressionPlan) -> float:
    return float((np.concatenate(plan.kept) == np.concatenate(WANTED)).mean())


def test_it_learns_which_channels_to_keep() -> None:
    env = Paying(agreement, **PRUNING)
    ChannelAgent(prior=0.0).search(env, 0, 400)
    assert len(env.paid) == 400
    assert np.mean(env.paid[:50]) < 0.65  # half of them are right by chance
    assert np.mean(env.paid[-50:]) > 0.8
    # What it says without draws.
    assert env.paid[-1] >= 14 / 16


def test_one_network_learns_what_makes_channels_of_all_layers_worth_keeping() -> None:
    def least_important(plan: CompressionPlan) -> float:
        wanted = [ranks[atoms] >= 4 for atoms in env.unwrapped.task.graph.group_atoms]
        return float((np.concatenate(plan.kept) == np.concatenate(wanted)).mean())

    env = Paying(least_important, **PRUNING)
    ranks = env.unwrapped.task.ranks
    ChannelAgent(prior=0.0, shared=True).search(env, 0, 150)
    assert env.paid[-1] >= 14 / 16


def test_it_learns_bits() -> None:
    def pay(plan: CompressionPlan) -> float:
        # High for weights, low for activations; pruning neither helps nor harms.
        return float(plan.weight_bits.mean() - plan.activation_bits.mean()) / 8

    env = Paying(pay, target_reduction=0.9, first_last_bits=None)
    ChannelAgent(bits_std=0.2).search(env, 0, 150)
    assert env.paid[-1] > np.mean(env.paid[:20]) + 0.2


def test_before_learning_it_does_what_the_base_plan_does() -> None:
    env = Paying(agreement, **PRUNING)
    agent = ChannelAgent()
    agent.prepare(env.unwrapped.decoder, 0)
    agent.play(env, draw=False)
    assert env.last_plan == env.unwrapped.decoder.plan(env.unwrapped.decoder.base)
    # Draws differ from it in one channel of eight or nine.
    base = np.concatenate(env.last_plan.kept)
    drawn = [agent.play(env)[0] for _ in range(60)]
    keep = np.stack([torch.cat([step.keep for step in steps]).numpy() for steps in drawn])
    expected = 1 / (1 + np.exp(agent.prior))
    assert np.mean(keep != base) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("shared", [False, True])
def test_a_seed_repeats(shared: bool) -> None:
    def rewards(seed: int) -> list[float]:
        env = Paying(agreement, target_reduction=0.9)
        ChannelAgent(shared=shared, episodes=3).search(env, seed, 12)
        return env.paid

    assert rewards(0) == rewards(0) != rewards(1)


def test_it_is_an_agent_by_name_and_its_weights_are_saved(tmp_path: Any) -> None:
    agent = build_agent("channel-gcn", {"episodes": 2, "hidden_dim": 4})
    assert isinstance(agent, ChannelAgent) and not agent.shared
    env = Paying(agreement, **PRUNING)
    agent.search(env, 0, 4)
    agent.save(tmp_path / "agent.pt")
    weights = torch.load(tmp_path / "agent.pt", weights_only=True)
    assert len({name.split(".")[0] for name in weights}) == 3  # one network per layer
    assert env.observation_space.contains(env.reset()[0])
    assert env.reset()[0].nodes["channel"].data[FEATURES].shape == (8, SCHEMA.node_width)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 1}, "episodes must be at least 2"),
        ({"learning_rate": -0.1}, "learning_rate must be at least 0"),
        ({"bits_std": 0.0}, "bits_std must be above 0"),
        ({"prior": -1.0}, "prior and entropy must be at least 0"),
        ({"hidden_dim": 0}, "hidden_dim and num_layers must be at least 1"),
        ({"shared": "yes"}, "shared must be True or False"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChannelAgent(**settings)


class Noting(gym.Wrapper[Any, Any, Any, Any]):
    """Notes what episodes are paid."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.paid: list[float] = []

    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        if result[2] or result[3]:
            self.paid.append(float(result[1]))
        return result


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_beats_random_choice_on_the_digits() -> None:
    task = {**PRUNING, **ChannelAgent.environment, "reward": "accuracy_and_divergence"}
    env = JointPruneQuantEnv("resnet20", **task)

    def rewards(**settings: float) -> list[float]:
        noting = Noting(env)
        ChannelAgent(**settings).search(noting, 0, 150)
        return noting.paid

    learned = rewards()
    around_the_base_plan = rewards(learning_rate=0.0)
    anywhere = rewards(learning_rate=0.0, prior=0.0)
    for drawn in (around_the_base_plan, anywhere):
        assert max(learned) > max(drawn) + 0.02
        assert np.mean(learned[-50:]) > np.mean(drawn) + 0.1
