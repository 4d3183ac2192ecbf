"""Motifs of the computation graph, counted by hand, and the observation made of them."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from samples import every_network, float_plan, random_masks
from torch import Tensor, nn
from torchvision.models import densenet121

from benchmarks.network_list import LISTED
from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.observations import ObservationContext, ObservedState
from compress_env.observations.hierarchical import (
    MOTIF_COLUMNS,
    SCHEMA,
    STATE_COLUMNS,
    HierarchicalObservation,
)
from compress_env.observations.motifs import find_motifs
from compress_env.plan import CompressionPlan
from compress_env.spaces import to_arrays, to_dgl


def found(graph: LayerGraph) -> Counter[str]:
    """How often every motif occurs: its operations in order, layers with kernel / stride."""
    hierarchy = find_motifs(graph)
    names = []
    for motif in hierarchy.motifs:
        made = dict(zip(motif.edges[1].tolist(), motif.operations, strict=True))
        words = [made[value] for value in sorted(made)]
        names.append(
            " ".join(f"{w.kind}{w.kernel}/{w.stride}" if w.kernel else w.kind for w in words)
        )
    return Counter(names[each.motif] for each in hierarchy.occurrences)


def of_network(name: str, size: int = 32) -> LayerGraph:
    with torch.device("meta"):
        network = build_network(name, 10)
    return trace(network, (3, size, size))


@pytest.mark.parametrize("size", [32, 8])
def test_resnet20_has_one_basic_block_and_its_strided_form(size: int) -> None:
    graph = of_network("resnet20", size)
    assert len(find_motifs(graph).motifs) == 5
    assert found(graph) == {
        "conv3/1 normalize activate": 1,
        # 3 stages of 3 blocks, but for the strided 2.
        "conv3/1 normalize activate conv3/1 normalize add activate": 7,
        "conv3/2 normalize activate conv3/1 normalize move move add activate": 2,
        "pool move": 1,
        "linear1/1": 1,
    }


@pytest.mark.parametrize("size", [32, 8])
def test_mobilenet_v2_has_one_inverted_residual(size: int) -> None:
    expand, filters = "conv1/1 normalize activate", "depthwise3/1 normalize activate"
    graph = of_network("mobilenet_v2", size)
    assert len(find_motifs(graph).motifs) == 8
    assert found(graph) == {
        "conv3/1 normalize activate": 1,
        f"{expand} {filters} conv1/1 normalize add": 10,
        # The other 7 of the 17 blocks have no residual, so they are chains of three; the first of
        # them does not expand, but the network ends with one more such layer.
        expand: 6 + 1,
        filters: 4,
        "depthwise3/2 normalize activate": 3,
        "conv1/1 normalize": 7,
        "pool move": 1,
        "linear1/1": 1,
    }


def test_shufflenet_units() -> None:
    v1, v2 = found(of_network("shufflenet_v1")), found(of_network("shufflenet_v2"))
    first = "normalize activate move depthwise3"
    last = "normalize grouped1/1 normalize"
    assert v1[f"grouped1/1 {first}/1 {last} add activate"] == 3 + 7 + 3
    assert v1[f"grouped1/1 {first}/2 {last} pool concatenate activate"] == 2
    # The first unit reads too few channels for groups.
    assert v1[f"conv1/1 {first}/2 {last} pool concatenate activate"] == 1
    conv, joined = "conv1/1 normalize activate", "concatenate move"
    assert v2[f"move move {conv} depthwise3/1 normalize {conv} {joined}"] == 3 + 7 + 3
    short = f"depthwise3/2 normalize {conv}"
    assert v2[f"{short} {conv} depthwise3/2 normalize {conv} {joined}"] == 3


def test_dense_layers_are_motifs_though_their_block_is_none() -> None:
    with torch.device("meta"):
        network = densenet121()
    motifs = found(trace(network, (3, 224, 224)))
    layer = "normalize activate conv1/1 normalize activate conv3/1"
    # The first and the last of a block have a concatenation that nothing else reads.
    assert motifs[layer] == (6 - 2) + (12 - 2) + (24 - 2) + (16 - 2)
    assert sum(count for name, count in motifs.items() if layer in name) == 6 + 12 + 24 + 16


class Twisted(nn.Module):
    """Two branches of the same operations, written in unequal ways and orders."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(7))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        stem, *convs = self.convs
        x = stem(torch.cat([x, x[:, :1]], 1))
        first = self.relu(convs[0](x))
        x = convs[1](first) + convs[2](x)
        skip = convs[3](x)
        other = torch.relu(convs[4](x))
        other = convs[5](other)
        return skip + other


