"""Keeping the codes of weights in bytes, for formats that store what a module keeps."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from compress_env.plan import FLOAT_BITS
from compress_env.quantization import QuantizedLayer, layer_parts


class _Bytes(nn.Module):
    """Whole numbers, kept as int8 and read as float32."""

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """What is read."""
        return codes.float()

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor]:
        """What is kept; a tuple, because of one tensor torch wants that it keeps its dtype."""
        return (weight.to(torch.int8),)


def with_int8_weights(network: nn.Module) -> nn.Module:
    """A copy of a compressed network that keeps weight codes as int8 and computes the same.

    Layers that need double precision keep theirs as they are.
    """
    twin = copy.deepcopy(network).requires_grad_(False)
    twin.to(memory_format=torch.contiguous_format)  # formats want storage without gaps
    for module in twin.modules():
        if not isinstance(module, QuantizedLayer) or module.weight_bits == FLOAT_BITS:
            continue
        for part in layer_parts(module.layer):
            if isinstance(part, (nn.Conv2d, nn.Linear)) and not module.needs_double:
                parametrize.register_parametrization(part, "weight", _Bytes(), unsafe=True)
    return twin
