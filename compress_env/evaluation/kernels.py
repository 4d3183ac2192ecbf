"""Integer kernels for CPUs: oneDNN's quantized convolution through PyTorch, checked before use.

Activations are unsigned 8-bit codes in channels-last order; signed codes are stored with a zero
point of 128. A convolution adds its products in int32, scales once, adds bias and, where it is
fused, a residual, and gives float32 or the codes of the next layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

SIGNED_ZERO_POINT = 128
_SATURATION_SAFE = 32767
_LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True)
class CodeFormat:
    """How a tensor is stored as unsigned 8-bit codes.

    Attributes:
        scale: real value of one step.
        zero_point: code of the value zero.
        low: smallest code.
        high: largest code.
    """

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(eq=False)
class IntegerConv:
    """A convolution ready to run on codes.

    Attributes:
        packed: weights as oneDNN wants them.
        scale: weight scales times the input's scale, float32 (out,).
        bias: float32 (out,).
        zeros: zero points of the weights, int32 (out,).
        input: format of the input codes.
        geometry: stride, padding, dilation, groups.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    zeros: torch.Tensor
    input: CodeFormat
    geometry: tuple[list[int], list[int], list[int], int]

    def to_float(self, codes: torch.Tensor, relu: bool) -> torch.Tensor:
        """Convolve codes: float32 (N, out, H, W)."""
        return self._plain(codes, 1.0, 0, torch.float32, relu)

    def to_codes(self, codes: torch.Tensor, relu: bool, output: CodeFormat) -> torch.Tensor:
        """Convolve codes and quantize the result: uint8 (N, out, H, W)."""
        result = self._plain(codes, output.scale, output.zero_point, torch.uint8, relu)
        return _clamp_codes(result, output)

    def add_to(self, residual: torch.Tensor, codes: torch.Tensor, relu: bool) -> torch.Tensor:
        """Convolve codes and add the result to a float32 residual, in place."""
        torch.ops.onednn.qconv2d_pointwise.binary(
            codes, 1.0, self.input.zero_point, self.packed, self.scale, self.zeros, residual,
            self.bias, *self.geometry, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0,
            "relu" if relu else "none", [], "",
        )  # fmt: skip
        return residual

    def _plain(
        self, codes: torch.Tensor, scale: float, zero_point: int, dtype: torch.dtype, relu: bool
    ) -> torch.Tensor:
        result: torch.Tensor = torch.ops.onednn.qconv2d_pointwise.default(
            codes, 1.0, self.input.zero_point, self.packed, self.scale, self.zeros, self.bias,
            *self.geometry, scale, zero_point, dtype, "relu" if relu else "none", [], "",
        )  # fmt: skip
        return result


def pack(
    layer: nn.Conv2d,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    input_format: CodeFormat,
    input_shape: list[int],
) -> IntegerConv:
    """Prepare a convolution.

    Args:
        layer: gives stride, padding, dilation and groups.
        codes: weight codes, int8 (out, in / groups, kh, kw).
        scale: weight scales, float32 (out,).
        bias: float32 (out,).
        input_format: format of the input codes.
        input_shape: shape of the input; without it oneDNN reorders the weights at every call.
    """
    padding = layer.padding
    assert isinstance(padding, tuple)
    geometry = (list(layer.stride), list(padding), list(layer.dilation), layer.groups)
    both = scale * torch.tensor(input_format.scale)
    packed = torch.ops.onednn.qconv_prepack(
        codes, both, 1.0, input_format.zero_point, *geometry, input_shape
    )
    zeros = torch.zeros(codes.shape[0], dtype=torch.int32)
    return IntegerConv(packed, both, bias, zeros, input_format, geometry)


