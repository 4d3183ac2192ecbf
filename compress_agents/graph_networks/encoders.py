"""Graph networks in DGL: a batched observation graph in, one embedding per node out.

None of them knows how many nodes a graph has or in which order they come, so one encoder serves
networks of any depth. They see the globals as further features of every node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES, NODE_TYPE
from compress_env.observations.schema import GLOBAL_TYPE

__all__ = ["ENCODERS", "GAT", "GCN", "GraphEncoder", "TypedMessagePassing", "build_encoder"]

_FLOW = (NODE_TYPE, "flow", NODE_TYPE)
_COUPLING = (NODE_TYPE, "coupling", NODE_TYPE)


class GraphEncoder(nn.Module, ABC):
    """What the encoders have in common: features and globals in, embeddings out.

    Args:
        num_node_features: F, features per node.
        num_globals: G, features per graph.
        hidden_dim: D, length of an embedding.
        num_layers: Rounds of message passing, so how many edges far a node sees.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self, num_node_features: int, num_globals: int, hidden_dim: int = 32, num_layers: int = 3
    ) -> None:
        super().__init__()
        if min(hidden_dim, num_layers) < 1:
            raise ValueError("hidden_dim and num_layers must be at least 1")
        self.hidden_dim = hidden_dim
        self.node_input = nn.Linear(num_node_features, hidden_dim)
        # Applied once per graph instead of once per node: the same sum, less work.
        self.global_input = nn.Linear(num_globals, hidden_dim, bias=False)

    def forward(self, graph: Any) -> Tensor:
        """Embeds the nodes of a batched graph: float32 ``(nodes of all graphs, hidden_dim)``."""
        of_nodes = self.node_input(graph.nodes[NODE_TYPE].data[FEATURES])
        of_graphs = self.global_input(graph.nodes[GLOBAL_TYPE].data[FEATURES])
        spread = of_graphs.repeat_interleave(graph.batch_num_nodes(NODE_TYPE), dim=0)
        return self.propagate(graph, torch.relu(of_nodes + spread))

    @abstractmethod
    def propagate(self, graph: Any, hidden: Tensor) -> Tensor:
        """Passes messages along the edges; ``hidden`` and result are ``(nodes, hidden_dim)``."""


def undirected(graph: Any) -> Any:
    """All edges as one kind: data flow in both directions, coupling, and a loop at every node.

    Returns:
        A DGL graph with one node type. Nodes joined by both kinds of edges are joined twice.
    """
    flow_source, flow_destination = graph.edges(etype=_FLOW)
    source, destination = graph.edges(etype=_COUPLING)
    num_nodes = graph.num_nodes(NODE_TYPE)
    loops = torch.arange(num_nodes, device=source.device)
    ends = (
        torch.cat([flow_source, flow_destination, source, loops]),
        torch.cat([flow_destination, flow_source, destination, loops]),
    )
    return dgl.graph(ends, num_nodes=num_nodes)


class GCN(GraphEncoder):
    """Graph convolutions (Kipf and Welling, 2017) over all edges as one kind.

    Per layer ``H' = ReLU(D^-1/2 A D^-1/2 H W + b)``, with A the adjacency matrix of
    :func:`undirected` (loops included) and D its degrees.
    """

    def __init__(
        self, num_node_features: int, num_globals: int, hidden_dim: int = 32, num_layers: int = 3
    ) -> None:
        super().__init__(num_node_features, num_globals, hidden_dim, num_layers)
        self.layers = nn.ModuleList(
            dgl.nn.GraphConv(hidden_dim, hidden_dim, norm="both") for _ in range(num_layers)
        )

    def propagate(self, graph: Any, hidden: Tensor) -> Tensor:
        """See the class."""
        edges = undirected(graph)
        for layer in self.layers:
            hidden = torch.relu(layer(edges, hidden))
        return hidden


class GAT(GraphEncoder):
    """Graph attention (Velickovic et al., 2018) over all edges as one kind, with residuals.

    Args:
        num_node_features: F, features per node.
        num_globals: G, features per graph.
        hidden_dim: D, length of an embedding, a multiple of ``num_heads``.
        num_layers: Rounds of message passing.
        num_heads: Attention heads, each of length ``hidden_dim / num_heads``.

    Raises:
        ValueError: If the heads do not divide the embedding.
    """

    def __init__(
        self,
        num_node_features: int,
        num_globals: int,
        hidden_dim: int = 32,
        num_layers: int = 3,
        *,
        num_heads: int = 4,
    ) -> None:
        super().__init__(num_node_features, num_globals, hidden_dim, num_layers)
        if num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(f"num_heads must divide hidden_dim={hidden_dim}, got {num_heads}")
        self.layers = nn.ModuleList(
            dgl.nn.GATConv(hidden_dim, hidden_dim // num_heads, num_heads, residual=True)
            for _ in range(num_layers)
        )

    def propagate(self, graph: Any, hidden: Tensor) -> Tensor:
        """See the class."""
        edges = undirected(graph)
        for layer in self.layers:
            hidden = nn.functional.elu(layer(edges, hidden).flatten(1))
        return hidden


class TypedMessagePassing(GraphEncoder):
    """Message passing with a weight matrix of its own for every kind of edge.

    The kinds are data flow forward, data flow backward and coupling. Per layer, with means over
    the neighbours of a kind (zero where there is none):
    ``h' = LayerNorm(h + ReLU(W_self h + sum over kinds of W_kind mean(h of neighbours) + b))``,
    the relational graph convolution of Schlichtkrull et al. (2018) with a residual.
    """

    _KINDS = 3

    def __init__(
        self, num_node_features: int, num_globals: int, hidden_dim: int = 32, num_layers: int = 3
    ) -> None:
        super().__init__(num_node_features, num_globals, hidden_dim, num_layers)
        # W_self and all W_kind side by side, so that a layer is one product.
        self.layers = nn.ModuleList(
            nn.Linear((1 + self._KINDS) * hidden_dim, hidden_dim) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers))

    def propagate(self, graph: Any, hidden: Tensor) -> Tensor:
        """See the class."""
        flow = graph[_FLOW]
        kinds = (flow, dgl.reverse(flow), graph[_COUPLING])
        # Sums times shares are means; DGL's own mean counts the neighbours anew in every layer.
        shares = [1.0 / edges.in_degrees().clamp(min=1).unsqueeze(1) for edges in kinds]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            means = (
                share * dgl.ops.copy_u_sum(edges, hidden)
                for edges, share in zip(kinds, shares, strict=True)
            )
            update = layer(torch.cat([hidden, *means], dim=1))
            hidden = norm(hidden + torch.relu(update))
        return hidden


ENCODERS: Mapping[str, type[GraphEncoder]] = {"gat": GAT, "gcn": GCN, "typed": TypedMessagePassing}
"""The encoders by the names that :func:`build_encoder` and the command line know."""


def build_encoder(
    name: str, num_node_features: int, num_globals: int, **keywords: Any
) -> GraphEncoder:
    """Makes an encoder.

    Args:
        name: A key of :data:`ENCODERS`.
        num_node_features: F, features per node.
        num_globals: G, features per graph.
        **keywords: Passed to the encoder.

    Raises:
        ValueError: If there is no encoder of this name.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(sorted(ENCODERS))}, got {name!r}")
    return ENCODERS[name](num_node_features, num_globals, **keywords)
