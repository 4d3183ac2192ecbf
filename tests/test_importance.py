"""Scores of channels, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import sample
from small_networks import EveryCoupling
from torch import nn
from torch.nn import functional

from compress_env.importance import IMPORTANCES, rank_channels
from compress_env.layer_graph import LayerGraph, trace

images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
labels = torch.tensor([0, 1, 0, 1, 2, 0])


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    torch.manual_seed(0)
    return trace(EveryCoupling(), (3, 8, 8))


def weight(graph: LayerGraph, name: str) -> torch.Tensor:
    return graph.module.get_submodule(name).weight.detach()


@pytest.mark.parametrize(
    ("name", "row_score"),
    [
        ("l1", lambda rows: rows.abs().sum(1)),
        ("l2", lambda rows: rows.square().sum(1).sqrt()),
        (
            "geometric_median",
            lambda rows: torch.stack([(rows - row).square().sum(1).sqrt().sum() for row in rows]),
        ),
    ],
)
def test_weight_criteria_sum_over_the_layers_of_a_group(graph, name, row_score) -> None:
    scores = IMPORTANCES[name](graph, images, labels)
    expected = torch.zeros(4)
    for layer in ("stem", "add", "depthwise"):  # each divided by its mean, so none outvotes
        score = row_score(weight(graph, layer).flatten(1))
        expected += score / score.mean()
    stem = graph.layers[graph.layer_index["stem"]].out_atoms
    assert scores[stem] == pytest.approx(expected.numpy(), rel=1e-4)


def test_taylor_is_the_weights_times_their_gradients(graph: LayerGraph) -> None:
    network = EveryCoupling()
    network.load_state_dict(graph.module.state_dict())
    network.requires_grad_(False)
    network.side.weight.requires_grad_(True)
    functional.cross_entropy(network(images), labels).backward()
    change = (network.side.weight * network.side.weight.grad).flatten(1).sum(1).abs().detach()
    scores = IMPORTANCES["taylor"](graph, images, labels)
    side = graph.layers[graph.layer_index["side"]].out_atoms
    assert scores[side] == pytest.approx((change / change.mean()).numpy(), rel=1e-4)
    assert all(parameter.grad is None for parameter in graph.module.parameters())
    # It also works where the parameters ask for no gradient, and leaves them so.
    graph.module.requires_grad_(False)
    assert np.array_equal(IMPORTANCES["taylor"](graph, images, labels), scores)
    assert not any(parameter.requires_grad for parameter in graph.module.parameters())
    graph.module.requires_grad_(True)


def test_norm_scale_reads_the_norm_behind_the_layer(graph: LayerGraph) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    scales = torch.tensor([0.5, -2.0, 0.0, 1.5])
    with torch.no_grad():
        network[1].weight.copy_(scales)
    found = trace(network, (3, 8, 8))
    scores = IMPORTANCES["norm_scale"](found, images, labels)
    assert scores[found.layers[0].out_atoms].tolist() == [0.5, 2.0, 0.0, 1.5]
    with pytest.raises(ValueError, match="'norm_scale' needs BatchNorm"):
        IMPORTANCES["norm_scale"](graph, images, labels)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_every_criterion_orders_every_group(name: str) -> None:
    found = sample("resnet20")
    scores = IMPORTANCES[name](found.graph, found.images, labels[:2])
    again = IMPORTANCES[name](found.graph, found.images, labels[:2])
    assert np.array_equal(scores, again)
    assert np.isfinite(scores).all()
    ranks = rank_channels(found.graph, scores)
    for atoms in found.graph.group_atoms:
        assert sorted(ranks[atoms]) == list(range(atoms.size))
        if name != "random":
            assert scores[atoms].std() > 0
        assert np.all(np.diff(scores[atoms][np.argsort(ranks[atoms])]) <= 0)


def test_ranks_go_around_the_groups_of_a_grouped_convolution() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 2, 1)
    )
    graph = trace(network, (3, 4, 4))
    scores = np.arange(graph.atom_group.size, dtype=float)  # later channels are more important
    ranks = rank_channels(graph, scores)
    for atoms in (graph.layers[0].out_atoms, graph.layers[1].out_atoms):
        order = np.argsort(ranks[atoms])  # pairs (0 1) (2 3) (4 5): the best of each come first
        assert order.tolist() == [5, 3, 1, 4, 2, 0]
    assert graph.group_multiples.tolist() == [3, 3]
