"""Random crops and mirror images of whole batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its side, black moving in; mirror one in two.

    That is the usual crop after padding by 4 for 32x32 images, and a shift by at most one pixel
    for 8x8.

    Args:
        images: uint8 (N, 3, H, W), on any device.
        mirror: whether images are mirrored at all.
        generator: on the CPU, so that every device sees the same images.

    Returns:
        uint8 (N, 3, H, W), on the device of ``images``.
    """
    count, _, height, width = images.shape
    margin = max(1, min(height, width) // 8)
    device = images.device
    padded = F.pad(images, (margin,) * 4)
    shifts = torch.randint(2 * margin + 1, (2, count, 1), generator=generator).to(device)
    rows = shifts[0] + torch.arange(height, device=device)
    columns = shifts[1] + torch.arange(width, device=device)
    if mirror:
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    each = torch.arange(count, device=device)[:, None, None]
    # (N, H, W, 3): an index on both sides of the channels moves these to the end.
    cut = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)
