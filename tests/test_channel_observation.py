"""Channels as nodes: mean activations, similarity, and what an agent is shown of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from samples import random_masks, sample
from scipy.special import softmax
from scipy.stats import entropy
from small_networks import EveryCoupling
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import nn

from compress_env.complexity import ComplexityModel
from compress_env.env import JointPruneQuantEnv
from compress_env.importance import rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.observations import GraphArrays, ObservationContext, ObservedState
from compress_env.observations.channel import NEIGHBOURS, ChannelObservation
from compress_env.observations.similarity import (
    SIMILARITIES,
    cosine_similarity,
    divergence_similarity,
    mean_activations,
    nearest,
)
from compress_env.plan import CompressionPlan
from compress_env.wrappers import GraphInstanceObservation, PaddedGraph

ID = "JointPruneQuant-ResNet20-v0"
SMALL = {"search_images": 60, "calibration_images": 16, "observation": "channel"}


def images(count: int, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def context(graph: LayerGraph, shown: torch.Tensor, step_mode: str = "layer") -> ObservationContext:
    scores = np.random.default_rng(0).random(graph.atom_group.size)
    fixed = np.zeros(len(graph.layers), dtype=bool)
    ranks = rank_channels(graph, scores)
    return ObservationContext(graph, ComplexityModel(graph), scores, ranks, fixed, shown, step_mode)


def state(graph: LayerGraph, kept: list[np.ndarray] | None = None, layer: int = -1) -> Any:
    bits = np.full(len(graph.layers), 32)
    masks = [np.ones(group.size, dtype=bool) for group in graph.groups] if kept is None else kept
    return ObservedState(CompressionPlan.of(graph, masks, bits, bits), 0.0, 0.5, 1.0, layer)


def columns(arrays: GraphArrays, *names: str) -> np.ndarray:
    all_names = ChannelObservation.schema.nodes[0].columns
    return arrays.node_features[:, [all_names.index(name) for name in names]]


def test_mean_activations_are_those_that_layers_read() -> None:
    network = EveryCoupling()
    graph = trace(network, (3, 8, 8))
    batch = images(70)  # more than pass through at once
    with torch.no_grad():
        stem = torch.relu(network.stem(batch))
        total = stem + network.add(stem)
        deep = network.depthwise(total)
        side = network.side(batch)
        made = network.filter(torch.cat([deep[:, 3:], side], 1))

    def units(*parts: torch.Tensor) -> np.ndarray:
        means = np.concatenate([part.double().numpy().mean((2, 3)) for part in parts], 1)
        return means / np.sqrt((means**2).mean())

    add, depthwise = units(stem), units(total)
    filter_, head = units(deep[:, 3:], side), units(deep[:, :3], made)
    found = mean_activations(graph, batch)
    by_name = dict(zip((layer.name for layer in graph.layers), graph.layers, strict=True))
    # Channels 0 to 2 of the stem are read by three layers; channel 3 and `side` by `filter`.
    stem_atoms = by_name["stem"].out_atoms
    expected = (add[:, :3] + depthwise[:, :3] + head[:, :3]) / 3
    np.testing.assert_allclose(found[stem_atoms[:3]], expected.T, atol=1e-6)
    expected = (add[:, 3] + depthwise[:, 3] + filter_[:, 0]) / 3
    np.testing.assert_allclose(found[stem_atoms[3]], expected, atol=1e-6)
    np.testing.assert_allclose(found[by_name["side"].out_atoms], filter_[:, 1:].T, atol=1e-6)
    np.testing.assert_allclose(found[by_name["filter"].out_atoms], head[:, 3:].T, atol=1e-6)


class ChannelsLast(nn.Module):
    """A linear layer at every position, called twice, as in networks with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.second = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_linear_layers_are_averaged_over_their_positions() -> None:
    network = ChannelsLast()
    graph = trace(network, (3, 8, 8))
    with torch.no_grad():
        means = network.first(images(5)).double().mean((2, 3)).numpy()
    expected = (means / np.sqrt((means**2).mean())).T
    found = mean_activations(graph, images(5))[graph.layers[0].out_atoms]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_similarities_by_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 9)), rng.normal(size=(5, 9))
    a[1] = 0.25  # a channel that says nothing
    for i, x in enumerate(a):
        p = softmax((x - x.mean()) / max(x.std(), 1e-6))
        for j, y in enumerate(b):
            q = softmax((y - y.mean()) / y.std())
            expected = np.exp(-(entropy(p, q) + entropy(q, p)) / 2)
            assert divergence_similarity(a, b)[i, j] == pytest.approx(expected)
            cosine = x @ y / np.sqrt((x @ x) * (y @ y))
            assert cosine_similarity(a, b)[i, j] == pytest.approx(cosine)
    # What the next layer makes up for does not count: scale, and for the divergence offset.
    np.testing.assert_allclose(np.diag(divergence_similarity(b, 3 * b + 1)), 1)
    np.testing.assert_allclose(np.diag(cosine_similarity(b, 3 * b)), 1)


