"""What tracing finds: layers, coupling groups, and what it must leave alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch_pruning as tp
from samples import (
    assert_close,
    every_network,
    float_plan,
    outputs,
    random_masks,
    sample,
    zeroed,
)
from small_networks import Between, EveryCoupling
from torch import nn
from torch.nn import functional

from compress_env.layer_graph import FROZEN, LayerGraph, trace
from compress_env.networks import build_network
from compress_env.pruning import prune


def makers_of(graph: LayerGraph) -> list[tuple[int, list[str]]]:
    """Size and layers of every group."""
    return [(g.size, [graph.layers[i].name for i in g.layers]) for g in graph.groups]


def test_groups_of_resnet20_are_those_of_its_parameter_free_shortcuts() -> None:
    graph = trace(build_network("resnet20", 10))
    # The stem and the second convolution of every block add into the same stream. A later stage
    # has twice the channels: the middle half continues the stream, the rest is padded with zeros.
    first = ["conv1"] + [f"layer1.{block}.conv2" for block in range(3)]
    second = [f"layer2.{block}.conv2" for block in range(3)]
    third = [f"layer3.{block}.conv2" for block in range(3)]
    groups = {tuple(layers): size for size, layers in makers_of(graph)}
    inner = {
        (f"layer{stage}.{block}.conv1",): 8 * 2**stage for stage in (1, 2, 3) for block in range(3)
    }
    residual = {
        tuple(first + second + third): 16,  # channels 8..23 of 32, and 24..39 of 64
        tuple(second + third): 16,
        tuple(third): 32,
    }
    assert groups == {**inner, **residual}
    stream = graph.layers[graph.layer_index["conv1"]].out_atoms
    wide = graph.layers[graph.layer_index["layer3.0.conv2"]].out_atoms
    assert np.array_equal(wide[24:40], stream)
    assert len(graph.layers) == 20
    assert (graph.atom_group == FROZEN).sum() == 3 + 10  # the image and the classes


def test_every_kind_of_coupling_on_paper() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = trace(EveryCoupling(), (3, 8, 8))
    layers = {layer.name: layer for layer in graph.layers}
    assert list(layers) == ["stem", "add", "depthwise", "side", "filter", "head"]
    abcd = layers["stem"].out_atoms
    for same in (layers["add"].in_atoms, layers["add"].out_atoms, layers["depthwise"].out_atoms):
        assert np.array_equal(same, abcd)
    a, b, c, d = abcd
    e, f = layers["side"].out_atoms
    g, h, i = layers["filter"].out_atoms
    assert layers["filter"].in_atoms.tolist() == [d, e, f]
    assert layers["head"].in_atoms.tolist() == [a, g, b, h, c, i]
    assert len({a, b, c, d, e, f, g, h, i}) == 9
    # One channel of the first half stays for good, or a plan could leave that half empty.
    assert np.flatnonzero(graph.atom_group[[a, b, c, d, e, f, g, h, i]] == FROZEN).tolist() == [0]
    assert makers_of(graph) == [
        (3, ["stem", "add", "depthwise"]),
        (2, ["side"]),
        (3, ["filter"]),
    ]
    flow = {tuple(graph.layers[i].name for i in edge) for edge in graph.flow_edges.T}
    assert flow == {
        ("stem", "add"), ("stem", "depthwise"), ("add", "depthwise"),
        ("depthwise", "filter"), ("side", "filter"),
        ("depthwise", "head"), ("side", "head"), ("filter", "head"),
    }  # fmt: skip
    coupling = {tuple(graph.layers[i].name for i in edge) for edge in graph.coupling_edges.T}
    there = {("stem", "add"), ("stem", "depthwise")}
    assert coupling == there | {(to, source) for source, to in there}
    assert [layers[name].kind for name in ("stem", "depthwise")] == ["conv", "depthwise"]
    assert [layer.input_nonnegative for layer in graph.layers] == [
        False, True, False, False, False, False
    ]  # fmt: skip
    assert [graph.layers[i].name for i in graph.last_layers] == ["head"]
    assert [graph.layers[i].name for i in graph.first_layers] == ["stem", "side"]


class AddedBranches(nn.Module):
    """Two branches side by side, added to a third, and the sum added to once more."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)
        self.whole, self.again = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1).relu() + self.whole(x)
        return self.head(x + self.again(x)).mean((2, 3))


