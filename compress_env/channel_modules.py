"""Modules whose behaviour depends on which channels there are, so that pruning can rebuild them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class ChannelModule(nn.Module):
    """Base of the modules here; tracing does not look inside them."""


class SelectChannels(ChannelModule):
    """Pick channels by index: what a shuffle, a split or a slice does to a tensor's channels.

    Args:
        index: int64 (kept,), positions in dimension 1 of the input, in the order of the output.
    """

    index: torch.Tensor

    def __init__(self, index: Sequence[int] | np.ndarray) -> None:
        super().__init__()
        positions = np.asarray(index, dtype=np.int64)
        self.register_buffer("index", torch.from_numpy(positions.copy()), persistent=False)
        start = int(positions[0]) if positions.size else 0
        # A run of neighbours needs no copy.
        run = np.array_equal(positions, np.arange(start, start + positions.size))
        self.start = start if run else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Select from (N, C, ...) the channels: (N, kept, ...)."""
        if self.start is not None:
            return x.narrow(1, self.start, self.index.numel())
        return x.index_select(1, self.index.to(x.device))

    def extra_repr(self) -> str:
        """Number of channels, for printing."""
        return f"{self.index.numel()} channels"


class PadChannels(ChannelModule):
    """Put zero channels before and after those of a tensor (the shortcut of the CIFAR ResNets).

    Args:
        before: zero channels in front.
        after: zero channels behind.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad (N, C, H, W) to (N, before + C + after, H, W)."""
        return functional.pad(x, (0, 0) * (x.dim() - 2) + (self.before, self.after))

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        return f"before={self.before}, after={self.after}"


class UnevenGroupedConv2d(nn.Module):
    """A grouped convolution whose groups have different numbers of channels.

    Args:
        parts: for every group its convolution; None where no input or no output is left.
        in_sizes: input channels of every group.
        biases: for every group without inputs its outputs, (out,), which are constant; else None.
            A plain tensor of zeros stands for "no bias".
        geometry: kernel, stride, padding and dilation, vertical and horizontal; what is left of
            the convolution where no group has both inputs and outputs.
    """

    def __init__(
        self,
        parts: Sequence[nn.Conv2d | None],
        in_sizes: Sequence[int],
        biases: Sequence[torch.Tensor | None],
        geometry: Sequence[tuple[int, int, int, int]],
    ) -> None:
        super().__init__()
        self.in_sizes = list(in_sizes)
        self.geometry = [tuple(axis) for axis in geometry]
        self.parts = nn.ModuleDict({str(i): part for i, part in enumerate(parts) if part})
        self.constants: dict[str, str] = {}
        for i, bias in enumerate(biases):
            if isinstance(bias, nn.Parameter):
                self.register_parameter(f"bias_{i}", bias)
            elif bias is not None:
                self.register_buffer(f"bias_{i}", bias)
            if bias is not None:
                self.constants[str(i)] = f"bias_{i}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve every group of channels by itself: (N, C, H, W) to (N, C', H', W')."""
        pieces = x.split(self.in_sizes, 1)
        outputs = {key: part(pieces[int(key)]) for key, part in self.parts.items()}
        height, width = self.output_size(x.shape[2], x.shape[3])
        for key, name in self.constants.items():
            zeros = x.new_zeros(x.shape[0], 1, height, width)
            outputs[key] = zeros + getattr(self, name).view(1, -1, 1, 1)
        return torch.cat([outputs[key] for key in sorted(outputs, key=int)], 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for those of the input."""
        vertical, horizontal = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, (kernel, stride, padding, dilation) in zip(
                (height, width), self.geometry, strict=True
            )
        )
        return vertical, horizontal

    def ordered_parts(self) -> list[nn.Module | torch.Tensor]:
        """The convolutions, and the constants of groups without inputs, in output order."""
        constants = {key: getattr(self, name) for key, name in self.constants.items()}
        both: dict[str, nn.Module | torch.Tensor] = {**dict(self.parts.items()), **constants}
        return [both[key] for key in sorted(both, key=int)]
