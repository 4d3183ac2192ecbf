"""Padded observations to one batched DGL graph: the only place where this happens.

There is no loop over the batch or its nodes: masks select the nodes and edges that exist, and a
running count of nodes turns positions within a padded graph into ids within the batched one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES
from compress_env.observations.schema import GLOBAL_TYPE, GraphSchema, numbered_layer_schema

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


def batch_graphs(observation: Mapping[str, Tensor], schema: GraphSchema | None = None) -> Any:
    """Makes one batched DGL graph of a batch of padded observations.

    Args:
        observation: What :class:`compress_env.wrappers.PaddedGraph` returns, as tensors of any
            number type on the CPU, with a leading batch dimension B.
        schema: Types and columns of the graphs; by default nodes that are all layers.

    Returns:
        The graph that ``dgl.batch`` would make of the graphs that were padded: the same node and
        edge types, features and order, and numbers of nodes and edges per graph.
    """
    mask = node_mask(observation)
    batch_size, max_nodes = mask.shape
    features = observation["node_features"].float().reshape(batch_size, max_nodes, -1)
    global_features = observation["globals"].float()
    if schema is None:
        schema = numbered_layer_schema(features.shape[2], global_features.shape[1])
    node_types = observation.get("node_types", torch.zeros_like(mask)).long()
    places = torch.arange(batch_size, device=mask.device).reshape(-1, 1, 1) * max_nodes
    rows = observation["edges"].long().reshape(batch_size, -1, 2) + places
    edge_mask = observation["edge_mask"] > 0.5
    edge_types = observation["edge_types"].long()

    of_node_type = [mask & (node_types == number) for number in range(len(schema.nodes))]
    # Padded position -> node id among the batched graph's nodes of that type.
    node_ids = [chosen.reshape(-1).cumsum(dim=0) - 1 for chosen in of_node_type]
    of_edge_type = [edge_mask & (edge_types == number) for number in range(len(schema.edges))]
    edges = {}
    for kind, (source, destination), chosen in zip(
        schema.edges, schema.edge_ends, of_edge_type, strict=True
    ):
        from_rows, to_rows = rows[chosen].unbind(dim=1)
        edges[kind.ends] = (node_ids[source][from_rows], node_ids[destination][to_rows])
    counts = {
        node.name: chosen.sum(dim=1)
        for node, chosen in zip(schema.nodes, of_node_type, strict=True)
    }
    counts[GLOBAL_TYPE] = torch.ones(batch_size, dtype=torch.long, device=mask.device)
    graph = dgl.heterograph(
        edges, num_nodes_dict={name: int(count.sum()) for name, count in counts.items()}
    )
    graph.set_batch_num_nodes(counts)
    graph.set_batch_num_edges(
        {
            kind.ends: chosen.sum(dim=1)
            for kind, chosen in zip(schema.edges, of_edge_type, strict=True)
        }
    )
    for node, chosen in zip(schema.nodes, of_node_type, strict=True):
        graph.nodes[node.name].data[FEATURES] = features[chosen][:, : len(node.columns)]
    for kind, chosen in zip(schema.edges, of_edge_type, strict=True):
        if kind.columns:
            values = observation["edge_features"].float().reshape(*edge_mask.shape, -1)
            graph.edges[kind.ends].data[FEATURES] = values[chosen][:, : len(kind.columns)]
    graph.nodes[GLOBAL_TYPE].data[FEATURES] = global_features
    return graph
