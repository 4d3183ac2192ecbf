"""Uniform symmetric quantizers: pure functions first, the module that uses them below.

A quantized layer is defined on integers: it multiplies and sums integer codes and scales the sum
once, `sum(codes of weights * codes of inputs) * (weight scale * input scale) + bias`. Sums of
codes are exact in float32 below 2**24, so the plain and the fast engine can agree to the bit.

Weights have one scale per output channel and the levels `-(2**(b-1) - 1) ... 2**(b-1) - 1`.
Activations have one scale per tensor and the levels `0 ... 2**b - 1` where they are known to be
non-negative (after a ReLU), else those of the weights. Scales minimise the squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn

from compress_env.channel_modules import UnevenGroupedConv2d
from compress_env.plan import FLOAT_BITS

HISTOGRAM_BINS = 512
"""Resolution at which the range of an activation is chosen."""

SAMPLED_VALUES = 1 << 14
"""How many values of an activation are looked at to choose its range."""

_EXACT_IN_FLOAT32 = 1 << 24

# What is nowhere larger is taken for zeros: scales must have a finite reciprocal in float32, also
# those of 8 bits, and when training has shrunk them.
_NEXT_TO_ZERO = 1e-30

CONVOLUTIONS = (nn.Conv2d, UnevenGroupedConv2d)

_CLIPPING = torch.linspace(0.2, 1.0, 25)
_WEIGHT_CLIPPING = torch.linspace(0.4, 1.0, 9)


def highest_level(bits: int, signed: bool = True) -> int:
    """The largest integer code; the smallest is its negative if signed, else zero.

    Raises:
        ValueError: fewer than 2 bits, or more than 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be from 2 to 8, not {bits}")
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def quantize(x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Integer codes as floats: `clamp(round(x * (1 / scale)), low, high)`, halves to even."""
    return torch.clamp(torch.round(x * scale.reciprocal()), low, high)


def quantize_weights(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize weights with one scale per output channel.

    The range is searched over a grid of clipping points; then the scale is fitted to the codes by
    least squares, which can only lower the error further.

    Args:
        weight: float (out, ...).
        bits: 2 to 8.

    Returns:
        Integer codes as floats, shaped like `weight`, and the scales (out,), all positive. Codes of
        a channel without a weight beyond 1e-30 are zero.
    """
    high = highest_level(bits)
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(1)
    largest = torch.where(largest > _NEXT_TO_ZERO, largest, torch.ones_like(largest))
    unclipped = _rounding_errors(rows, largest[None] / high, high)
    # The largest weight alone makes a range that ends at a share s of it err by (1 - s)**2 of its
    # square. With many bits that is more than rounding errs, and few ranges have to be tried.
    least = 1.0 - float((unclipped.sqrt() / largest).max())
    grid = _WEIGHT_CLIPPING[least - 1e-3 < _WEIGHT_CLIPPING][:-1].to(rows)
    # The whole range comes first, so that it is taken where several are equally good.
    scales = largest / high * torch.cat([grid.new_ones(1), grid])[:, None]  # (grid, out)
    errors = torch.cat([unclipped, _rounding_errors(rows, scales[1:], high)])
    choice = errors.argmin(0)
    best = scales.gather(0, choice[None]).squeeze(0)
    codes = quantize(rows, best[:, None], -high, high)
    energy = codes.square().sum(1)
    fitted = torch.where(energy > 0, (rows * codes).sum(1) / energy.clamp(min=1), best)
    return codes.view_as(weight), fitted


def _rounding_errors(rows: torch.Tensor, scales: torch.Tensor, high: int) -> torch.Tensor:
    """Squared errors (grid, out) of rows (out, inputs) quantized with scales (grid, out)."""
    # In place throughout: this runs for every layer of every new set of kept channels.
    errors = rows * scales.reciprocal()[:, :, None]  # (grid, out, inputs)
    errors.round_().clamp_(-high, high).mul_(scales[:, :, None]).sub_(rows)
    return errors.square_().sum(2)


def sample_values(x: torch.Tensor, count: int = SAMPLED_VALUES) -> torch.Tensor:
    """Magnitudes of at most `count` values of a tensor, evenly spread over it, float32."""
    x = x.detach()
    # All channels of some positions: these lie together where the order is channels-last.
    positions = x.movedim(1, -1).flatten(0, -2) if x.dim() > 1 else x
    step = max(1, x.numel() // count)
    if step % 2 == 0:
        step += 1  # an odd step does not fall on the same column again and again
    return positions[::step].to(torch.float32, copy=True).abs_().flatten()


def activation_scales(samples: list[torch.Tensor], levels: list[int]) -> torch.Tensor:
    """Scales that minimise the squared error of quantized activations.

    Args:
        samples: for every tensor the magnitudes of some of its values, any length.
        levels: for every tensor its highest integer code.

    Returns:
        float32 (tensors,) on the CPU, all positive.
    """
    return torch.stack([_activation_scale(*each) for each in zip(samples, levels, strict=True)])


def _activation_scale(sample: torch.Tensor, level: int) -> torch.Tensor:
    sample = sample.float().cpu()
    largest = sample.max()
    if not largest > _NEXT_TO_ZERO:
        largest = torch.ones(())
    places = (sample * (HISTOGRAM_BINS / largest)).int().clamp_(max=HISTOGRAM_BINS - 1)
    counts = torch.bincount(places, minlength=HISTOGRAM_BINS).float()  # faster than `histc`
    steps, errors = _clipping_errors(level)
    best = (errors * counts).sum(1).argmin()
    return largest * steps[best]


@lru_cache(maxsize=16)
def _clipping_errors(level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For values from 0 to 1: scales (grid,), and squared errors of each (grid, bins)."""
    with torch.inference_mode(False):
        centres = (torch.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
        steps = _CLIPPING / level
        error = centres * steps.reciprocal()[:, None]
        error = error.round_().clamp_(max=level).mul_(steps[:, None])
        return steps, error.sub_(centres).square_()


class QuantizedLayer(nn.Module):
    """A layer on integer codes that quantizes its own input: the reference semantics.

    The weights are quantized before BatchNorm is folded in, which is then a factor on the scales:
    scales per channel commute with BatchNorm, and codes do not depend on its statistics.

    Args:
        layer: convolution or linear layer as pruned. It is changed: its weights become codes
            (where `weight_bits` is below 32), its bias moves to this module.
        weight_bits: 2 to 8, or 32 for float.
        activation_bits: bits of the input, likewise.
        input_scale: scale of the quantized input; not used at 32 bits.
        input_nonnegative: whether the input's codes start at zero.
        factor: what a folded BatchNorm multiplies every output channel by, float (out,).
        offset: what it adds, float (out,).
        weight_scales: for weights that are codes already, their scales: (out,) for every
            convolution or linear layer of `layer`, in order. Empty: they are chosen here.
    """

    input_scale: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        layer: nn.Module,
        weight_bits: int,
        activation_bits: int,
        input_scale: torch.Tensor,
        input_nonnegative: bool,
        factor: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        weight_scales: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.low = self.high = 0
        if activation_bits < FLOAT_BITS:
            self.high = highest_level(activation_bits, signed=not input_nonnegative)
            self.low = 0 if input_nonnegative else -self.high
        scales, biases = [], []
        known = iter(weight_scales)
        with torch.no_grad():
            for part in layer_parts(layer):
                given = next(known, None) if isinstance(part, nn.Module) else None
                scale, bias = _integer_part(part, weight_bits, given)
                scales.append(scale)
                biases.append(bias)
        scale, bias = torch.cat(scales), torch.cat(biases)
        if factor is not None and offset is not None:
            scale, bias = scale * factor, bias * factor + offset
        self.layer = layer
        self.register_buffer("input_scale", input_scale.to(scale).clone())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias)
        self.choose_precision()

    def choose_precision(self) -> None:
        """Find out in which precision sums of codes are exact; anew after codes were loaded."""
        self.needs_double = self.high * self._largest_sum() > _EXACT_IN_FLOAT32

    def _largest_sum(self) -> float:
        """The largest sum of absolute weight codes of an output channel."""
        if self.weight_bits == FLOAT_BITS:
            return 0.0
        sums = [
            part.weight.detach().abs().flatten(1).sum(1).max()
            for part in self.layer.modules()
            if isinstance(part, (nn.Conv2d, nn.Linear))
        ]
        return float(torch.stack(sums).max()) if sums else 0.0  # nothing but constants

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Quantize the input, apply the layer to the codes, scale."""
        scale = self.weight_scale
        if self.high:
            x = quantize(x, self.input_scale, self.low, self.high)
            scale = scale * self.input_scale
        y = self.layer.double()(x.double()).float() if self.needs_double else self.layer(x)
        shape = (1, -1, 1, 1) if isinstance(self.layer, CONVOLUTIONS) else (-1,)
        result: torch.Tensor = y * scale.view(shape) + self.bias.view(shape)
        return result

    def extra_repr(self) -> str:
        """The bits, for printing."""
        return f"weight_bits={self.weight_bits}, activation_bits={self.activation_bits}"


def layer_parts(layer: nn.Module) -> list[nn.Module | torch.Tensor]:
    """The convolutions or linear layer that a layer consists of, and constants, in order."""
    return layer.ordered_parts() if isinstance(layer, UnevenGroupedConv2d) else [layer]


def _integer_part(
    part: nn.Module | torch.Tensor, bits: int, given: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a part's weights into codes and take its bias away: (scales, biases), (out,) each.

    Weights whose scale is given are codes already.
    """
    if isinstance(part, torch.Tensor):  # constant outputs of a group without inputs
        bias = part.detach().clone()
        part.zero_()
        return torch.ones_like(bias), bias
    assert isinstance(part, (nn.Conv2d, nn.Linear))
    scale = torch.ones(part.weight.shape[0]).to(part.weight)
    if given is not None:
        scale = given.detach().clone()
    elif bits < FLOAT_BITS:
        codes, scale = quantize_weights(part.weight, bits)
        part.weight.copy_(codes)
    bias = torch.zeros_like(scale) if part.bias is None else part.bias.detach().clone()
    part.bias = None
    return scale, bias
