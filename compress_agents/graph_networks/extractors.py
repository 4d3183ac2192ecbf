"""Features extractors for Stable-Baselines3: padded observations in, one vector per graph out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from compress_agents.graph_networks.batching import batch_graphs, node_mask, scatter_nodes
from compress_agents.graph_networks.encoders import ENCODERS, build_encoder
from compress_env.dgl_import import dgl
from compress_env.graphs import NODE_TYPE

__all__ = [
    "DGLFeaturesExtractor",
    "FlatFeaturesExtractor",
    "layer_graph_sizes",
    "padded_sizes",
    "readout",
]


def padded_sizes(observation_space: spaces.Space[Any]) -> tuple[int, int, int]:
    """Node features F, globals G and ``max_nodes`` of a padded observation space.

    Raises:
        ValueError: If the space is not that of ``compress_env.wrappers.PaddedGraph``.
    """
    needed = {"node_features", "node_mask", "edges", "edge_types", "edge_mask", "globals"}
    if not isinstance(observation_space, spaces.Dict) or not needed <= set(observation_space):
        raise ValueError(
            "observation_space must be that of compress_env.wrappers.PaddedGraph, "
            f"got {observation_space}"
        )
    sizes = {name: spaces.flatdim(observation_space[name]) for name in needed}
    max_nodes = sizes["node_mask"]
    return sizes["node_features"] // max_nodes, sizes["globals"], max_nodes


def layer_graph_sizes(observation_space: spaces.Space[Any]) -> tuple[int, int, int]:
    """:func:`padded_sizes` of graphs as the encoders read them.

    Raises:
        ValueError: If the space is another, or its graphs have further node types or features of
            edges, which the encoders would not look at.
    """
    sizes = padded_sizes(observation_space)
    assert isinstance(observation_space, spaces.Dict)
    further = {"node_types", "edge_features"} & set(observation_space)
    if further:
        raise ValueError(
            "observation must be 'layer', or one without several node types and features of edges, "
            f"for the encoders {', '.join(sorted(ENCODERS))}; this one has {', '.join(further)}"
        )
    return sizes


def readout(graph: Any, embeddings: Tensor) -> Tensor:
    """Mean and maximum over the nodes of each graph.

    Args:
        graph: A batched graph of B graphs.
        embeddings: ``(nodes of all graphs, D)``.

    Returns:
        ``(B, 2 * D)``.
    """
    counts = graph.batch_num_nodes(NODE_TYPE)
    return torch.cat(
        [dgl.ops.segment_reduce(counts, embeddings, reducer) for reducer in ("mean", "max")], dim=1
    )


class DGLFeaturesExtractor(BaseFeaturesExtractor):
    """A graph network over the batched DGL graph, read out to one vector per graph.

    The vector is ``tanh(W [mean of embeddings, maximum of embeddings, globals] + b)``. It does not
    depend on how nodes are numbered or how far a graph is padded, unless ``node_values`` is
    positive: then every node adds that many numbers at a place of its own, which lets a plain
    network act on single layers but ties the agent to one network.

    Args:
        observation_space: That of :class:`compress_env.wrappers.PaddedGraph`.
        features_dim: Length of the vector.
        encoder: A key of :data:`compress_agents.graph_networks.encoders.ENCODERS`.
        encoder_kwargs: Passed to the encoder, ``hidden_dim`` and ``num_layers`` for example.
        node_values: Numbers per node to add in fixed order, 0 for none.

    Raises:
        ValueError: If the space is another, the encoder is unknown, or ``node_values`` is negative.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        features_dim: int = 128,
        encoder: str = "typed",
        encoder_kwargs: Mapping[str, Any] | None = None,
        node_values: int = 0,
    ) -> None:
        super().__init__(observation_space, features_dim)
        if node_values < 0:
            raise ValueError(f"node_values must be at least 0, got {node_values}")
        num_node_features, num_globals, max_nodes = layer_graph_sizes(observation_space)
        self.encoder = build_encoder(
            encoder, num_node_features, num_globals, **(encoder_kwargs or {})
        )
        hidden_dim = self.encoder.hidden_dim
        self.node_output = nn.Linear(hidden_dim, node_values) if node_values else None
        read = 2 * hidden_dim + num_globals + max_nodes * node_values
        self.output = nn.Linear(read, features_dim)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Float32 ``(B, features_dim)`` for a batch of padded observations."""
        graph = batch_graphs(observations)
        embeddings = self.encoder(graph)
        parts = [readout(graph, embeddings), observations["globals"]]
        if self.node_output is not None:
            mask = node_mask(observations)
            parts.append(scatter_nodes(self.node_output(embeddings), mask).flatten(1))
        return torch.tanh(self.output(torch.cat(parts, dim=1)))


class FlatFeaturesExtractor(BaseFeaturesExtractor):
    """The same features without the graph: a multilayer perceptron on all of them in a row.

    This is what graph networks are compared with. It sees every number that they see, but not
    which nodes the edges join. It takes any observation.

    Args:
        observation_space: That of :class:`compress_env.wrappers.PaddedGraph`.
        features_dim: Length of the vector.
        hidden: Sizes of the layers before the last.

    Raises:
        ValueError: If the space is another.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        features_dim: int = 128,
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__(observation_space, features_dim)
        num_node_features, num_globals, max_nodes = padded_sizes(observation_space)
        read = max_nodes * num_node_features + num_globals
        if "edge_features" in observation_space.spaces:
            read += spaces.flatdim(observation_space["edge_features"])
        sizes = [read, *hidden, features_dim]
        self.layers = nn.Sequential(
            *(
                module
                for before, after in pairwise(sizes)
                for module in (nn.Linear(before, after), nn.Tanh())
            )
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Float32 ``(B, features_dim)`` for a batch of padded observations."""
        names = ("node_features", "globals", "edge_features")
        flat = torch.cat([observations[name] for name in names if name in observations], dim=1)
        features: Tensor = self.layers(flat)
        return features
