"""Removing channels for real: the smaller network is the dense one whose layers see zeros."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    STYLES,
    assert_close,
    every_network,
    float_plan,
    outputs,
    random_masks,
    sample,
    zeroed,
)
from small_networks import EveryCoupling
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import LayerGraph, trace
from compress_env.pruning import prune

seeds = st.integers(0, 2**32 - 1)


def count(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """MACs by PyTorch's own counter, and parameters."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2, sum(p.numel() for p in network.parameters())


@every_network
@settings(max_examples=3)
@given(style=st.sampled_from(STYLES), seed=seeds)
def test_pruned_network_is_the_dense_one_with_zeros_and_costs_what_is_counted(
    name: str, style: str, seed: int
) -> None:
    found = sample(name)
    plan = float_plan(found.graph, random_masks(found.graph, style, seed))
    kept = plan.kept_atoms(found.graph)
    pruned = prune(found.graph, kept)
    expected = outputs(zeroed(found.network, found.graph, kept), found.images)
    assert_close(outputs(pruned, found.images), expected, 1e-4)
    cost = ComplexityModel(found.graph).of_plan(found.graph, plan)
    assert (cost.macs, cost.params) == count(pruned, found.images[:1])
    assert cost.size_bits == 32 * cost.params
    assert cost.bops == 32 * 32 * cost.macs


def dense_atoms(dense: LayerGraph, kept: np.ndarray, pruned: LayerGraph) -> list[np.ndarray]:
    """Pairs (atom of the pruned network, atom of the dense one), found by module and position."""
    pairs = []
    for layer in pruned.layers:
        if layer.name in dense.layer_index:  # else a part of a grouped convolution
            twin = dense.layers[dense.layer_index[layer.name]]
            for mine, theirs in (
                (layer.in_atoms, twin.in_atoms),
                (layer.out_atoms, twin.out_atoms),
            ):
                pairs.append(np.stack([mine, theirs[kept[theirs]]]))
    for name, theirs in dense.channels.items():
        if name in pruned.channels:
            pairs.append(np.stack([pruned.channels[name], theirs[kept[theirs]]]))
    return pairs


@every_network
@settings(max_examples=2)
@given(style=st.sampled_from(STYLES), seed=seeds)
def test_pruning_twice_is_pruning_once_with_the_product(name: str, style: str, seed: int) -> None:
    found = sample(name)
    first = float_plan(found.graph, random_masks(found.graph, style, seed)).kept_atoms(found.graph)
    once = prune(found.graph, first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace(once, found.graph.input_shape)
    second = float_plan(graph, random_masks(graph, "any share", seed + 1)).kept_atoms(graph)
    product = first.copy()
    for mine, theirs in dense_atoms(found.graph, first, graph):
        product[theirs] &= second[mine]
    twice, direct = prune(graph, second), prune(found.graph, product)
    assert_close(outputs(twice, found.images), outputs(direct, found.images), 1e-4)
    assert count(twice, found.images[:1]) == count(direct, found.images[:1])


def test_slices_by_hand() -> None:
    network = EveryCoupling()
    graph = trace(network, (3, 8, 8))
    stem, side, filters = graph.group_atoms  # b c d of stem; e f; g h i
    kept = np.ones(graph.atom_group.size, dtype=bool)
    kept[[stem[1], side[0], filters[2]]] = False  # c, e and i go
    pruned = prune(graph, kept)
    expected = {
        "stem.weight": network.stem.weight[[0, 1, 3]],
        "add.weight": network.add.weight[[0, 1, 3]][:, [0, 1, 3]],
        "depthwise.weight": network.depthwise.weight[[0, 1, 3]],
        "side.bias": network.side.bias[[1]],
        "filter.weight": network.filter.weight[[0, 1]][:, [0, 2]],  # reads d e f
        "head.weight": network.head.weight[:, [0, 1, 2, 3]],  # reads a g b h c i
        "head.bias": network.head.bias,
    }
    state = pruned.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    # The dense network is as it was, and shares nothing with the pruned one.
    assert network.stem.weight.shape[0] == 4
    with torch.no_grad():
        pruned.head.bias.zero_()
    assert bool(network.head.bias.any())


def test_hooks_of_a_pruned_network_are_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4))
    graph = trace(network, (3, 5, 5))
    kept = np.ones(graph.atom_group.size, dtype=bool)
    kept[graph.layers[1].in_atoms[0]] = False  # its groups become convolutions of their own
    pruned = prune(graph, kept)
    called: list[nn.Module] = []
    modules = [module for module in pruned.modules() if not list(module.children())]
    for module in modules:
        module.register_forward_hook(lambda module, *_: called.append(module))
    outputs(network, torch.randn(1, 3, 5, 5))
    assert not called
    outputs(pruned, torch.randn(1, 3, 5, 5))
    assert called == modules


def test_parameters_of_modules_whose_results_nobody_reads_do_not_count() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)
            self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            self.norm(self.idle(x))
            return self.head(x.mean((2, 3)))

    network = Idle()
    graph = trace(network, (3, 5, 5))
    assert [layer.name for layer in graph.layers] == ["conv", "head"]
    assert ComplexityModel(graph).dense.params == 3 * 4 + 4 + 4 * 2 + 2
    assert sum(1 for _ in network.children()) == 4  # it is left as it was


def test_squeeze_of_every_one_spares_the_batch_and_a_last_channel() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3), keepdim=True).squeeze())

    network = Squeezing()
    graph = trace(network, (3, 5, 5))
    kept = np.ones(graph.atom_group.size, dtype=bool)
    kept[graph.group_atoms[0][1:]] = False  # one channel stays
    images = torch.randn(3, 3, 5, 5)
    pruned = prune(graph, kept)
    expected = outputs(zeroed(network, graph, kept), images)
    assert_close(outputs(pruned, images), expected, 1e-6)
    assert_close(outputs(pruned, images[:1]), expected[:1], 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_convolution_without_any_connection_left_gives_its_bias(bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=bias),
        nn.Conv2d(4, 2, 1),
    )
    graph = trace(network, (3, 5, 5))
    kept = np.ones(graph.atom_group.size, dtype=bool)
    kept[graph.layers[1].in_atoms[:2]] = False  # the first group reads nothing,
    kept[graph.layers[1].out_atoms[2:]] = False  # the second makes nothing
    images = torch.randn(2, 3, 5, 5)
    pruned = prune(graph, kept)
    assert_close(outputs(pruned, images), outputs(zeroed(network, graph, kept), images), 1e-6)
    every = np.ones(2 * len(graph.layers)).reshape(2, -1) * 32
    cost = ComplexityModel(graph).count(kept, *every.astype(int))
    assert (cost.macs, cost.params) == count(pruned, images[:1])