def is_supported(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that the integer kernels know."""
    return (
        isinstance(layer, nn.Conv2d)
        and isinstance(layer.padding, tuple)
        and layer.padding_mode == "zeros"
        and integer_kernels().available
    )


def is_exact(codes: torch.Tensor, input_format: CodeFormat) -> bool:
    """Whether products of these weight and input codes are summed without saturation."""
    if not sums_fit(codes, input_format):
        return False
    if integer_kernels().exact_at_8_bits:
        return True
    # Without VNNI two products at a time are added in 16 bits.
    return 2 * input_format.high * int(codes.abs().max()) <= _SATURATION_SAFE


def sums_fit(codes: torch.Tensor, input_format: CodeFormat) -> bool:
    """Whether sums with these weight codes fit into 32 bits, whatever the input."""
    if 127 * codes[0].numel() * input_format.high <= _LARGEST_SUM:
        return True  # as nearly always, without a look at the codes
    return int(codes.abs().flatten(1).sum(1).max()) * input_format.high <= _LARGEST_SUM


@dataclass(frozen=True)
class IntegerKernels:
    """What this machine and this PyTorch can do.

    Attributes:
        available: whether the integer convolution runs and is right on small codes.
        exact_at_8_bits: whether it is right even where all codes are the largest.
        quantize: float32 to codes.
    """

    available: bool
    exact_at_8_bits: bool
    quantize: Callable[[torch.Tensor, CodeFormat], torch.Tensor]


@lru_cache(maxsize=1)
def integer_kernels() -> IntegerKernels:
    """Try the kernels once on a known convolution."""
    quantize = _quantize_plainly
    with warnings.catch_warnings():
        # PyTorch announces the end of its quantized tensors; the plain path is then taken.
        warnings.simplefilter("ignore")
        sample = torch.linspace(-3, 3, 64).view(1, 4, 4, 4)
        try:
            shape = CodeFormat(0.02, 128, 1, 255)
            same = torch.equal(_quantize_natively(sample, shape), _quantize_plainly(sample, shape))
            quantize = _quantize_natively if same else _quantize_plainly
        except (RuntimeError, AttributeError, TypeError):
            pass
    try:
        small, large = _probe(7, 15), _probe(127, 255)
    except (RuntimeError, AttributeError, TypeError):
        return IntegerKernels(False, False, quantize)
    return IntegerKernels(small, small and large, quantize)


def _probe(weight: int, value: int) -> bool:
    """Whether a convolution of constant codes gives the sum it should, in both fused forms."""
    # Weights are not made: that would draw from the global random state.
    layer = nn.utils.skip_init(nn.Conv2d, 32, 16, 3, padding=1, bias=False)
    codes = torch.full((16, 32, 3, 3), weight, dtype=torch.int8)
    inputs = torch.full((2, 32, 6, 6), value, dtype=torch.uint8)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    shape = CodeFormat(1.0, 0, 0, 255)
    conv = pack(layer, codes, torch.ones(16), torch.zeros(16), shape, list(inputs.shape))
    expected = torch.conv2d(inputs.double(), codes.double(), padding=1)
    plain = conv.to_float(inputs, relu=True)
    residual = torch.ones_like(plain)
    conv.add_to(residual, inputs, relu=True)
    return torch.equal(plain.double(), expected) and torch.equal(
        residual.double(), (expected.float() + 1).double()
    )


def _clamp_codes(codes: torch.Tensor, shape: CodeFormat) -> torch.Tensor:
    if shape.low > 0 and shape.high < 255:
        return codes.clamp_(shape.low, shape.high)
    if shape.high < 255:
        return codes.clamp_max_(shape.high)
    if shape.low > 0:
        return codes.clamp_min_(shape.low)
    return codes


def _quantize_natively(x: torch.Tensor, shape: CodeFormat) -> torch.Tensor:
    quantized: Any = torch.quantize_per_tensor(x, shape.scale, shape.zero_point, torch.quint8)
    # The codes themselves, without a copy.
    codes = torch.empty(0, dtype=torch.uint8).set_(
        quantized.untyped_storage(), 0, quantized.size(), quantized.stride()
    )
    return _clamp_codes(codes, shape)


def _quantize_plainly(x: torch.Tensor, shape: CodeFormat) -> torch.Tensor:
    scaled = torch.round(x * torch.tensor(shape.scale).reciprocal())
    return scaled.add_(shape.zero_point).clamp_(shape.low, shape.high).to(torch.uint8)
