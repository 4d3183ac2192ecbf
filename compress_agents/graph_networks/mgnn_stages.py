"""The parts of m-GNN: messages that are products, a learned readout, and a stage made of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES
from compress_env.observations.hierarchical import OPERATION_COLUMNS, VALUE_COLUMNS

__all__ = ["LearnedReadout", "MotifEncoder", "ProductConvolution", "Stage"]


class ProductConvolution(nn.Module):
    """Messages are products of node and edge embeddings, element by element.

    ``h'_v = ReLU(W sum over u of (h_u * e_uv) / sqrt(d_u d_v) + b)``, where u runs over the nodes
    with an edge to v and v itself, with ``e_vv = 1``, and ``d`` is 1 + the number of edges into a
    node.

    That a message is the product of a node and an edge embedding is GNN-RL's (Yu et al., ICML
    2022). The paper's text was not at hand for the rest: roots of degrees and loops with ones are
    as in its released code (``models/multi_stage_gcn.py``), which adds ``b`` to every message
    before it is scaled; adding it once, to the sum, is this project's choice.

    Args:
        dim: Length of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, graph: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        """New embeddings of the nodes.

        Args:
            graph: A DGL graph with one kind of node and edge.
            nodes: float32 ``(nodes, dim)``.
            edges: float32 ``(edges, dim)``.

        Returns:
            float32 ``(nodes, dim)``.
        """
        scale = (1.0 + graph.in_degrees()).rsqrt().unsqueeze(1)
        scaled = nodes * scale
        summed = dgl.ops.u_mul_e_sum(graph, scaled, edges) + scaled
        return torch.relu(self.linear(scale * summed))


class LearnedReadout(nn.Module):
    """A weighted sum over the nodes of a graph, with weights that are learned.

    ``g = W sum over v of (softmax over v of a(h_v)) * k_v * h_v + b``, where ``a`` is linear and
    ``k_v``, the share of a node that is left, is 0 for a pruned node.

    Learned weights, and zeros for what is pruned, are GNN-RL's. Where the weights come from, the
    softmax of a linear map, is this project's choice, and so are shares between 0 and 1; the
    paper's released code takes the mean (``models/graph_encoder.py``).

    Args:
        dim: Length of the nodes' embeddings.
        embedding_dim: Length of the result.
    """

    def __init__(self, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, 1, bias=False)
        self.linear = nn.Linear(dim, embedding_dim)

    def forward(self, nodes: Tensor, owner: Tensor, count: int, kept: Tensor) -> Tensor:
        """One vector per graph.

        Args:
            nodes: float32 ``(nodes, dim)``.
            owner: int64 ``(nodes,)``, the graph of every node, in any order.
            count: Number of graphs.
            kept: float32 ``(nodes, 1)``, 0 to 1.

        Returns:
            float32 ``(count, embedding_dim)``.
        """
        ends = torch.arange(len(owner), device=owner.device), owner
        members = dgl.heterograph(
            {("node", "in", "graph"): ends}, num_nodes_dict={"node": len(owner), "graph": count}
        )
        shares = dgl.ops.edge_softmax(members, self.weight(nodes))
        embedding: Tensor = self.linear(dgl.ops.u_mul_e_sum(members, kept * nodes, shares))
        return embedding


class Stage(nn.Module):
    """Rounds of messages over one level, then the readout.

    Args:
        hidden_dim: Length of the embeddings of nodes and edges.
        embedding_dim: Length of the result.
        rounds: Rounds of messages.
    """

    def __init__(self, hidden_dim: int, embedding_dim: int, rounds: int) -> None:
        super().__init__()
        self.rounds = nn.ModuleList(ProductConvolution(hidden_dim) for _ in range(rounds))
        self.readout = LearnedReadout(hidden_dim, embedding_dim)

    def forward(
        self,
        graph: Any,
        nodes: Tensor,
        edges: Tensor,
        owner: Tensor,
        count: int,
        kept: Tensor | None = None,
    ) -> Tensor:
        """One vector per graph, at or above zero: float32 ``(count, embedding_dim)``.

        Args:
            graph: A DGL graph with one kind of node and edge, which may consist of many.
            nodes: float32 ``(nodes, hidden_dim)``.
            edges: float32 ``(edges, hidden_dim)``.
            owner: int64 ``(nodes,)``, the graph of every node, in any order.
            count: Number of graphs.
            kept: float32 ``(nodes, 1)``, share of every node that is left; by default all of it.
        """
        for convolve in self.rounds:
            nodes = convolve(graph, nodes, edges)
        kept = nodes.new_ones(len(nodes), 1) if kept is None else kept
        return torch.relu(self.readout(nodes, owner, count, kept))


class MotifEncoder(nn.Module):
    """The first stage: one embedding per motif.

    Args:
        hidden_dim: Length of the embeddings within a motif.
        embedding_dim: Length of a motif's embedding.
        rounds: Rounds of messages.
    """

    def __init__(self, hidden_dim: int, embedding_dim: int, rounds: int) -> None:
        super().__init__()
        # The first column is the motif's number, which says nothing about it.
        self.value = nn.Linear(len(VALUE_COLUMNS) - 1, hidden_dim)
        self.operation = nn.Linear(len(OPERATION_COLUMNS), hidden_dim)
        self.stage = Stage(hidden_dim, embedding_dim, rounds)

    def forward(self, graph: Any, owner: Tensor, count: int) -> Tensor:
        """Embeds motifs.

        Args:
            graph: The lower level: values and operations of all motifs.
            owner: int64 ``(values,)``, the motif of every value.
            count: Number of motifs.

        Returns:
            float32 ``(count, embedding_dim)``.
        """
        values = torch.relu(self.value(graph.ndata[FEATURES][:, 1:]))
        operations = self.operation(graph.edata[FEATURES])
        embedding: Tensor = self.stage(graph, values, operations, owner, count)
        return embedding
