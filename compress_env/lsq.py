"""Layers whose quantizers learn their step sizes, for training at the bits of a plan.

Rounding has no gradient worth following, so its gradient is taken to be one (the straight-through
estimator), and the step sizes are parameters like any other: Esser et al., "Learned Step Size
Quantization", ICLR 2020. A layer starts at exactly the codes and scales that its plan means without
training, and at any time becomes a `QuantizedLayer`, which is what is evaluated and kept.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.layer_graph import LayerGraph
from compress_env.normalization import BatchNorm, norm_as_affine
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
    quantize,
    quantize_weights,
)

SMALLEST_STEP = 1e-3
"""Step sizes stay above this share of what they started from, and so positive."""

# Of a gradient: a scale whose square is not to be told from zero would make it infinite.
_LARGEST_WEIGHT = 1e30

# How far from the middle between two codes a weight stays at first.
_INSIDE = 0.499


class FakeQuantize(torch.autograd.Function):
    """Round to codes and scale back, `quantize(x, scale, low, high) * scale`.

    The gradient for `x` passes where x lies strictly between the lowest and the highest level. That
    for `scale` is `code - x / scale` there, and the code itself outside (equation 3 of the paper).
    Three of PyTorch's vectorised passes over the tensor in each direction are several times faster
    than its own learnable fake-quantize operator.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """Quantize x; `scale` is one number, or one for every row: (out, 1, ...)."""
        y = (x * scale.reciprocal()).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, y, scale)
        ctx.range = low, high
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients for x and scale."""
        x, y, scale = ctx.saved_tensors
        gradient, inverse = gradients[0], scale.reciprocal()
        levels = x * inverse
        passed = torch.ops.aten.hardtanh_backward(gradient, levels, *ctx.range)
        # y / scale are the codes, so this is the sum of gradient * (code - level), where passed,
        # and of gradient * code elsewhere.
        of_scale = _dot(gradient, y, scale) * inverse - _dot(passed, levels, scale)
        return passed, of_scale, None, None


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of products, float32, over all entries that share an entry of `like`."""
    if like.dim() > 0:
        return (a * b).sum(tuple(range(1, a.dim())), keepdim=True)
    if a.dim() == 4 and a.dtype == torch.float32:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
        if a.is_contiguous() and b.is_contiguous():  # in memory, so one pass without a copy
            return torch.dot(a.view(-1), b.view(-1))
    return (a.float() * b.float()).sum()


