"""Figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import EveryCoupling
from torch import nn

from compress_env.complexity import ComplexityModel, reduction
from compress_env.layer_graph import trace
from compress_env.networks import build_network
from compress_env.plan import CompressionPlan


def resnet20_macs() -> list[int]:
    """MACs of ResNet-20's layers on 32x32 images: side² * 9 * inputs * outputs."""
    macs = [32 * 32 * 9 * 3 * 16]
    macs += 6 * [32 * 32 * 9 * 16 * 16]
    macs += [16 * 16 * 9 * 16 * 32] + 5 * [16 * 16 * 9 * 32 * 32]
    macs += [8 * 8 * 9 * 32 * 64] + 5 * [8 * 8 * 9 * 64 * 64]
    return [*macs, 64 * 10]


def test_resnet20_has_40_55_million_macs() -> None:
    graph = trace(build_network("resnet20", 10))
    model = ComplexityModel(graph)
    assert [layer.macs for layer in graph.layers] == resnet20_macs()
    assert model.dense.macs == 40_551_040
    assert model.dense.params == 269_722
    assert model.dense.bops == 40_551_040 * 1024
    assert model.dense.size_bits == 269_722 * 32


def test_bops_of_w4a4_with_first_and_last_layer_at_8_bits() -> None:
    graph = trace(build_network("resnet20", 10))
    bits = np.array([8, *[4] * 18, 8])
    kept = CompressionPlan.dense(graph).kept
    plan = CompressionPlan.of(graph, kept, bits, bits)
    model = ComplexityModel(graph)
    cost = model.of_plan(graph, plan)
    # First layer 442,368 MACs and last 640 at 8x8 bits, the other 40,108,032 at 4x4.
    assert cost.bops == 64 * 443_008 + 16 * 40_108_032 == 670_081_024
    assert reduction(cost.bops, model.dense.bops) == pytest.approx(0.983863, abs=1e-6)
    # 432 + 640 weights at 8 bits and 267,264 at 4; 1,376 BatchNorm parameters, 10 biases at 32.
    assert cost.size_bits == 8 * 1_072 + 4 * 267_264 + 32 * (1_376 + 10)
    assert (cost.macs, cost.params) == (40_551_040, 269_722)


def test_pruned_and_mixed_bits_on_paper() -> None:
    graph = trace(EveryCoupling(), (3, 8, 8))
    stem, side, filters = (np.ones(n, dtype=bool) for n in (3, 2, 3))
    stem[1] = filters[2] = False  # stem 4 -> 3, filter 3 -> 2; head reads 6 - 2 = 4
    weight_bits = np.array([8, 4, 2, 3, 5, 6])
    activation_bits = np.array([8, 4, 4, 8, 3, 2])
    plan = CompressionPlan.of(graph, [stem, side, filters], weight_bits, activation_bits)
    cost = ComplexityModel(graph).of_plan(graph, plan)
    weights = np.array([3 * 3 * 9, 3 * 3 * 9, 3 * 9, 3 * 2, 3 * 2, 4 * 5])
    biases = 3 + 3 + 3 + 2 + 2 + 5
    assert cost.macs == 64 * weights.sum()
    assert cost.params == weights.sum() + biases
    assert cost.bops == 64 * (weights * weight_bits * activation_bits).sum()
    assert cost.size_bits == (weights * weight_bits).sum() + 32 * biases


def test_parameters_of_no_layer_are_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.activation, self.scale = nn.PReLU(4), nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.activation(self.first(x)) * self.scale)

    graph = trace(Scaled(), (3, 4, 4))
    mask = np.array([True, False, True, False])
    bits = np.full(2, 32)
    cost = ComplexityModel(graph).of_plan(graph, CompressionPlan.of(graph, [mask], bits, bits))
    assert cost.params == (3 * 2 + 2) + 2 + 1 + (2 * 2 + 2)
