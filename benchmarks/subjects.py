"""What is measured: networks with images, plans of uniform bits, and the floor of float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress_env.data import load_splits, normalize
from compress_env.importance import l1, rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.networks.weights import load_weights
from compress_env.normalization import BatchNorm, norm_as_affine
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune

__all__ = [
    "CALIBRATION_IMAGES",
    "Subject",
    "find_weights",
    "float_floor",
    "load_subject",
    "random_network",
    "uniform_plan",
]

CALIBRATION_IMAGES = 128
"""The environment's default."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with images.

    Attributes:
        name: of the network.
        graph: its layer graph.
        ranks: int (atoms,), which channels stay first.
        images: to evaluate, float32 (images, 3, 32, 32), channels-last, as a task has them.
        calibration: float32 (images, 3, 32, 32).
    """

    name: str
    graph: LayerGraph
    ranks: np.ndarray
    images: torch.Tensor
    calibration: torch.Tensor


def random_network(name: str) -> nn.Module:
    """A network of the registry for ten classes, with untrained weights."""
    torch.manual_seed(0)
    return build_network(name, 10).eval()


def find_weights(folder: str, network: str) -> Path:
    """The published checkpoint of a network in a folder.

    Raises:
        ValueError: there is none.
    """
    found = sorted(Path(folder).glob(f"{network}-*"))
    if not found:
        raise ValueError(f"weights_dir: there is no {network}-* in {folder}")
    return found[0]


def load_subject(
    name: str, count: int, data_root: str | None = None, weights_dir: str | None = None
) -> Subject:
    """A network with images, real ones where folders are given, else random ones.

    Args:
        name: of the network.
        count: images to evaluate.
        data_root: CIFAR-10 as image folders, with `val/`.
        weights_dir: the published checkpoints.

    Raises:
        ValueError: something is unknown or missing.
    """
    network = random_network(name)
    if weights_dir is not None:
        load_weights(network, find_weights(weights_dir, name))
    total = count + CALIBRATION_IMAGES
    if data_root is None:
        both = torch.randn(total, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    else:
        splits = load_splits("imagefolder", data_root)
        if len(splits.search) < total:
            raise ValueError(f"images must be at most {len(splits.search) - CALIBRATION_IMAGES}")
        both = normalize(splits.search.take(total).images, splits)
    images, calibration = both[:count].clone(), both[count:].clone()
    graph = trace(network)
    ranks = rank_channels(graph, l1(graph, calibration, torch.empty(0)))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    return Subject(name, graph, ranks, channels_last, calibration)


def uniform_plan(subject: Subject, bits: int, keep: float = 1.0) -> CompressionPlan:
    """Uniform bits, and the same kept share in every coupling group."""
    graph = subject.graph
    kept = [subject.ranks[atoms] < max(1, round(keep * atoms.size)) for atoms in graph.group_atoms]
    widths = np.full(len(graph.layers), bits)
    return CompressionPlan.of(graph, kept, widths, widths)


def float_floor(graph: LayerGraph, plan: CompressionPlan) -> nn.Module:
    """The pruned network in float32 with BatchNorm folded, channels-last."""
    network = prune(graph, plan.kept_atoms(graph))
    for layer_name, norm_name in graph.folds.items():
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        if not isinstance(layer, nn.Conv2d) or not isinstance(norm, BatchNorm):
            continue
        factor, offset = norm_as_affine(norm)
        with torch.no_grad():
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            bias = offset if layer.bias is None else layer.bias * factor + offset
            layer.bias = nn.Parameter(bias.detach())
        parent, _, leaf = norm_name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network.to(memory_format=torch.channels_last)
