"""Convolutions of integer codes on a GPU, by tensor cores that stay exact.

TensorFloat-32 reads 11 significant bits of its operands and sums in float32 (CUDA C++ Programming
Guide, "Alternate Floating Point"): codes of at most 8 bits are read whole, and their sums are whole
numbers that float32 holds up to 2**24. What an algorithm such as Winograd's adds to them by
rounding is far below one half, and is rounded away. float16 would not do: it would hold the sums
as well, and knows no odd numbers above 2048.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from compress_env.quantization import QuantizedLayer, quantize


class CodeConv(nn.Module):
    """What a quantized convolution does, as whole sums of codes in float32.

    Args:
        layer: the quantized layer. Its layer is an `nn.Conv2d`, its input is quantized, and its
            sums fit into float32 (`needs_double` is False).
        tensor_cores: whether to allow TensorFloat-32.
    """

    def __init__(self, layer: QuantizedLayer, tensor_cores: bool) -> None:
        super().__init__()
        self.conv = layer.layer.to(memory_format=torch.channels_last)
        self.low, self.high = layer.low, layer.high
        self.input_scale = layer.input_scale
        self.scale = (layer.weight_scale * layer.input_scale).view(1, -1, 1, 1)
        self.bias = layer.bias.view(1, -1, 1, 1)
        self.tensor_cores = tensor_cores

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W'), float32."""
        codes = quantize(x, self.input_scale, self.low, self.high)
        with convolution_precision(x.device, self.tensor_cores):
            sums: Tensor = self.conv(codes)
        return sums.round_().mul_(self.scale).add_(self.bias)


@contextmanager
def convolution_precision(device: torch.device, tensor_cores: bool) -> Iterator[None]:
    """Let float32 convolutions on a GPU use TensorFloat-32, or not. Elsewhere nothing changes."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=True,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=tensor_cores,
    ):
        yield


@lru_cache(maxsize=8)
def tensor_cores_are_exact(device: torch.device) -> bool:
    """Try tensor cores once on convolutions of the largest codes."""
    generator = torch.Generator().manual_seed(0)
    for kernel, groups, channels in ((3, 1, 48), (1, 1, 64), (3, 32, 32)):
        shape = (32, channels // groups, kernel, kernel)
        weights = torch.randint(-127, 128, shape, generator=generator).double()
        codes = torch.randint(0, 256, (4, channels, 12, 12), generator=generator).double()
        expected = torch.conv2d(codes, weights, padding=1, groups=groups)
        x, w = (
            part.float().to(device).contiguous(memory_format=torch.channels_last)
            for part in (codes, weights)
        )
        with convolution_precision(device, tensor_cores=True):
            found = torch.conv2d(x, w, padding=1, groups=groups)
        if not torch.equal(found.round_().cpu().double(), expected):
            return False
    return True
