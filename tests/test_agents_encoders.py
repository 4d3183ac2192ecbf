"""Batching, graph encoders, features extractors and the node-wise actor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from fake_graph_env import NUM_FEATURES, NUM_GLOBALS, FakeGraphEnv, chain, membership
from stable_baselines3 import PPO
from torch import Tensor

from compress_agents.graph_networks.batching import batch_graphs
from compress_agents.graph_networks.encoders import ENCODERS, GCN, build_encoder
from compress_agents.graph_networks.extractors import DGLFeaturesExtractor, FlatFeaturesExtractor
from compress_agents.graph_networks.node_actor import NodeActorCriticPolicy
from compress_env.dgl_import import dgl
from compress_env.observations.arrays import GraphArrays, pad
from compress_env.observations.schema import numbered_layer_schema
from compress_env.spaces import GraphSpace, to_dgl
from compress_env.wrappers import PaddedGraph

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make graphs this small many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stack(graphs: list[GraphArrays], max_nodes: int, max_edges: int) -> dict[str, Tensor]:
    """A batch as Stable-Baselines3 hands it to an extractor: float tensors."""
    padded = [pad(graph, max_nodes, max_edges) for graph in graphs]
    return {key: torch.tensor(np.stack([one[key] for one in padded])).float() for key in padded[0]}


def renumbered(arrays: GraphArrays, order: np.ndarray) -> GraphArrays:
    """The same graph with node ``order[i]`` at place i, and its edges shuffled."""
    place = np.argsort(order)
    shuffle = np.random.default_rng(1).permutation(arrays.edges.shape[1])
    return GraphArrays(
        arrays.node_features[order],
        place[arrays.edges][:, shuffle],
        arrays.edge_types[shuffle],
        arrays.globals,
    )


def extractor(name: str, space: gym.Space, **keywords: int) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"hidden_dim": 16}
    return DGLFeaturesExtractor(space, 8, encoder=name, encoder_kwargs=options, **keywords)


def padded_dict(num_nodes: int = 5) -> gym.Space:
    return PaddedGraph(FakeGraphEnv(num_nodes)).observation_space


def test_batching_equals_dgls_own() -> None:
    space = GraphSpace(numbered_layer_schema(3, 2), max_nodes=6, max_edges=9, seed=0)
    graphs = [space.sample() for _ in range(12)]
    arrays = [sample for graph in graphs for sample in space.to_jsonable([graph])]
    padded = stack(
        [
            GraphArrays(
                np.array(one["node_features"], np.float32),
                np.array(one["edges"], np.int64).reshape(2, -1),
                np.array(one["edge_types"], np.int64),
                np.array(one["globals"], np.float32),
            )
            for one in arrays
        ],
        max_nodes=8,
        max_edges=11,
    )
    mine, expected = batch_graphs(padded), dgl.batch(graphs)
    assert mine.batch_size == expected.batch_size
    assert mine.canonical_etypes == expected.canonical_etypes
    for name in expected.ntypes:
        assert torch.equal(mine.nodes[name].data["features"], expected.nodes[name].data["features"])
        assert torch.equal(mine.batch_num_nodes(name), expected.batch_num_nodes(name))
    for name in expected.canonical_etypes:
        assert torch.equal(mine.batch_num_edges(name), expected.batch_num_edges(name))
        for ours, theirs in zip(mine.edges(etype=name), expected.edges(etype=name), strict=True):
            assert torch.equal(ours, theirs)


def test_batching_takes_padding_anywhere() -> None:
    observation = stack([chain(3)], 4, 5)
    # The same graph with its free place first instead of last.
    shifted = dict(observation)
    shifted["node_mask"] = observation["node_mask"].roll(1, dims=1)
    shifted["node_features"] = observation["node_features"].roll(NUM_FEATURES, dims=1)
    shifted["edges"] = observation["edges"] + 1
    first, second = batch_graphs(observation), batch_graphs(shifted)
    for name in first.canonical_etypes:
        for ours, theirs in zip(first.edges(etype=name), second.edges(etype=name), strict=True):
            assert torch.equal(ours, theirs)


def test_gcn_equals_dense_matrices() -> None:
    arrays = chain(5)
    encoder = GCN(NUM_FEATURES, NUM_GLOBALS, hidden_dim=6, num_layers=2)
    adjacency = torch.eye(5)
    for kind, source, destination in zip(arrays.edge_types, *arrays.edges, strict=True):
        adjacency[destination, source] += 1
        if kind == 0:
            adjacency[source, destination] += 1
    scale = adjacency.sum(1) ** -0.5
    normalized = scale[:, None] * adjacency * scale
    hidden = torch.relu(
        encoder.node_input(torch.tensor(arrays.node_features))
        + encoder.global_input(torch.tensor(arrays.globals))
    )
    for layer in encoder.layers:
        hidden = torch.relu(normalized @ hidden @ layer.weight + layer.bias)
    torch.testing.assert_close(encoder(to_dgl(arrays)), hidden, **TOLERANCE)


def test_typed_message_passing_equals_dense_matrices() -> None:
    arrays = chain(5)
    encoder = build_encoder("typed", NUM_FEATURES, NUM_GLOBALS, hidden_dim=6, num_layers=2)
    sums = torch.zeros(3, 5, 5)
    for kind, source, destination in zip(arrays.edge_types, *arrays.edges, strict=True):
        sums[2 if kind else 0, destination, source] += 1
        if kind == 0:
            sums[1, source, destination] += 1
    means = sums / sums.sum(2, keepdim=True).clamp(min=1)
    hidden = torch.relu(
        encoder.node_input(torch.tensor(arrays.node_features))
        + encoder.global_input(torch.tensor(arrays.globals))
    )
    for layer, norm in zip(encoder.layers, encoder.norms, strict=True):
        weights = layer.weight.chunk(4, dim=1)
        update = hidden @ weights[0].T + layer.bias
        for kind in range(3):
            update = update + means[kind] @ hidden @ weights[kind + 1].T
        hidden = norm(hidden + torch.relu(update))
    torch.testing.assert_close(encoder(to_dgl(arrays)), hidden, **TOLERANCE)


def test_gat_equals_dense_matrices() -> None:
    arrays = chain(5)
    encoder = build_encoder(
        "gat", NUM_FEATURES, NUM_GLOBALS, hidden_dim=6, num_layers=2, num_heads=2
    )
    pairs = [(node, node) for node in range(5)]  # (source, destination)
    for kind, *ends in zip(arrays.edge_types, *arrays.edges, strict=True):
        pairs += [tuple(ends), tuple(ends[::-1])] if kind == 0 else [tuple(ends)]
    hidden = torch.relu(
        encoder.node_input(torch.tensor(arrays.node_features))
        + encoder.global_input(torch.tensor(arrays.globals))
    )
    for layer in encoder.layers:
        projected = layer.fc(hidden).reshape(5, 2, 3)
        left, right = (projected * layer.attn_l).sum(2), (projected * layer.attn_r).sum(2)
        heads = []
        for node in range(5):
            sources = [source for source, destination in pairs if destination == node]
            scores = torch.nn.functional.leaky_relu(left[sources] + right[node], 0.2)
            share = torch.softmax(scores, dim=0)
            heads.append((share[:, :, None] * projected[sources]).sum(0))
        # In DGL the residual is the input itself where the sizes are equal.
        update = torch.stack(heads).flatten(1) + layer.bias + hidden
        hidden = torch.nn.functional.elu(update)
    torch.testing.assert_close(encoder(to_dgl(arrays)), hidden, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_extractor_ignores_numbering_padding_and_neighbours_in_the_batch(name: str) -> None:
    graphs = [chain(size, seed=size) for size in (5, 3, 1, 4)]
    module = extractor(name, padded_dict())
    together = module(stack(graphs, 5, 8))
    order = np.array([3, 0, 4, 1, 2])
    other = [renumbered(graphs[0], order), *graphs[1:]]
    torch.testing.assert_close(module(stack(other, 5, 8)), together, **TOLERANCE)
    torch.testing.assert_close(module(stack(graphs, 11, 30)), together, **TOLERANCE)
    single = torch.cat([module(stack([graph], 5, 8)) for graph in graphs])
    torch.testing.assert_close(single, together, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_extractor_sees_edges_and_globals(name: str) -> None:
    module = extractor(name, padded_dict())
    graph = chain(5)
    base = module(stack([graph], 5, 8))
    edges = graph.edges.copy()
    edges[1, 0] = 4
    rewired = GraphArrays(graph.node_features, edges, graph.edge_types, graph.globals)
    shifted = GraphArrays(graph.node_features, graph.edges, graph.edge_types, graph.globals + 1)
    for other in (rewired, shifted):
        assert not torch.allclose(module(stack([other], 5, 8)), base, atol=1e-4)


def test_edge_types_matter_to_typed_message_passing() -> None:
    module = extractor("typed", padded_dict())
    graph = chain(5)
    swapped = GraphArrays(graph.node_features, graph.edges, 1 - graph.edge_types, graph.globals)
    assert not torch.allclose(module(stack([graph], 5, 8)), module(stack([swapped], 5, 8)))


def test_node_values_follow_the_numbering() -> None:
    module = extractor("typed", padded_dict(), node_values=2)
    graph = chain(5)
    other = renumbered(graph, np.array([1, 0, 2, 3, 4]))
    assert not torch.allclose(module(stack([graph], 5, 8)), module(stack([other], 5, 8)))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="encoder must be one of gat, gcn, typed"):
        build_encoder("transformer", 4, 2)
    with pytest.raises(ValueError, match="num_heads must divide"):
        build_encoder("gat", 4, 2, hidden_dim=6, num_heads=4)
    with pytest.raises(ValueError, match="PaddedGraph"):
        DGLFeaturesExtractor(FakeGraphEnv().observation_space)


def agent(policy: object, num_nodes: int = 5, **keywords: object) -> PPO:
    env = PaddedGraph(FakeGraphEnv(num_nodes))
    return PPO(policy, env, n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu", **keywords)


@pytest.mark.parametrize("encoder", [*sorted(ENCODERS), "flat"])
def test_extractor_weights_move_in_training(encoder: str) -> None:
    if encoder == "flat":
        options = {"features_extractor_class": FlatFeaturesExtractor}
    else:
        options = {
            "features_extractor_class": DGLFeaturesExtractor,
            "features_extractor_kwargs": {"encoder": encoder},
        }
    ppo = agent("MultiInputPolicy", policy_kwargs=options)
    before = {key: value.clone() for key, value in ppo.policy.features_extractor.named_parameters()}
    ppo.learn(32)
    for key, value in ppo.policy.features_extractor.named_parameters():
        assert not torch.equal(before[key], value), key


def node_actor_means(ppo: PPO, observation: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return ppo.policy.get_distribution(observation).distribution.mean


def with_groups(observation: dict[str, Tensor], groups: np.ndarray) -> dict[str, Tensor]:
    batch, max_nodes = observation["node_mask"].shape
    padded = torch.zeros(batch, len(groups) + 1, max_nodes)
    padded[:, : len(groups), : groups.shape[1]] = torch.tensor(groups).float()
    mask = torch.ones(batch, len(groups) + 1)
    mask[:, -1] = 0
    return {**observation, "group_layers": padded.flatten(1), "group_mask": mask}


def test_node_actor_follows_renumbering_and_ignores_padding() -> None:
    ppo = agent(NodeActorCriticPolicy)
    with torch.no_grad():
        for head in (ppo.policy.action_net.group_head, ppo.policy.action_net.layer_head):
            head[-1].weight.mul_(100)  # Initial means are too small to tell apart.
    graph, order, groups = chain(5), np.array([3, 0, 4, 1, 2]), membership(5)
    plain = with_groups(stack([graph, chain(5, seed=2)], 5, 8), groups)
    means = node_actor_means(ppo, plain)
    assert means.shape == (2, 3 + 2 * 5)
    assert len(set(means[0].round(decimals=5).tolist())) == 13
    values = ppo.policy.predict_values(plain)

    other = stack([renumbered(graph, order), renumbered(chain(5, seed=2), order)], 9, 20)
    other = with_groups(other, groups[[2, 0, 1]][:, order])
    moved = node_actor_means(ppo, other)
    torch.testing.assert_close(moved[:, :3], means[:, [2, 0, 1]], **TOLERANCE)
    expected = means[:, 3:].reshape(2, 5, 2)[:, order].flatten(1)
    torch.testing.assert_close(moved[:, 3:], expected, **TOLERANCE)
    torch.testing.assert_close(ppo.policy.predict_values(other), values, **TOLERANCE)
    with pytest.raises(ValueError, match=r"groups \+ 2 \* layers = 13"):
        node_actor_means(ppo, with_groups(stack([chain(4)], 5, 8), membership(4)))


def test_node_actor_starts_at_zero_with_three_standard_deviations() -> None:
    ppo = agent(NodeActorCriticPolicy, policy_kwargs={"log_std_init": -2.0})
    observation, _ = PaddedGraph(FakeGraphEnv()).reset(seed=0)
    batch = {key: torch.tensor(value).float()[None] for key, value in observation.items()}
    with torch.no_grad():
        ppo.policy.log_std += torch.tensor([0.0, 1.0, 2.0])
        distribution = ppo.policy.get_distribution(batch).distribution
    assert distribution.mean.abs().max() < 0.05
    expected = torch.tensor([-2.0] * 3 + [-1.0, 0.0] * 5).exp()
    torch.testing.assert_close(distribution.stddev[0], expected)


def test_node_actor_decides_the_marked_layer() -> None:
    class LayerByLayer(FakeGraphEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    env = PaddedGraph(LayerByLayer())
    ppo = PPO(
        NodeActorCriticPolicy, env, n_steps=8, batch_size=8, policy_kwargs={"decision_column": 1}
    )
    graph = chain(5)
    graph.node_features[:, 1] = [0, 0, 0, 1, 0]
    means = node_actor_means(
        ppo, stack([graph, renumbered(graph, np.array([4, 3, 2, 1, 0]))], 7, 9)
    )
    assert means.shape == (2, 3)
    torch.testing.assert_close(means[0], means[1], **TOLERANCE)
    ppo.learn(8)


def test_node_actor_trains_saves_and_moves_to_another_depth(tmp_path: Path) -> None:
    options = {"features_extractor_kwargs": {"encoder": "gcn"}}
    ppo = agent(NodeActorCriticPolicy, policy_kwargs=options)
    before = {key: value.clone() for key, value in ppo.policy.named_parameters()}
    ppo.learn(32)
    assert all(not torch.equal(before[key], value) for key, value in ppo.policy.named_parameters())

    ppo.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip")
    observation, _ = PaddedGraph(FakeGraphEnv()).reset(seed=1)
    action, _ = ppo.predict(observation, deterministic=True)
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], action)

    deeper = agent(NodeActorCriticPolicy, num_nodes=9, policy_kwargs=options)
    deeper.policy.load_state_dict(ppo.policy.state_dict())
    observation, _ = PaddedGraph(FakeGraphEnv(9)).reset(seed=1)
    assert deeper.predict(observation)[0].shape == (5 + 2 * 9,)


@pytest.mark.slow
def test_node_actor_learns() -> None:
    ppo = PPO(
        NodeActorCriticPolicy,
        PaddedGraph(FakeGraphEnv()),
        n_steps=128,
        learning_rate=3e-3,
        gamma=0.0,
        seed=0,
        device="cpu",
    )

    def mean_reward() -> float:
        env = PaddedGraph(FakeGraphEnv())
        observation, _ = env.reset(seed=7)
        rewards = []
        for _ in range(100):
            action, _ = ppo.predict(observation, deterministic=True)
            observation, reward, terminated, _, _ = env.step(action)
            rewards.append(float(reward))
            if terminated:
                observation, _ = env.reset()
        return float(np.mean(rewards))

    before = mean_reward()
    ppo.learn(4000)
    assert mean_reward() > 0.6 * before
