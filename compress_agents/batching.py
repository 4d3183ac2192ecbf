"""Padded observations to one batched DGL graph: the only place where this happens.

There is no loop over the batch: masks select the nodes and edges that exist, and a running count
of nodes turns positions within a padded graph into ids within the batched one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES, GLOBAL_TYPE, NODE_TYPE
from compress_env.observations.arrays import EDGE_TYPES

__all__ = ["batch_graphs", "group_layers", "node_mask", "scatter_nodes"]


def node_mask(observation: Mapping[str, Tensor]) -> Tensor:
    """Which positions hold a node: bool ``(B, max_nodes)``."""
    return observation["node_mask"] > 0.5


def group_layers(observation: Mapping[str, Tensor]) -> Tensor:
    """Which layers are in which coupling group: float32 ``(B, max_groups, max_nodes)``.

    Raises:
        ValueError: If the observation does not say.
    """
    if "group_layers" not in observation:
        raise ValueError(
            "observation must have the key group_layers: PaddedGraph adds it when the environment "
            "has group_membership and shows one node per layer"
        )
    num_nodes = observation["node_mask"].shape[1]
    membership = observation["group_layers"].float()
    return membership.reshape(len(membership), -1, num_nodes)


def scatter_nodes(values: Tensor, mask: Tensor) -> Tensor:
    """Puts one row per node back into place, with zeros where there is none.

    Args:
        values: ``(nodes of all graphs, D)``, in the order of the batched graph.
        mask: bool ``(B, max_nodes)`` from :func:`node_mask`.

    Returns:
        ``(B, max_nodes, D)``.
    """
    padded = values.new_zeros((*mask.shape, values.shape[-1]))
    padded[mask] = values
    return padded


def batch_graphs(
    observation: Mapping[str, Tensor], edge_type_names: tuple[str, ...] = EDGE_TYPES
) -> Any:
    """Makes one batched DGL graph of a batch of padded observations.

    Args:
        observation: What :class:`compress_env.wrappers.PaddedGraph` returns, as tensors of any
            number type on the CPU, with a leading batch dimension B.
        edge_type_names: One name per edge type.

    Returns:
        The graph that ``dgl.batch`` would make of the graphs that were padded: the same node and
        edge types, features and order, and numbers of nodes and edges per graph.
    """
    mask = node_mask(observation)
    batch_size, max_nodes = mask.shape
    counts = mask.sum(dim=1)
    # Padded position -> node id in the batched graph.
    node_ids = mask.reshape(-1).cumsum(dim=0) - 1
    num_nodes = int(counts.sum())

    first_row = torch.arange(batch_size, device=mask.device).reshape(-1, 1, 1) * max_nodes
    rows = observation["edges"].long().reshape(batch_size, -1, 2) + first_row
    edge_mask = observation["edge_mask"] > 0.5
    edge_types = observation["edge_types"].long()
    edges = {}
    edge_counts = {}
    for index, name in enumerate(edge_type_names):
        of_type = edge_mask & (edge_types == index)
        source, destination = node_ids[rows[of_type]].unbind(dim=1)
        edges[NODE_TYPE, name, NODE_TYPE] = (source, destination)
        edge_counts[NODE_TYPE, name, NODE_TYPE] = of_type.sum(dim=1)

    graph = dgl.heterograph(edges, num_nodes_dict={NODE_TYPE: num_nodes, GLOBAL_TYPE: batch_size})
    graph.set_batch_num_nodes({NODE_TYPE: counts, GLOBAL_TYPE: torch.ones_like(counts)})
    graph.set_batch_num_edges(edge_counts)
    features = observation["node_features"].float().reshape(batch_size, max_nodes, -1)
    graph.nodes[NODE_TYPE].data[FEATURES] = features[mask]
    graph.nodes[GLOBAL_TYPE].data[FEATURES] = observation["globals"].float()
    return graph
