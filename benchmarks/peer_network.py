"""A plan evaluated as published code does it: masks and fake quantization in the dense network.

Nothing is removed, folded or prepared: every forward pass multiplies by masks and quantizes the
weights again. It is here to be compared with, and is used nowhere else.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from compress_env.calibration import calibrate
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune
from compress_env.quantization import activation_scales, highest_level, quantize_weights


class _PeerLayer(nn.Module):
    """A dense layer with a mask on its output and fake quantization of weights and input."""

    mask: torch.Tensor
    weight_scale: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        mask: torch.Tensor,
        bits: tuple[int, int],
        input_scale: float,
        nonnegative: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask.view((1, -1, 1, 1) if mask_is_spatial(layer) else (-1,)))
        self.high = highest_level(bits[0])
        self.register_buffer("weight_scale", quantize_weights(layer.weight, bits[0])[1])
        self.register_buffer("zeros", torch.zeros(layer.weight.shape[0], dtype=torch.int32))
        self.input_high = highest_level(bits[1], signed=not nonnegative)
        self.input_low = 0 if nonnegative else -self.input_high
        self.input_scale = input_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fake_quantize_per_tensor_affine(
            x, self.input_scale, 0, self.input_low, self.input_high
        )
        weight = torch.fake_quantize_per_channel_affine(
            self.layer.weight, self.weight_scale, self.zeros, 0, -self.high, self.high
        )
        layer = self.layer
        if isinstance(layer, nn.Linear):
            y = functional.linear(x, weight, layer.bias)
        else:
            y = functional.conv2d(
                x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        masked: torch.Tensor = y * self.mask
        return masked


def mask_is_spatial(layer: nn.Module) -> bool:
    """Whether a layer's output has height and width."""
    return isinstance(layer, nn.Conv2d)


class PeerNetwork(nn.Module):
    """The dense network with masked, fake-quantized layers.

    Args:
        graph: layer graph of the dense network.
        plan: the plan; all layers quantized to 2 to 8 bits.
        calibration: images for the activation scales, float32 (images, 3, H, W).
    """

    def __init__(self, graph: LayerGraph, plan: CompressionPlan, calibration: torch.Tensor) -> None:
        super().__init__()
        kept = plan.kept_atoms(graph)
        small = prune(graph, kept)
        samples = calibrate(small, graph, calibration, False)
        levels = [
            highest_level(int(bits), not layer.input_nonnegative)
            for bits, layer in zip(plan.activation_bits, graph.layers, strict=True)
        ]
        scales = activation_scales(samples, levels)
        self.network = copy.deepcopy(graph.module)
        for index, layer in enumerate(graph.layers):
            dense = self.network.get_submodule(layer.name)
            assert isinstance(dense, (nn.Conv2d, nn.Linear))
            bits = (int(plan.weight_bits[index]), int(plan.activation_bits[index]))
            mask = torch.from_numpy(kept[layer.out_atoms]).float()
            peer = _PeerLayer(dense, mask, bits, float(scales[index]), layer.input_nonnegative)
            parent, _, leaf = layer.name.rpartition(".")
            setattr(self.network.get_submodule(parent), leaf, peer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs for images in float32 (images, 3, H, W)."""
        logits: torch.Tensor = self.network(x)
        return logits
