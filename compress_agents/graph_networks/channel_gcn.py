"""A graph convolution network over the channels of a layer: which stay, and what bits they get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES
from compress_env.observations.channel import SCHEMA
from compress_env.observations.schema import GLOBAL_TYPE

__all__ = ["NODE", "ChannelGCN"]

NODE = SCHEMA.nodes[0].name
"""Node type of channels."""

_EDGE = SCHEMA.edges[0].ends
_LEAST_VARIANCE = 1e-6


class ChannelGCN(nn.Module):
    """Log-odds for every channel of a graph, and two numbers for the graph.

    Per round of graph convolution (Kipf and Welling, 2017)
    ``H' = ReLU(D^-1/2 (S + I) D^-1/2 H W + b)`` with S the similarities of neighbours and D the
    number of edges into and out of a node. What a channel was and what it has become are its
    embedding. The mean embedding of a graph says how many of its channels should stay, and its
    bits; how a channel differs from the mean, in units of the standard deviation (GraphNorm, Cai et
    al., 2021), says which. The features go in as they are and normed likewise: channels of a layer
    hardly differ otherwise, and a whole layer's log-odds rise and fall together. All outputs start
    at zero.

    Args:
        hidden_dim: length of an embedding, at least 1.
        num_layers: rounds of graph convolution, at least 1.
    """

    def __init__(self, hidden_dim: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        if min(hidden_dim, num_layers) < 1:
            raise ValueError("hidden_dim and num_layers must be at least 1")
        columns = 2 * len(SCHEMA.nodes[0].columns) + len(SCHEMA.globals)
        self.node_input = nn.Linear(columns, hidden_dim)
        self.convolutions = nn.ModuleList(
            dgl.nn.GraphConv(hidden_dim, hidden_dim, norm="both") for _ in range(num_layers)
        )
        self.channel_head = nn.Linear(2 * hidden_dim, 1, bias=False)
        self.graph_head = nn.Linear(2 * hidden_dim, 3)
        for parameter in (*self.channel_head.parameters(), *self.graph_head.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, graph: Any) -> tuple[Tensor, Tensor]:
        """Log-odds and numbers for bits of a batch of B observations.

        Args:
            graph: what the environment observes, or a batch of that.

        Returns:
            float32 (channels of all graphs,) and float32 (B, 2).
        """
        counts = graph.batch_num_nodes(NODE)
        of_graphs = graph.nodes[GLOBAL_TYPE].data[FEATURES].repeat_interleave(counts, dim=0)
        features = graph.nodes[NODE].data[FEATURES]
        columns = torch.cat([features, _normed(features, counts)[0], of_graphs], dim=1)
        first = hidden = torch.relu(self.node_input(columns))
        source, destination = graph.edges(etype=_EDGE)
        loops = torch.arange(len(columns))
        edges = dgl.graph((torch.cat([source, loops]), torch.cat([destination, loops])))
        similarity = graph.edges[_EDGE].data[FEATURES][:, 0]
        weights = torch.cat([similarity, torch.ones(len(columns))])
        for convolution in self.convolutions:
            hidden = torch.relu(convolution(edges, hidden, edge_weight=weights))
        both = torch.cat([first, hidden], dim=1)
        normed, means = _normed(both, counts)
        of_channels, of_graphs = self.channel_head(normed), self.graph_head(means)
        return of_channels[:, 0] + of_graphs[:, 0].repeat_interleave(counts), of_graphs[:, 1:]


def _normed(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less the mean of their graph, over its standard deviation; and the means.

    Args:
        values: float32 (nodes of all graphs, D).
        counts: int64 (B,), nodes per graph.

    Returns:
        float32 (nodes, D) and (B, D). Columns that are equal all over a graph become zero.
    """
    means = dgl.ops.segment_reduce(counts, values, "mean")
    different = values - means.repeat_interleave(counts, dim=0)
    variance = dgl.ops.segment_reduce(counts, different.square(), "mean")
    spread = (variance + _LEAST_VARIANCE).sqrt()
    return different / spread.repeat_interleave(counts, dim=0), means
