"""How much the channels of a network do alike: mean activations, and nearest neighbours by them.

The GCN channel-pruning paper (Jiang, Cao and Yang, IJCAI 2022) takes the distribution of a
channel's global average over a batch of images for its feature, and joins channels by the
Kullback-Leibler divergence of these distributions. Its text was not at hand beyond the abstract
and a summary, so what each function makes of that is this project's choice: inputs of layers in
units of their root mean square, the softmax over images, the symmetrised divergence and `exp` of
minus it, and a fixed number of neighbours. Everything here is computed once per network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from compress_env.layer_graph import LayerGraph

_BATCH = 64
_ROWS = 512
"""Channels compared with all others at once, so that memory stays small for wide layers."""

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(profiles (a, images), profiles (b, images)) -> (a, b)`, higher is more alike."""


def mean_activations(graph: LayerGraph, images: torch.Tensor) -> np.ndarray:
    """Global average of every channel on every image, as the layers read it.

    Every layer's input is averaged over its positions and divided by its root mean square over
    images and channels, so that no layer outvotes another; an atom that several layers read, such
    as one of a residual stream, gets the mean of what they see. Reading inputs rather than outputs
    takes normalisation, activation and additions in, whatever the network is built of.

    Args:
        graph: the layer graph of the dense network.
        images: float32 (images, channels, height, width), normalised as the network expects.

    Returns:
        float64 (atoms, images); zero for an atom that no layer reads.
    """
    seen: list[list[torch.Tensor]] = [[] for _ in graph.layers]
    hooks = []
    for index, layer in enumerate(graph.layers):

        def note(
            module: nn.Module,
            inputs: tuple[torch.Tensor, ...],
            store: list[torch.Tensor] = seen[index],
            channels: int = layer.in_channels,
        ) -> None:
            values = inputs[0].double()
            if not isinstance(module, nn.Linear):
                values = values.movedim(1, -1)
            means = values.reshape(len(batch), -1, channels).mean(1)
            if len(store) > number:  # the layer is called more than once
                store[number] += means
            else:
                store.append(means)

        hooks.append(graph.module.get_submodule(layer.name).register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            for number, batch in enumerate(images.split(_BATCH)):  # noqa: B007 the hooks read both
                graph.module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    total = torch.zeros(graph.atom_group.size, len(images), dtype=torch.float64)
    slots = torch.zeros(graph.atom_group.size, dtype=torch.float64)
    for layer, store in zip(graph.layers, seen, strict=True):
        means = torch.cat(store).cpu().T
        atoms = torch.from_numpy(layer.in_atoms)
        total.index_add_(0, atoms, means / means.square().mean().sqrt().clamp(min=1e-12))
        slots.index_add_(0, atoms, torch.ones(atoms.numel(), dtype=torch.float64))
    return (total / slots.clamp(min=1).unsqueeze(1)).numpy()


def divergence_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`exp(-J)` with J the symmetrised Kullback-Leibler divergence in nats, from 0 to 1.

    A channel's distribution is the softmax, over the images, of its standardised profile: on which
    images it is high, whatever its scale and offset, which the next layer makes up for.
    """
    p, q = _log_distribution(a), _log_distribution(b)
    own_p, own_q = (np.exp(p) * p).sum(1), (np.exp(q) * q).sum(1)
    across = np.exp(p) @ q.T + p @ np.exp(q).T
    distance = (own_p[:, None] + own_q[None] - across) / 2
    similarity: np.ndarray = np.exp(-np.maximum(distance, 0.0))
    return similarity


def _log_distribution(profiles: np.ndarray) -> np.ndarray:
    spread = np.maximum(profiles.std(1, keepdims=True), 1e-6)
    scores = (profiles - profiles.mean(1, keepdims=True)) / spread
    top = scores.max(1, keepdims=True)
    logs: np.ndarray = scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))
    return logs


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle between two profiles, from -1 to 1; 0 for a channel that is never on."""
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1)[:, None], 1e-12) for rows in (a, b))
    similarity: np.ndarray = a @ b.T
    return similarity


SIMILARITIES: dict[str, Similarity] = {
    "divergence": divergence_similarity,
    "cosine": cosine_similarity,
}
"""The measures by name."""


class Neighbours(NamedTuple):
    """The most similar channels of every channel.

    Attributes:
        indices: int64 (channels, k), the most similar first; of equals the one that comes first.
        similarity: float64 (channels, k).
    """

    indices: np.ndarray
    similarity: np.ndarray


def nearest(profiles: np.ndarray, k: int, measure: Similarity) -> Neighbours:
    """The k most similar other channels of every channel, or all others if there are fewer.

    Args:
        profiles: float64 (channels, images).
        k: at least 1.
        measure: how alike two profiles are.
    """
    count = len(profiles)
    k = min(k, count - 1)
    indices, values = np.empty((count, k), np.int64), np.empty((count, k))
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        similarity = measure(profiles[rows], profiles)
        similarity[rows - start, rows] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        indices[rows] = order
        values[rows] = np.take_along_axis(similarity, order, axis=1)
    return Neighbours(indices, values)
