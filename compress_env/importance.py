"""Which channels matter most: one score per atom, the higher the more important.

A criterion scores the output channels of every layer; the scores are divided by the layer's mean,
so that no layer of a coupling group outvotes the others, and summed over the group's layers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compress_env.checks import logits_of
from compress_env.layer_graph import FROZEN, Layer, LayerGraph

Importance = Callable[[LayerGraph, torch.Tensor, torch.Tensor], np.ndarray]
"""`(graph, calibration images, labels) -> float64 (atoms,)`."""


def _weight_rows(graph: LayerGraph, layer: Layer) -> torch.Tensor:
    weight = graph.module.get_submodule(layer.name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().flatten(1)


def _summed(graph: LayerGraph, score: Callable[[Layer], torch.Tensor | None]) -> np.ndarray:
    """Sum the scores of the layers' channels over the atoms."""
    total = np.zeros(graph.atom_group.size)
    for layer in graph.layers:
        scores = score(layer)
        if scores is not None:
            values = scores.double().cpu().numpy()
            np.add.at(total, layer.out_atoms, values / max(float(values.mean()), 1e-12))
    return total


def l1(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Sum of absolute weights (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _summed(graph, lambda layer: _weight_rows(graph, layer).abs().sum(1))


def l2(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Euclidean norm of the weights."""
    return _summed(graph, lambda layer: _weight_rows(graph, layer).norm(dim=1))


def geometric_median(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Sum of distances to the layer's other filters (He et al., FPGM, CVPR 2019)."""

    def score(layer: Layer) -> torch.Tensor:
        rows = _weight_rows(graph, layer)
        return torch.cdist(rows, rows).sum(1)

    return _summed(graph, score)


def norm_scale(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Absolute BatchNorm scale (Liu et al., Network Slimming, ICCV 2017).

    Channels without a BatchNorm of their own right behind their layer score zero.

    Raises:
        ValueError: no layer is followed by a BatchNorm.
    """
    if not graph.folds:
        raise ValueError("importance: 'norm_scale' needs BatchNorm behind layers; there is none")

    def score(layer: Layer) -> torch.Tensor | None:
        name = graph.folds.get(layer.name)
        weight = graph.module.get_submodule(name).weight if name is not None else None
        return weight.detach().abs() if isinstance(weight, torch.Tensor) else None

    return _summed(graph, score)


def taylor(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """First-order change of the loss without the channel (Molchanov et al., CVPR 2019)."""
    module = graph.module
    frozen = [parameter.requires_grad for parameter in module.parameters()]
    try:
        module.requires_grad_(True)
        with torch.enable_grad():
            logits = logits_of(module(images))
            loss = functional.cross_entropy(logits, labels.to(images.device))
            names = [layer.name for layer in graph.layers]
            weights = [module.get_submodule(name).weight for name in names]
            # Zeros for layers that only other outputs come from.
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)  # type: ignore[arg-type]
    finally:
        for parameter, before in zip(module.parameters(), frozen, strict=True):
            parameter.requires_grad_(before)
    changes = {
        name: (weight.detach() * gradient).flatten(1).sum(1).abs()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
        if isinstance(weight, nn.Parameter)
    }
    return _summed(graph, lambda layer: changes[layer.name])


def random(graph: LayerGraph, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """A fixed random order: the control that every criterion must beat."""
    return np.random.default_rng(0).random(graph.atom_group.size)


IMPORTANCES: dict[str, Importance] = {
    "l1": l1,
    "l2": l2,
    "geometric_median": geometric_median,
    "norm_scale": norm_scale,
    "taylor": taylor,
    "random": random,
}
"""The criteria by name."""


def rank_channels(graph: LayerGraph, scores: np.ndarray) -> np.ndarray:
    """Place of every atom in its group, 0 for the first to keep; -1 for frozen atoms.

    Where a group's atoms lie in different groups of a grouped convolution, the places go around
    these in turn, so that any number of kept channels is spread over them evenly.

    Args:
        graph: the layer graph.
        scores: float (atoms,), higher is more important.

    Returns:
        int64 (atoms,).
    """
    ranks = np.full(graph.atom_group.size, FROZEN, dtype=np.int64)
    for atoms in graph.group_atoms:
        ranks[atoms] = rank_group(graph, atoms, scores[atoms])
    return ranks


def rank_group(graph: LayerGraph, atoms: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Places of the atoms of one group, int64 (size,); see `rank_channels`.

    Args:
        graph: the layer graph.
        atoms: int64 (size,), the group's atoms.
        scores: float (size,), higher is more important.
    """
    cells = graph.atom_cell[atoms]
    by_score = np.lexsort((-scores, cells))
    _, start, size = np.unique(cells[by_score], return_index=True, return_counts=True)
    within = np.arange(atoms.size) - np.repeat(start, size)
    turn = (within + 0.5) / np.repeat(size, size)
    order = by_score[np.lexsort((-scores[by_score], np.round(turn, 9)))]
    ranks = np.empty(atoms.size, dtype=np.int64)
    ranks[order] = np.arange(atoms.size)
    return ranks
