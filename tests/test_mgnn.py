"""m-GNN: its message and readout, what it embeds how often, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from fake_graph_env import FakeGraphEnv
from small_networks import Between
from stable_baselines3 import DDPG, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from compress_agents.graph_networks.extractors import DGLFeaturesExtractor, FlatFeaturesExtractor
from compress_agents.graph_networks.mgnn import MGNN, MGNN_PRESET, MGNNFeaturesExtractor
from compress_agents.graph_networks.mgnn_stages import LearnedReadout, ProductConvolution
from compress_agents.graph_networks.node_actor import NodeFeaturesExtractor
from compress_env.complexity import ComplexityModel
from compress_env.dgl_import import dgl
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.observations import GraphArrays, ObservationContext, ObservedState
from compress_env.observations.arrays import pad
from compress_env.observations.hierarchical import SCHEMA, HierarchicalObservation
from compress_env.plan import CompressionPlan
from compress_env.spaces import GraphSpace, to_dgl
from compress_env.wrappers import PaddedGraph

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache
def traced(name: str) -> LayerGraph:
    return trace(build_network(name, 10), (3, 8, 8))


def random_plan(graph: LayerGraph, seed: int) -> CompressionPlan:
    rng = np.random.default_rng(seed)
    masks = [rng.random(group.size) < 0.6 for group in graph.groups]
    for mask in masks:
        mask[0] = True
    bits = rng.integers(2, 9, (2, len(graph.layers)))
    return CompressionPlan.of(graph, masks, *bits)


def observer_of(graph: LayerGraph) -> HierarchicalObservation:
    scores = np.random.default_rng(0).random(graph.atom_group.size)
    fixed = np.zeros(len(graph.layers), dtype=bool)
    context = ObservationContext(
        graph, ComplexityModel(graph), scores, scores, fixed, torch.empty(0, 3, 8, 8)
    )
    return HierarchicalObservation(context)


def observed(name: str, seed: int) -> GraphArrays:
    graph = traced(name)
    return observer_of(graph).observe(ObservedState(random_plan(graph, seed), 0.5, 0.9, 1.0))


def stack(
    graphs: list[GraphArrays], max_nodes: int = 160, max_edges: int = 170
) -> dict[str, Tensor]:
    """A batch as Stable-Baselines3 hands it to an extractor: float tensors."""
    padded = [pad(graph, max_nodes, max_edges, SCHEMA) for graph in graphs]
    return {key: torch.tensor(np.stack([one[key] for one in padded])).float() for key in padded[0]}


def test_message_is_the_product_of_node_and_edge() -> None:
    # 0 -> 1, 0 -> 2, 1 -> 2.
    graph = dgl.graph((torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])))
    convolve = ProductConvolution(3)
    nodes, edges = torch.randn(3, 3), torch.randn(3, 3)
    with torch.no_grad():
        found = convolve(graph, nodes, edges)
        d = [1, 2, 3]
        sums = [
            nodes[0] / d[0],
            nodes[0] * edges[0] / (d[0] * d[1]) ** 0.5 + nodes[1] / d[1],
            nodes[0] * edges[1] / (d[0] * d[2]) ** 0.5
            + nodes[1] * edges[2] / (d[1] * d[2]) ** 0.5
            + nodes[2] / d[2],
        ]
        weight, bias = convolve.linear.weight, convolve.linear.bias
        expected = torch.stack([torch.relu(weight @ total + bias) for total in sums])
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_readout_takes_pruned_nodes_as_zero() -> None:
    readout = LearnedReadout(4, 2)
    nodes, owner = torch.randn(5, 4), torch.tensor([1, 0, 1, 1, 0])
    kept = torch.tensor([1.0, 0.25, 0.0, 0.5, 1.0])
    with torch.no_grad():
        found = readout(nodes, owner, 2, kept.unsqueeze(1))
        for graph in (0, 1):
            members = nodes[owner == graph]
            share = torch.softmax(members @ readout.weight.weight[0], dim=0)
            total = (share * kept[owner == graph]) @ members
            expected = readout.linear.weight @ total + readout.linear.bias
            torch.testing.assert_close(found[graph], expected, **TOLERANCE)


def test_whole_network_equals_plain_tensors() -> None:
    """Both stages on a network of three layers, computed without graphs."""
    graph = trace(Between(nn.ReLU()).eval(), (3, 8, 8))
    observer = observer_of(graph)
    arrays = observer.observe(ObservedState(random_plan(graph, 1), 0.5, 0.9, 1.0))
    net = MGNN(hidden_dim=6, embedding_dim=5)

    def run(stage: nn.Module, nodes: Tensor, edges: Tensor, ends: Tensor, kept: Tensor) -> Tensor:
        d = torch.ones(len(nodes))
        for _, end in ends.T:
            d[end] += 1
        total = nodes / d[:, None]
        for index, (start, end) in enumerate(ends.T):
            total[end] = total[end] + nodes[start] * edges[index] / (d[start] * d[end]).sqrt()
        (convolve,) = stage.rounds
        hidden = torch.relu(convolve.linear(total))
        share = torch.softmax(hidden @ stage.readout.weight.weight[0], dim=0)
        return torch.relu(stage.readout.linear((share * kept) @ hidden))

    with torch.no_grad():
        features, edge_features = map(torch.tensor, (arrays.node_features, arrays.edge_features))
        ends, upper = torch.tensor(arrays.edges), torch.tensor(arrays.edge_types == 0)
        states, values = features[arrays.node_types == 0], features[arrays.node_types == 1]
        motifs = []
        for number, motif in enumerate(observer.hierarchy.motifs):
            mine = values[(values[:, 0] * 100).round() == number]
            first = int(np.flatnonzero((values[:, 0] * 100).round() == number)[0]) + len(states)
            inside = (ends[0] >= first) & (ends[0] < first + motif.size) & ~upper
            value = torch.relu(net.motifs.value(mine[:, 1:4]))
            operation = net.motifs.operation(edge_features[inside][:, :14])
            ones = torch.ones(len(mine))
            motifs.append(run(net.motifs.stage, value, operation, ends[:, inside] - first, ones))
        of_motif = net.motif(torch.stack(motifs))[(edge_features[upper][:, 0] * 100).round().long()]
        edge = of_motif + net.occurrence(edge_features[upper][:, 1:])
        node = torch.relu(net.state(states) + net.globals(torch.tensor(arrays.globals)))
        kept = (states[:, 6] + 1) / 2
        expected = run(net.stage, node, edge, ends[:, upper], kept)
        found = net(stack([arrays]))[0]
    assert 0 < kept.min() < 1
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("batch", [1, 4])
def test_every_motif_is_embedded_once(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, counts = MGNN(), []
    forward = net.motifs.forward

    def counted(graph: object, owner: Tensor, count: int) -> Tensor:
        counts.append(count)
        return forward(graph, owner, count)

    monkeypatch.setattr(net.motifs, "forward", counted)
    net(stack([observed("resnet20", seed) for seed in range(batch)]))
    assert counts == [5]  # for 12 occurrences in every network of the batch
    net(stack([observed("resnet20", 0), observed("mobilenet_v2", 0), observed("resnet20", 1)]))
    assert counts == [5, 5 + 8]


def test_batch_gives_what_single_networks_give() -> None:
    names = ["resnet20", "mobilenet_v2", "shufflenet_v1", "resnet20"]
    graphs = [observed(name, seed) for seed, name in enumerate(names)]
    net = MGNN(rounds=2)
    with torch.no_grad():
        together = net(stack(graphs))
        alone = torch.cat([net(stack([graph], 120, 150)) for graph in graphs])
    torch.testing.assert_close(together, alone, **TOLERANCE)
    assert torch.unique(together, dim=0).shape[0] == len(graphs)


def test_numbering_of_nodes_edges_and_motifs_does_not_matter() -> None:
    arrays = observed("shufflenet_v2", 0)
    rng = np.random.default_rng(0)
    types, kinds = arrays.node_types, arrays.edge_types
    order = np.concatenate([rng.permutation(np.flatnonzero(types == kind)) for kind in (0, 1)])
    edges = np.concatenate([rng.permutation(np.flatnonzero(kinds == kind)) for kind in (0, 1)])
    number = rng.permutation(6) / 100
    nodes, edge_features = arrays.node_features.copy(), arrays.edge_features.copy()
    values, motifs = types == 1, kinds == 0
    nodes[values, 0] = number[(nodes[values, 0] * 100).round().astype(int)]
    edge_features[motifs, 0] = number[(edge_features[motifs, 0] * 100).round().astype(int)]
    other = GraphArrays(
        nodes[order], np.argsort(order)[arrays.edges][:, edges], kinds, arrays.globals, types,
        edge_features[edges],
    )  # fmt: skip
    net = MGNN(rounds=2)
    with torch.no_grad():
        torch.testing.assert_close(net(stack([other])), net(stack([arrays])), **TOLERANCE)


def test_channels_and_bits_of_the_plan_reach_the_result() -> None:
    arrays = observed("resnet20", 0)
    net = MGNN()
    with torch.no_grad():
        result = net(stack([arrays]))
    for kind, column in (("state", "channels"), ("motif", "weight_bits")):
        if kind == "state":
            features = arrays.node_features.copy()
            features[5, SCHEMA.nodes[0].columns.index(column)] += 0.5
            changed = replace(arrays, node_features=features)
        else:
            features = arrays.edge_features.copy()
            features[5, SCHEMA.edges[0].columns.index(column)] += 0.5
            changed = replace(arrays, edge_features=features)
        with torch.no_grad():
            assert (net(stack([changed])) - result).abs().max() > 1e-5


def test_every_network_refuses_what_it_does_not_read() -> None:
    with pytest.raises(ValueError, match="hierarchical"):
        MGNNFeaturesExtractor(PaddedGraph(FakeGraphEnv()).observation_space)
    space = PaddedGraph(MatchChannels()).observation_space
    for extractor in (DGLFeaturesExtractor, NodeFeaturesExtractor):
        with pytest.raises(ValueError, match="observation must be 'layer'"):
            extractor(space)
    # A perceptron takes all numbers that there are.
    flat = FlatFeaturesExtractor(space, 7)
    observation, _ = PaddedGraph(MatchChannels()).reset(seed=0)
    batch = {key: torch.tensor(value).float().unsqueeze(0) for key, value in observation.items()}
    assert flat(batch).shape == (1, 7)
    with pytest.raises(ValueError, match="at least 1"):
        MGNN(rounds=0)


class MatchChannels(gym.Env):
    """One step: shown a random plan of three layers, say how much two of the states keep."""

    def __init__(self) -> None:
        self.graph = trace(Between(nn.ReLU()).eval(), (3, 8, 8))
        self.observer = observer_of(self.graph)
        self.rows = [1, 2]
        self.observation_space = GraphSpace.like(self._arrays(0), SCHEMA)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def _arrays(self, seed: int) -> GraphArrays:
        rng = np.random.default_rng(seed)
        masks = []
        for group in self.graph.groups:
            masks.append(np.arange(group.size) < rng.integers(1, group.size + 1))
        bits = np.full(len(self.graph.layers), 8)
        plan = CompressionPlan.of(self.graph, masks, bits, bits)
        return self.observer.observe(ObservedState(plan, 0.5, 0.9, 1.0))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        arrays = self._arrays(int(self.np_random.integers(1 << 30)))
        self.target = arrays.node_features[self.rows, 6]
        return to_dgl(arrays, SCHEMA), {}

    def step(self, action):
        reward = -float(np.abs(action - self.target).mean())
        observation, _ = self.reset()
        return observation, reward, True, False, {}


def rewards(agent: object, episodes: int = 40) -> float:
    env = PaddedGraph(MatchChannels())
    total = 0.0
    observation, _ = env.reset(seed=123)
    for _ in range(episodes):
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, *_ = env.step(action)
        total += reward
    return total / episodes


def test_ppo_learns_from_what_it_sees() -> None:
    preset = dict(MGNN_PRESET["ppo"])
    agent = PPO(
        "MultiInputPolicy", DummyVecEnv([lambda: PaddedGraph(MatchChannels())] * 20), seed=0,
        **{**preset, "learning_rate": 5e-3, "n_steps": 10, "n_epochs": 5, "ent_coef": 0.0},
    )  # fmt: skip
    before = rewards(agent)
    agent.learn(800)
    # An agent that does not see the states gets the reward of before, at best.
    assert rewards(agent) > before + 0.1


def test_ddpg_takes_the_preset() -> None:
    env = PaddedGraph(MatchChannels())
    agent = DDPG(
        "MultiInputPolicy", env, seed=0, learning_starts=8, batch_size=8, buffer_size=100,
        **MGNN_PRESET["ddpg"],
    )  # fmt: skip
    before = [value.clone() for value in agent.actor.parameters()]
    agent.learn(16)
    after = list(agent.actor.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert agent.actor.mu[0].in_features == 50
    assert agent.actor.mu[0].out_features == 200