@pytest.mark.parametrize("measure", SIMILARITIES)
@pytest.mark.parametrize("count", [2, 7, 600])
def test_nearest_against_a_plain_search(measure: str, count: int) -> None:
    profiles = np.random.default_rng(count).normal(size=(count, 12))
    found = nearest(profiles, 5, SIMILARITIES[measure])
    k = min(5, count - 1)
    assert found.indices.shape == found.similarity.shape == (count, k)
    for i in {0, count // 2, count - 1}:
        scores = [
            float(SIMILARITIES[measure](profiles[[i]], profiles[[j]])[0, 0]) for j in range(count)
        ]
        order = [j for j in sorted(range(count), key=lambda j: -scores[j]) if j != i][:k]
        assert found.indices[i].tolist() == order
        np.testing.assert_allclose(found.similarity[i], [scores[j] for j in order])


def test_a_channel_and_its_double_are_neighbours() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.Flatten(), nn.Linear(144, 2)
    )
    with torch.no_grad():
        network[0].weight[7] = 2 * network[0].weight[3]
        network[0].bias[7] = 2 * network[0].bias[3]
    graph = trace(network, (3, 8, 8))
    observed = ChannelObservation(context(graph, images(32)), neighbours=1)
    arrays = observed.observe(state(graph, layer=0))
    source, destination = arrays.edges
    assert source[destination == 7].tolist() == [3] and source[destination == 3].tolist() == [7]
    assert arrays.edge_features[[3, 7], 0] == pytest.approx(1.0)
    assert columns(arrays, "nearest_similarity")[[3, 7], 0] == pytest.approx(1.0)
    others = np.delete(arrays.edge_features[:, 0], [3, 7])
    assert (others < 0.999).all()


