"""Running networks as they are, such as fine-tuned ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.checks import logits_of
from compress_env.data import ImageSet, Splits, normalize
from compress_env.evaluation.evaluator import Evaluation

_BATCH = 100


@torch.no_grad()
def run_network(network: nn.Module, images: Tensor, batch_size: int = _BATCH) -> Tensor:
    """Outputs of a network, of several the first: float32 (images, classes), on the CPU.

    Args:
        network: in evaluation mode.
        images: float32 (images, channels, height, width), normalised, on the network's device.
        batch_size: images per forward pass.

    Raises:
        ValueError: the network returns neither a tensor nor a tuple of them.
    """
    # The order of the engines, so that float operations round alike.
    images = images.contiguous(memory_format=torch.channels_last)
    batches = images.split(batch_size)
    return torch.cat([logits_of(network(batch)).float().cpu() for batch in batches])


def evaluate_network(
    network: nn.Module, images: ImageSet, splits: Splits, batch_size: int = _BATCH
) -> Evaluation:
    """Run a network on images of a data set, of which only a batch at a time is in memory.

    Args:
        network: in evaluation mode, with at least one parameter, which tells its device.
        images: such as `splits.test`.
        splits: the data set, for its normalisation.
        batch_size: images per forward pass.
    """
    device = next(network.parameters()).device
    outputs = []
    for start in range(0, len(images), batch_size):
        some = torch.from_numpy(np.array(images.images[start : start + batch_size]))
        outputs.append(run_network(network, normalize(some.to(device), splits)))
    return Evaluation(torch.cat(outputs), torch.from_numpy(images.labels.copy()))
