"""Networks to try things on, plans at random, and the oracle for pruning."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.network_list import LISTED
from compress_env.importance import rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan

QUICK = (
    "resnet20", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "densenet121", "googlenet",
    "regnet_y_400mf", "mobilenet_v3_small", "convnext_tiny", "squeezenet1_1",
)  # fmt: skip
"""One network of every kind; the others take part in the slow run."""

every_network = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LISTED],
)
"""Parametrizes a test over all networks, those of `QUICK` in the default run."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A network with its layer graph and two images."""

    network: nn.Module
    graph: LayerGraph
    images: torch.Tensor


@lru_cache(maxsize=2)
def sample(name: str) -> Sample:
    """A listed network for small images, with parameters that matter."""
    listed = LISTED[name]
    network = listed.build()
    size = listed.small_image_size
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    liven(network, images)
    result = outputs(network, images)
    assert (result[0] - result[1]).abs().max() > 0.01 * result.abs().max(), "hardly a function"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace(network, (3, size, size))
    return Sample(network, graph, images[:2])


def liven(network: nn.Module, images: torch.Tensor) -> None:
    """Make every part of an untrained network count.

    Statistics of BatchNorm become those of the images, so that signals stay at about one; scales
    and shifts become random, so that no channel is like another.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 and not name.endswith("layer_scale"):
                nn.init.kaiming_normal_(parameter, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=generator)
            else:  # also the layer scale of ConvNeXt: 1e-6 would switch its blocks off
                parameter.uniform_(0.5, 1.5, generator=generator)
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        network(images)
        network.eval()
        for norm in norms:
            norm.running_var += 0.01


STYLES = ("one", "all but one", "any share", "half of the groups", "evenly")


def random_masks(graph: LayerGraph, style: str, seed: int) -> list[np.ndarray]:
    """Kept channels of every group at random; `style` says what kind of random."""
    rng = np.random.default_rng(seed)
    if style == "evenly":  # as plans are made: any count, spread over grouped convolutions
        ranks = rank_channels(graph, rng.random(graph.atom_group.size))
        multiples = graph.group_multiples
        return [
            ranks[atoms] < multiple * rng.integers(1, atoms.size // multiple + 1)
            for atoms, multiple in zip(graph.group_atoms, multiples, strict=True)
        ]
    masks = []
    for group in graph.groups:
        mask = np.zeros(group.size, dtype=bool)
        if style == "any share":
            mask = rng.random(group.size) < rng.random()
        elif style == "all but one":
            mask[:] = True
            mask[rng.integers(group.size)] = False
        elif style == "half of the groups" and rng.random() < 0.5:
            mask[:] = True
        mask[rng.integers(group.size)] |= not mask.any()
        masks.append(mask)
    return masks


def mixed_plan(
    graph: LayerGraph, widths: list[int], style: str | None = None, seed: int = 0
) -> CompressionPlan:
    """Random bits among some widths; pruned at random, or not at all."""
    rng = np.random.default_rng(seed)
    bits = rng.choice(widths, (2, len(graph.layers)))
    kept = CompressionPlan.dense(graph).kept
    if style is not None:
        kept = tuple(random_masks(graph, style, seed))
    return CompressionPlan.of(graph, kept, *bits)


def float_plan(graph: LayerGraph, masks: list[np.ndarray]) -> CompressionPlan:
    """A plan that prunes and does not quantize."""
    bits = np.full(len(graph.layers), 32)
    return CompressionPlan.of(graph, masks, bits, bits)


def zeroed(network: nn.Module, graph: LayerGraph, kept_atoms: np.ndarray) -> nn.Module:
    """The oracle: the dense network in which all layers see zeros in the removed channels."""
    twin = copy.deepcopy(network)
    for layer in graph.layers:
        weight = twin.get_submodule(layer.name).weight
        gone = torch.from_numpy(~kept_atoms[layer.in_atoms])
        width = layer.in_channels // layer.groups
        height = layer.out_channels // layer.groups
        with torch.no_grad():
            for group in range(layer.groups):
                rows = weight[group * height : (group + 1) * height]
                rows[:, gone[group * width : (group + 1) * width]] = 0
    return twin


def outputs(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits, without gradients; of several outputs the first."""
    with torch.no_grad():
        result = network(images)
    return result[0] if isinstance(result, (tuple, list)) else result


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-4) -> None:
    """Compare to a tolerance relative to the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert float(error) <= relative