def test_a_sum_carries_every_branch_of_a_concatenation_and_the_latest_of_a_sum():
    graph = trace(AddedBranches(), (3, 8, 8))
    flow = {tuple(graph.layers[i].name for i in edge) for edge in graph.flow_edges.T}
    assert flow == {
        ("left", "again"), ("right", "again"), ("whole", "again"),
        ("whole", "head"), ("again", "head"),
    }  # fmt: skip


def test_no_layer_can_be_left_without_channels() -> None:
    # Each half of the split takes a part of the group: without a channel that stays in each,
    # a plan that keeps one channel of the group would empty the other half.
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.stem(x).chunk(2, 1)
            return torch.cat([self.left(left), self.right(right)], 1)

    graph = trace(Halves(), (3, 4, 4))
    frozen = graph.atom_group == FROZEN
    for layer in graph.layers[1:]:
        assert frozen[layer.in_atoms].sum() == 1
    assert [group.size for group in graph.groups] == [6]


class CumulativeSum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


class PerChannelLimit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limit", torch.linspace(0.1, 1, 8).view(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, max=self.limit)


class StandardizedConv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (CumulativeSum(), "cumsum"),
        (nn.Softmax(1), "Softmax"),
        (nn.GroupNorm(2, 8), "GroupNorm"),
        (nn.LocalResponseNorm(3), "LocalResponseNorm"),
        (PerChannelLimit(), "clamp"),
        (StandardizedConv2d(8, 8, 3, padding=1), "conv2d"),
        (lambda x: x / x.sum(1, keepdim=True), "sum"),
        (lambda x: x @ x.transpose(2, 3), "matmul"),
        (lambda x: x + torch.ones(8, 1, 1), "add"),
        (lambda x: x.view(x.size(0), 4, 2, 4, 4).mean(2).repeat(1, 2, 1, 1), "mean"),
    ],
)
def test_what_is_not_known_is_left_whole_and_named(operation: object, named: str) -> None:
    network = Between(operation)
    with pytest.warns(UserWarning, match=f"left whole.*{named}"):
        graph = trace(network, (3, 4, 4))
    first, second = graph.layer_index["first"], graph.layer_index["second"]
    assert set(graph.atom_group[graph.layers[first].out_atoms]) == {FROZEN}
    assert set(graph.atom_group[graph.layers[second].in_atoms]) == {FROZEN}
    assert [group.name for group in graph.groups] == ["second"]  # what comes after is not lost