class LearnedStep(nn.Module):
    """A quantizer that learns its scale.

    The parameter is the scale relative to what it started from, so that one learning rate suits
    scales of all sizes. Its gradient is multiplied by `1 / (start**2 * sqrt(count * high))`, which
    under plain gradient descent moves the scale just as in the paper.

    Args:
        scale: the scale to start from: one number, or (out,).
        low: lowest code.
        high: highest code.
    """

    start: Tensor

    def __init__(self, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("start", scale.detach().clone())
        self.relative = nn.Parameter(torch.ones_like(scale))

    @property
    def scale(self) -> Tensor:
        """The current scale, shaped like the one it started from."""
        return self.start * self.relative

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x with one scale, or (out, ...) with one for every row."""
        rows = self.start.dim() > 0
        # The number of values that share a scale: for activations, in one image.
        count = x[0].numel()
        weight = self.start.square().mul(math.sqrt(count * self.high)).reciprocal()
        weight = weight.clamp(max=_LARGEST_WEIGHT)
        # The value is left exactly as it is, however large the weight of its gradient.
        held = self.relative.detach()
        relative = held + (self.relative - held) * weight
        scale = self.start * relative
        if rows:
            scale = scale.view(-1, *(1,) * (x.dim() - 1))
        return FakeQuantize.apply(x, scale, self.low, self.high)  # type: ignore[no-any-return]


class LearnedLayer(nn.Module):
    """A layer that quantizes its weights and its input with learned scales.

    Args:
        layer: convolution or linear layer as pruned, with float weights; it becomes part of this.
            A weight whose code differs from that of `quantize_weights` by the rounding of a fitted
            scale is moved to the edge of that code.
        weight_bits: 2 to 8, or 32 for float.
        activation_bits: bits of the input, likewise.
        input_scale: scale of the quantized input to start from.
        input_nonnegative: whether the input's codes start at zero.
    """

    input_scale: Tensor

    def __init__(
        self,
        layer: nn.Module,
        weight_bits: int,
        activation_bits: int,
        input_scale: Tensor,
        input_nonnegative: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.input_nonnegative = input_nonnegative
        self.register_buffer("input_scale", input_scale)
        self.input_step: LearnedStep | None = None
        if activation_bits < FLOAT_BITS:
            high = highest_level(activation_bits, signed=not input_nonnegative)
            self.input_step = LearnedStep(input_scale, 0 if input_nonnegative else -high, high)
        # Names of the weights within the layer, in the order of their output channels.
        self.weights = [
            f"{name}.weight" if name else "weight"
            for name, part in layer.named_modules()
            if isinstance(part, (nn.Conv2d, nn.Linear))
        ]
        self.weight_steps = nn.ModuleList()
        if weight_bits < FLOAT_BITS:
            high = highest_level(weight_bits)
            for name in self.weights:
                self.weight_steps.append(_start_step(layer.get_parameter(name), weight_bits, high))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize the input, apply the layer with quantized weights."""
        if self.input_step is not None:
            x = self.input_step(x)
        if not self.weight_steps:
            return self.layer(x)  # type: ignore[no-any-return]
        weights = {
            name: step(self.layer.get_parameter(name))
            for name, step in zip(self.weights, self.weight_steps, strict=True)
        }
        return torch.func.functional_call(self.layer, weights, (x,))  # type: ignore[no-any-return]

    @torch.no_grad()
    def frozen(self, factor: Tensor | None, offset: Tensor | None) -> QuantizedLayer:
        """What this layer is without training, with a BatchNorm behind it folded in."""
        layer = copy.deepcopy(self.layer)
        scales = []
        for name, step in zip(self.weights, self.weight_steps, strict=False):
            assert isinstance(step, LearnedStep)
            weight = layer.get_parameter(name)
            rows = step.scale.view(-1, *(1,) * (weight.dim() - 1))
            weight.copy_(quantize(weight, rows, step.low, step.high))
            scales.append(step.scale)
        return QuantizedLayer(
            layer,
            self.weight_bits,
            self.activation_bits,
            self.input_scale if self.input_step is None else self.input_step.scale,
            self.input_nonnegative,
            factor,
            offset,
            weight_scales=scales,
        )


@torch.no_grad()
def _start_step(weight: nn.Parameter, bits: int, high: int) -> LearnedStep:
    codes, scale = quantize_weights(weight, bits)
    rows = scale.view(-1, *(1,) * (weight.dim() - 1))
    lowest = torch.where(codes > -high, codes - _INSIDE, -math.inf)
    highest = torch.where(codes < high, codes + _INSIDE, math.inf)
    weight.copy_((weight / rows).clamp(lowest, highest) * rows)
    return LearnedStep(scale, -high, high)


def learnable(
    small: fx.GraphModule, graph: LayerGraph, plan: CompressionPlan, samples: list[Tensor]
) -> fx.GraphModule:
    """Let a pruned, calibrated network learn its quantizers, in place.

    Args:
        small: what `compress_env.pruning.prune` gave.
        graph: the layer graph it comes from.
        plan: gives the bits; layers with 32 for both stay as they are.
        samples: what `compress_env.compression.calibrate` gave.
    """
    bits = list(zip(plan.weight_bits.tolist(), plan.activation_bits.tolist(), strict=True))
    levels = [
        highest_level(activation, not layer.input_nonnegative) if activation < FLOAT_BITS else 1
        for (_, activation), layer in zip(bits, graph.layers, strict=True)
    ]
    scales = activation_scales(samples, levels)
    for (weight, activation), layer, scale in zip(bits, graph.layers, scales, strict=True):
        if weight == activation == FLOAT_BITS:
            continue
        module = small.get_submodule(layer.name)
        start = scale.to(next(module.parameters()).device)
        learned = LearnedLayer(module, weight, activation, start, layer.input_nonnegative)
        small.set_submodule(layer.name, learned)
    return small


def finished(network: fx.GraphModule, graph: LayerGraph) -> fx.GraphModule:
    """The network on integer codes that a learnable one stands for, as a copy of its own."""
    result = copy.deepcopy(network)
    for layer in graph.layers:
        learned = result.get_submodule(layer.name)
        if not isinstance(learned, LearnedLayer):
            continue
        factor = offset = None
        name = graph.folds.get(layer.name)
        norm = None if name is None else result.get_submodule(name)
        if isinstance(norm, BatchNorm) and name is not None:
            factor, offset = norm_as_affine(norm)
            result.set_submodule(name, nn.Identity())
        result.set_submodule(layer.name, learned.frozen(factor, offset))
    return result.requires_grad_(False).eval()


def keep_steps_positive(network: nn.Module) -> None:
    """Undo what an optimizer's step did to scales below `SMALLEST_STEP`."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, LearnedStep):
                module.relative.clamp_(min=SMALLEST_STEP)
