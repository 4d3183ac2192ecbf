"""BatchNorm on batches in channels-last order: statistics, and what is done with them.

Values may be float32 or bfloat16; numbers per channel are float32. Values are taken in rows as they
lie in memory, all channels of a position after the other, so that few channels use the processor's
vectors as well as many: every column of the rows has statistics of its own, which are then joined.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


class Moments(NamedTuple):
    """Statistics of a batch, repeated for every position of a row.

    Attributes:
        size: number of values per channel.
        mean: float32 (positions, channels).
        variance: biased, float32 (positions, channels).
    """

    size: int
    mean: Tensor
    variance: Tensor


def moments(rows: Sequence[Tensor], channels: int) -> Moments:
    """Mean and variance of every channel of a batch.

    Args:
        rows: what `as_rows` gives for the parts of the batch, float32 or bfloat16.
        channels: number of channels.
    """
    unused = torch.zeros(rows[0].shape[1], device=rows[0].device)  # float32, as results are to be
    found = [torch.batch_norm_update_stats(part, unused, unused, 0.0) for part in rows]
    sizes = tuple(map(len, rows))
    means, variances = (
        (found[0][which] if len(found) == 1 else torch.cat([each[which] for each in found]))
        for which in (0, 1)
    )
    means, variances = means.view(-1, channels), variances.view(-1, channels)
    # To join them (Chan, Golub and LeVeque, 1979) as a product of matrices takes, for so few
    # numbers, a fifth of the time of a mean, and repeats the result for every position.
    shares = _shares(sizes, len(means) // len(sizes), means.device)
    mean = shares @ means
    off = means - shares.new_ones(len(sizes), 1).kron(mean) if len(sizes) > 1 else means - mean
    variance = shares @ torch.addcmul(variances, off, off)
    return Moments(sum(sizes) * len(mean), mean, variance)


@lru_cache(maxsize=64)
def _shares(sizes: tuple[int, ...], positions: int, device: torch.device) -> Tensor:
    """What every column of every part counts for: (positions, parts * positions)."""
    with torch.inference_mode(False):
        share = torch.tensor(sizes, dtype=torch.float64) / (sum(sizes) * positions)
        return share.float().repeat_interleave(positions).repeat(positions, 1).to(device)


def averages(batches: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Means over batches of their means and of their unbiased variances, (channels,)."""
    mean = torch.stack([batch.mean[0] for batch in batches]).mean(0)
    unbiased = [batch.variance[0] * (batch.size / max(1, batch.size - 1)) for batch in batches]
    return mean, torch.stack(unbiased).mean(0)


def normalize_(rows: Tensor, norm: BatchNorm, batch: Moments) -> None:
    """Do in place what a BatchNorm does, by the statistics of the batch.

    Args:
        rows: what `as_rows` gives, float32 or bfloat16.
        norm: the BatchNorm.
        batch: the statistics.
    """
    times, mean, variance = len(batch.mean), batch.mean.reshape(-1), batch.variance.reshape(-1)
    weight, bias = (
        None if value is None else value.detach().expand(times, -1).reshape(-1)
        for value in (norm.weight, norm.bias)
    )
    # One pass with products and sums in float32, whatever the type of the values.
    unused = rows.new_empty(0, dtype=torch.float32)
    torch.ops.aten.native_batch_norm.out(
        rows, weight, bias, mean, variance, False, 0.0, norm.eps,
        out=rows, save_mean=unused, save_invstd=unused,
    )  # fmt: skip


def own_moments(norm: BatchNorm, rows: Tensor) -> Moments:
    """The statistics that a BatchNorm keeps, for rows of values."""
    assert norm.running_mean is not None and norm.running_var is not None
    times = rows.shape[1] // len(norm.running_mean)
    return Moments(0, norm.running_mean.expand(times, -1), norm.running_var.expand(times, -1))


def affine(norm: BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """What a BatchNorm with these statistics multiplies and adds: factor, offset (channels,)."""
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    offset = -mean * factor
    if norm.bias is not None:
        offset = offset + norm.bias.detach()
    return factor, offset


def norm_as_affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation mode multiplies and adds: factor and offset, (channels,)."""
    assert norm.running_mean is not None and norm.running_var is not None
    return affine(norm, norm.running_mean, norm.running_var)


def folded(layer: nn.Conv2d | nn.Linear, factor: Tensor, offset: Tensor) -> nn.Module:
    """A layer with the BatchNorm behind it in its weights."""
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    shape = (-1,) + (1,) * (layer.weight.dim() - 1)
    bias = offset if layer.bias is None else layer.bias.detach() * factor + offset
    twin.weight = nn.Parameter(layer.weight.detach() * factor.view(shape), requires_grad=False)
    twin.bias = nn.Parameter(bias, requires_grad=False)
    return twin


def as_rows(x: Tensor) -> Tensor:
    """A tensor (n, C, ..., W) as (n * ..., W * C): without a copy if it is channels-last."""
    if x.dim() == 2:
        return x.contiguous()
    return x.movedim(1, -1).contiguous().view(-1, x.shape[-1] * x.shape[1])


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """Rows in the shape of the tensor that they were made of."""
    if rows.data_ptr() == like.data_ptr():
        return like
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)