def test_edges_are_those_of_plain_numpy() -> None:
    """From activations to edges without any function of the package."""
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 9, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(324, 2),
    )  # fmt: skip
    graph, batch = trace(network, (3, 8, 8)), images(20)
    with torch.no_grad():
        first = network[:2](batch)
        made = [first.double().numpy(), network[2:4](first).double().numpy()]
    observation = ChannelObservation(context(graph, batch, "network"), neighbours=4)
    arrays = observation.observe(state(graph))
    expected, start = {}, 0
    for activations in made:
        means = activations.mean((2, 3)).T  # (channels, images)
        standard = (means - means.mean(1)[:, None]) / np.maximum(means.std(1)[:, None], 1e-6)
        p = softmax(standard, axis=1)
        for i in range(len(p)):
            others = [j for j in range(len(p)) if j != i]
            alike = {j: np.exp(-(entropy(p[i], p[j]) + entropy(p[j], p[i])) / 2) for j in others}
            for j in sorted(others, key=alike.__getitem__)[-4:]:
                expected[start + j, start + i] = alike[j]
        start += len(p)
    ends = zip(*arrays.edges.tolist(), strict=True)
    found = dict(zip(ends, arrays.edge_features[:, 0], strict=True))
    assert found.keys() == expected.keys()
    for edge, similarity in expected.items():
        assert found[edge] == pytest.approx(similarity, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v1"])
@pytest.mark.parametrize("step_mode", ["network", "layer"])
def test_graphs_of_all_kinds_of_networks(name: str, step_mode: str) -> None:
    known = sample(name)
    graph = known.graph
    observation = ChannelObservation(context(graph, known.images, step_mode))
    masks = random_masks(graph, "any share", 1)
    kept_atoms = state(graph, masks).plan.kept_atoms(graph)
    layers = range(len(graph.layers)) if step_mode == "layer" else [-1]
    most = observation.max_size or (graph.atom_group.size, graph.atom_group.size * NEIGHBOURS)
    shown = set()
    for layer in layers:
        arrays = observation.observe(state(graph, masks, layer))
        nodes, edges = len(arrays.node_features), arrays.edges.shape[1]
        assert 1 <= nodes <= most[0] and edges <= most[1]
        assert np.abs(arrays.node_features).max() <= 2 and np.isfinite(arrays.node_features).all()
        groups = (
            np.flatnonzero(graph.group_membership[:, layer])
            if layer >= 0
            else np.arange(len(graph.groups))
        )
        first = [graph.groups[group].layers[0] for group in groups]
        order = [g for _, g in sorted(zip([f != layer for f in first], groups, strict=True))]
        if layer < 0:
            order = groups.tolist()
        atoms = np.concatenate([*(graph.group_atoms[group] for group in order), []]).astype(int)
        if atoms.size == 0:
            assert nodes == 1 and edges == 0 and not columns(arrays, "is_kept").any()
            continue
        shown |= {*atoms.tolist()}
        # Node by node in the order of the action; removed channels are marked, not gone.
        assert np.array_equal(columns(arrays, "is_kept")[:, 0], kept_atoms[atoms])
        group_of = graph.atom_group[atoms]
        assert np.array_equal(group_of[arrays.edges[0]], group_of[arrays.edges[1]])
        assert (arrays.edges[0] != arrays.edges[1]).all()
        sizes = np.bincount(graph.atom_group[graph.atom_group >= 0])[group_of]
        into = np.bincount(arrays.edges[1], minlength=nodes)
        assert np.array_equal(into, np.minimum(sizes - 1, NEIGHBOURS))
        choosable = columns(arrays, "is_choosable")[:, 0]
        firsts = np.array([graph.groups[group].layers[0] for group in group_of])
        assert np.array_equal(choosable, (firsts == layer) | (layer < 0))
    assert len(shown) == (graph.atom_group >= 0).sum()


def test_current_columns_follow_the_plan_and_the_others_do_not() -> None:
    known = sample("resnet20")
    observation = ChannelObservation(context(known.graph, known.images, "network"))
    dense = observation.observe(state(known.graph))
    masks = random_masks(known.graph, "any share", 3)
    pruned = observation.observe(state(known.graph, masks))
    static = ChannelObservation.schema.nodes[0].columns[:14]
    assert np.array_equal(columns(dense, *static), columns(pruned, *static))
    assert np.array_equal(dense.edges, pruned.edges)
    kept = columns(pruned, "is_kept")[:, 0]
    assert np.array_equal(kept, np.concatenate(masks))
    for node in (0, 17, 333):
        near = pruned.edges[0, pruned.edges[1] == node]
        share = columns(pruned, "similar_kept")[node, 0]
        assert share == pytest.approx(2 * kept[near].mean() - 1)
    shares = np.concatenate([np.full(mask.size, 2 * mask.mean() - 1) for mask in masks])
    np.testing.assert_allclose(columns(pruned, "kept_ratio")[:, 0], shares, rtol=1e-6)


@pytest.mark.parametrize("mode", ["network", "layer"])
def test_environment_and_wrappers(mode: str) -> None:
    env = gym.make(ID, step_mode=mode, **SMALL)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(PaddedGraph(env), skip_render_check=True)
    instance, _ = GraphInstanceObservation(env).reset()
    graph, _ = env.reset()
    expected = (400, 3200) if mode == "network" else (16, 128)
    assert (graph.num_nodes("channel"), graph.num_edges("similar")) == expected
    assert len(instance.nodes) == expected[0]
    padded, _ = PaddedGraph(env).reset()
    most = (400, 3200) if mode == "network" else (64, 512)
    assert (len(padded["node_mask"]), len(padded["edge_mask"])) == most
    again, _ = gym.make(ID, step_mode=mode, **SMALL).reset()
    assert graph == again


@pytest.mark.parametrize(
    ("options", "message"),
    [({"neighbours": 0}, "neighbours must be at least 1"), ({"similarity": "l2"}, "divergence, ")],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    known = sample("resnet20")
    with pytest.raises(ValueError, match=message):
        ChannelObservation(context(known.graph, known.images), **options)
    with pytest.raises(ValueError, match="observation must be one of layer, "):
        JointPruneQuantEnv(observation="channels")