@pytest.mark.parametrize(
    ("operation", "channels_after"),
    [
        (lambda x: x.flip(3), 8),
        (lambda x: x.flip(1), 8),
        (lambda x: x.roll(1, 2), 8),
        (lambda x: x.roll(3, 1), 8),
        (lambda x: x.transpose(2, 3), 8),
        (lambda x: x[:, 2:7], 5),
        (lambda x: x[:, [7, 0, 3]], 3),
        (lambda x: x[:, ::2, 1:, :-1], 4),
        (lambda x: x[:, :, ::2, ::2], 8),
        (lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), 8),
        (lambda x: functional.channel_shuffle(x, 4), 8),
        (lambda x: x.view(1, 2, 4, 4, 4).permute(0, 2, 1, 4, 3).reshape(1, 8, 4, 4), 8),
        (lambda x: x.view(1, 8, 2, 2, 4).transpose(2, 3).reshape(1, 8, 4, 4), 8),
        (lambda x: x.repeat_interleave(2, 1), 16),
        (lambda x: functional.pixel_shuffle(x, 2), 2),
        (lambda x: functional.pixel_unshuffle(x, 2), 32),
        (lambda x: functional.pad(x, (1, 1, 0, 0, 2, 3)), 13),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 2, 3)), 13),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 2, 3), value=1.0), 13),
        (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 8),
        (lambda x: x * x.mean((2, 3)).view(x.size(0), 8, 1, 1).sigmoid(), 8),
        (lambda x: x * x[:, :1], 8),
        (lambda x: torch.maximum(x, 0.5 - x), 8),
    ],
)
def test_moved_channels_are_never_pruned_wrongly(operation: object, channels_after: int) -> None:
    torch.manual_seed(0)
    network = Between(operation, channels_after).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    dense = outputs(network, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace(network, (3, 4, 4))
    assert torch.equal(outputs(graph.module, images), dense)
    for seed in range(3):
        plan = float_plan(graph, random_masks(graph, "any share", seed))
        kept = plan.kept_atoms(graph)
        expected = outputs(zeroed(network, graph, kept), images)
        assert_close(outputs(prune(graph, kept), images), expected, 1e-9)


def test_data_dependent_control_flow_is_refused_with_its_line() -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(ValueError, match=r"test_layer_graph\.py:\d+ \('if x\.sum\(\) > 0:'\)"):
        trace(Between(branch), (3, 4, 4))


def test_networks_without_layers_and_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        trace(nn.Sequential(nn.ReLU(), nn.Flatten()), (3, 4, 4))
    with pytest.raises(ValueError, match=r"input_shape.*\(1, 8, 8\).*expected input"):
        trace(EveryCoupling(), (1, 8, 8))


def test_a_layer_used_twice_counts_twice_and_couples_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.shared, self.head = nn.Conv2d(4, 2, 1), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.shared(self.first(x)) + self.shared(self.second(x))
            return self.head(both.mean((2, 3)))

    graph = trace(Twice(), (3, 4, 4))
    assert (4, ["first", "second"]) in makers_of(graph)
    assert graph.layers[graph.layer_index["shared"]].positions == 2 * 16


# -- the same question asked of Torch-Pruning --------------------------------------------------

UNLIKE_TORCH_PRUNING = {
    **dict.fromkeys(
        ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        "it loses the offset of the channels that F.pad puts in front",
    ),
    "shufflenet_v1": "it does not follow channels through the views of a shuffle",
    "shufflenet_v2": "its analysis of the views of a shuffle divides by zero",
    "shufflenet_v2_imagenet": "its analysis of the views of a shuffle divides by zero",
}
"""Where Torch-Pruning 1.6 is known to fail, and why; the pruned networks are tested elsewhere."""


def ours(graph: LayerGraph, atom: int) -> set[tuple[str, str, int]]:
    """The output and input channels of layers that go with an atom."""
    places = set()
    for layer in graph.layers:
        places |= {(layer.name, "out", int(i)) for i in np.flatnonzero(layer.out_atoms == atom)}
        if layer.kind != "depthwise":
            places |= {(layer.name, "in", int(i)) for i in np.flatnonzero(layer.in_atoms == atom)}
    return places


def theirs(
    dependencies: tp.DependencyGraph, names: dict[nn.Module, str], layer: nn.Module, channel: int
) -> set[tuple[str, str, int]]:
    prune = (
        tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    )
    places = set()
    for dependency, indices in dependencies.get_pruning_group(layer, prune, idxs=[channel]):
        module = dependency.target.module
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            end = "out" if dependencies.is_out_channel_pruning_fn(dependency.handler) else "in"
            places |= {(names[module], end, int(index)) for index in indices}
    return places


def compare(name: str, channels_per_layer: int = 2) -> tuple[int, list[str]]:
    """Number of channels that were compared, and the layers whose channels are seen otherwise."""
    found = sample(name)
    graph, network = found.graph, found.network
    names = {module: name for name, module in network.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters of ConvNeXt that it guesses about
        dependencies = tp.DependencyGraph().build_dependency(network, found.images[:1])
    rng = np.random.default_rng(0)
    compared, different = 0, []
    for layer in graph.layers:
        if layer.kind in ("depthwise", "grouped"):  # it prunes these in other units
            continue
        for channel in rng.integers(layer.out_channels, size=channels_per_layer):
            atom = layer.out_atoms[channel]
            if graph.atom_group[atom] == FROZEN:
                continue
            compared += 1
            module = network.get_submodule(layer.name)
            if theirs(dependencies, names, module, int(channel)) != ours(graph, atom):
                different.append(layer.name)
    return compared, different


@every_network
def test_groups_agree_with_torch_pruning_wherever_it_supports_the_network(name: str) -> None:
    if name not in UNLIKE_TORCH_PRUNING:
        compared, different = compare(name)
        assert not different
        assert compared >= 18
        return
    try:
        _, different = compare(name)
    except ZeroDivisionError:
        assert "divides by zero" in UNLIKE_TORCH_PRUNING[name]
    else:
        assert different, "it supports this network now: take it off the list"
        if "F.pad" in UNLIKE_TORCH_PRUNING[name]:  # only the residual stream is at odds
            assert all(layer == "conv1" or layer.endswith("conv2") for layer in different)


def test_tied_weights_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3))
    trace(network)
    network[2].weight = network[0].weight
    with pytest.raises(ValueError, match="'0' and '2' share the parameter 'weight'"):
        trace(network)