def test_same_structure_is_the_same_motif_however_it_is_written() -> None:
    hierarchy = find_motifs(trace(Twisted().eval(), (3, 8, 8)))
    *_, first, second = hierarchy.occurrences
    assert first.motif == second.motif
    assert first.layers == (1, 2, 3)
    assert second.layers == (4, 5, 6)
    assert first.destination == second.source


@every_network
def test_every_network_is_covered_and_every_plan_can_be_shown(name: str) -> None:
    listed = LISTED[name]
    size = listed.small_image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace(listed.build(), (3, size, size))
    observer = HierarchicalObservation(context(graph))
    hierarchy = observer.hierarchy
    occurrences, last = hierarchy.occurrences, len(hierarchy.states) - 1
    layers = [index for each in occurrences for index in each.layers]
    assert sorted(layers) == list(range(len(graph.layers)))
    assert {each.source for each in occurrences} == set(range(last))
    assert {each.destination for each in occurrences} == set(range(1, last + 1))
    assert all(each.source < each.destination for each in occurrences)
    for motif in hierarchy.motifs:
        assert set(motif.edges[0].tolist()) == set(range(motif.size - 1))
        assert set(motif.edges[1].tolist()) == set(range(1, motif.size))
    for plan in (
        CompressionPlan.dense(graph, name),
        float_plan(graph, random_masks(graph, "one", 0)),
    ):
        arrays = observer.observe(ObservedState(plan, 0.5, 0.9, 1.0))
        assert to_arrays(to_dgl(arrays, SCHEMA), SCHEMA) == arrays
        assert np.abs(arrays.node_features).max() < 3  # and so no NaN
        assert np.abs(arrays.edge_features).max() < 3


def context(graph: LayerGraph) -> ObservationContext:
    importance = np.ones(graph.atom_group.size)
    fixed = np.zeros(len(graph.layers), dtype=bool)
    fixed[[0, -1]] = True
    size = graph.input_shape
    return ObservationContext(
        graph, ComplexityModel(graph), importance, importance, fixed, torch.empty(0, *size)
    )


def test_states_and_motifs_follow_the_plan_as_counted_by_hand() -> None:
    graph = trace(build_network("resnet20", 10), (3, 8, 8))
    masks = [np.ones(group.size, dtype=bool) for group in graph.groups]
    inner = next(i for i, g in enumerate(graph.groups) if g.layers == (1,))  # first block's middle
    masks[inner][4:] = False  # 4 of 16
    stream = max(range(len(masks)), key=lambda i: len(graph.groups[i].layers))
    masks[stream][8:] = False  # 8 of the 16 channels of the whole network's stream
    bits = np.full(len(graph.layers), 5)
    bits[1] = 2
    plan = CompressionPlan.of(graph, masks, bits, np.full(len(graph.layers), 8))
    arrays = HierarchicalObservation(context(graph)).observe(
        ObservedState(plan, 0.9, 0.99, 0.5, next_layer=2)
    )
    states = dict(zip(STATE_COLUMNS, arrays.node_features[:13].T, strict=False))
    assert 2 ** (10 * states["channels"][:2]) == pytest.approx([3, 8])
    assert 2 ** (10 * states["channels_dense"]) == pytest.approx(
        [3, *[16] * 4, *[32] * 3, *[64] * 4, 10]
    )
    assert states["kept_ratio"][:3] == pytest.approx([1, 0, 0])
    # After the second stage 8 of 32 channels are gone, after the third 8 of 64.
    assert states["kept_ratio"][[5, 8]] == pytest.approx([2 * 24 / 32 - 1, 2 * 56 / 64 - 1])
    block = dict(zip(MOTIF_COLUMNS, arrays.edge_features[1], strict=True))
    assert block["weight_bits"] == pytest.approx(((2 - 5) / 3 + 0) / 2)
    assert block["weight_bits_lowest"] == pytest.approx(-1)
    assert block["activation_bits"] == pytest.approx(1)
    assert block["kept_ratio"] == pytest.approx(((2 * 4 / 16 - 1) + 0) / 2)
    assert (block["is_next"], block["is_decided"]) == (1, 0.5)
    assert arrays.edge_features[:12, MOTIF_COLUMNS.index("is_next")].sum() == 1
    shares = arrays.edge_features[:12, MOTIF_COLUMNS.index("macs_share")] ** 2
    assert shares.sum() == pytest.approx(1, abs=1e-5)
