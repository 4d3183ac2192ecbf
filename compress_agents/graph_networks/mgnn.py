"""m-GNN, the multi-stage graph network of GNN-RL (Yu, Mazaheri and Jannesari, ICML 2022).

First stage: every motif of the network is embedded once. Second stage: the embeddings of motifs are
the edges of the upper level, whose nodes are hidden states; what comes out is one vector. It reads
the observation ``hierarchical``.

In both stages a message is the element-wise product of a node and an edge embedding, and the
readout weights nodes by what it has learned of them. A hidden state stands for its channels, which
all have its embedding: pruned channels enter the readout as zeros, so a state counts with the share
of its channels that is kept.

The paper's motifs differ in nothing but structure. Here, too, their embeddings depend on kinds of
operations alone. This project's choices are what adds the rest: a linear map of the channels and
bits of a motif's occurrence goes to its edge, and one of the globals to every state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from compress_agents.graph_networks.batching import batch_graphs
from compress_agents.graph_networks.mgnn_stages import MotifEncoder, Stage
from compress_env.graphs import FEATURES
from compress_env.observations.hierarchical import (
    MOTIF_COLUMNS,
    MOTIF_SCALE,
    SCHEMA,
    STATE_COLUMNS,
)
from compress_env.observations.schema import GLOBAL_TYPE, GraphSchema

__all__ = ["MGNN", "MGNN_PRESET", "MGNNFeaturesExtractor"]

_LEVELS = tuple(
    GraphSchema((node,), (edge,), SCHEMA.globals)
    for node, edge in zip(SCHEMA.nodes, SCHEMA.edges, strict=True)
)
_UPPER, _LOWER = range(2)


class MGNN(nn.Module):
    """Both stages: padded hierarchical observations in, one vector per network out.

    Args:
        hidden_dim: Length of the embeddings of values, states, operations and edges.
        embedding_dim: Length of a motif's embedding and of the result.
        rounds: Rounds of messages in each stage.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, hidden_dim: int = 50, embedding_dim: int = 50, rounds: int = 1) -> None:
        super().__init__()
        if min(hidden_dim, embedding_dim, rounds) < 1:
            raise ValueError("hidden_dim, embedding_dim and rounds must be at least 1")
        self.motifs = MotifEncoder(hidden_dim, embedding_dim, rounds)
        self.state = nn.Linear(len(STATE_COLUMNS), hidden_dim)
        self.globals = nn.Linear(len(SCHEMA.globals), hidden_dim, bias=False)
        self.motif = nn.Linear(embedding_dim, hidden_dim)
        self.occurrence = nn.Linear(len(MOTIF_COLUMNS) - 1, hidden_dim, bias=False)
        self.stage = Stage(hidden_dim, embedding_dim, rounds)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Embeds a batch of networks.

        Args:
            observation: Padded observations, with a leading batch dimension B. Those with equal
                lower levels, as all of one environment have, share the embeddings of motifs.

        Returns:
            float32 ``(B, embedding_dim)``.
        """
        upper = batch_graphs(_level(observation, _UPPER), _LEVELS[_UPPER])
        embeddings, first_motif = self._embed_motifs(observation)
        edges, states = upper.edata[FEATURES], upper.nodes["state"].data[FEATURES]
        network = torch.arange(len(first_motif), device=states.device).repeat_interleave(
            upper.batch_num_nodes("state")
        )
        network_of_edge = network[upper.edges()[0]]
        number = first_motif[network_of_edge] + _motif_number(edges)
        of_motif, of_occurrence = self.motif(embeddings)[number], self.occurrence(edges[:, 1:])
        shared = self.globals(upper.nodes[GLOBAL_TYPE].data[FEATURES])[network]
        hidden = torch.relu(self.state(states) + shared)
        column = STATE_COLUMNS.index("kept_ratio")
        kept = (states[:, column : column + 1] + 1) / 2
        graph = upper[SCHEMA.edges[_UPPER].ends]
        result: Tensor = self.stage(
            graph, hidden, of_motif + of_occurrence, network, len(first_motif), kept
        )
        return result

    def _embed_motifs(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of all motifs, and for every network of the batch where its own begin."""
        lower = _level(observation, _LOWER)
        first, inverse = _distinct(lower)
        graph = batch_graphs({key: values[first] for key, values in lower.items()}, _LEVELS[_LOWER])
        motif = _motif_number(graph.nodes["value"].data[FEATURES])
        owner = torch.arange(len(first), device=motif.device).repeat_interleave(
            graph.batch_num_nodes("value")
        )
        counts = torch.zeros(len(first), dtype=torch.long, device=motif.device)
        counts.scatter_reduce_(0, owner, motif + 1, "amax")
        start = counts.cumsum(0) - counts
        only = graph[SCHEMA.edges[_LOWER].ends]
        embeddings = self.motifs(only, start[owner] + motif, int(counts.sum()))
        return embeddings, start[inverse]


def _motif_number(features: Tensor) -> Tensor:
    """The first column of values and of motif edges: int64."""
    return (features[:, 0] * MOTIF_SCALE).round().long()


def _level(observation: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Padded observations of one level alone; what is not of it is padding."""
    nodes = (observation["node_mask"] > 0.5) & (observation["node_types"].long() == number)
    edges = (observation["edge_mask"] > 0.5) & (observation["edge_types"].long() == number)

    def kept(name: str, mask: Tensor) -> Tensor:
        values = observation[name].float().reshape(*mask.shape, -1)
        return values.masked_fill(~mask.unsqueeze(2), 0.0).flatten(1)

    return {
        "node_features": kept("node_features", nodes),
        "node_mask": nodes.float(),
        "edges": kept("edges", edges),
        "edge_types": torch.zeros_like(edges),
        "edge_features": kept("edge_features", edges),
        "edge_mask": edges.float(),
        "globals": observation["globals"],
    }


def _distinct(level: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of a batch that differ: the first of each kind, and for every row which kind it is."""
    names = ("node_features", "node_mask", "edges", "edge_features", "edge_mask")
    rows = torch.cat([level[name] for name in names], dim=1)
    if bool((rows == rows[:1]).all()):
        return torch.zeros(1, dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
    kinds, inverse = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(kinds),), len(rows), dtype=torch.long)
    return first.scatter_reduce(0, inverse, torch.arange(len(rows)), "amin"), inverse


class MGNNFeaturesExtractor(BaseFeaturesExtractor):
    """m-GNN as a features extractor for Stable-Baselines3.

    Args:
        observation_space: That of :class:`compress_env.wrappers.PaddedGraph` around an environment
            with ``observation="hierarchical"``.
        hidden_dim: Length of the embeddings within both stages.
        embedding_dim: Length of a motif's embedding and of the features.
        rounds: Rounds of messages in each stage.

    Raises:
        ValueError: If the space is another, or a size is not positive.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        hidden_dim: int = 50,
        embedding_dim: int = 50,
        rounds: int = 1,
    ) -> None:
        if not _is_hierarchical(observation_space):
            raise ValueError(
                "observation_space must be that of compress_env.wrappers.PaddedGraph around an "
                f"environment with observation='hierarchical', got {observation_space}"
            )
        super().__init__(observation_space, embedding_dim)
        self.mgnn = MGNN(hidden_dim, embedding_dim, rounds)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Float32 ``(B, embedding_dim)`` for a batch of padded observations."""
        features: Tensor = self.mgnn(observations)
        return features


def _is_hierarchical(space: spaces.Space[Any]) -> bool:
    needed = {"node_features", "node_mask", "node_types", "edges", "edge_types", "edge_features",
              "edge_mask", "globals"}  # fmt: skip
    if not isinstance(space, spaces.Dict) or not needed <= set(space):
        return False
    sizes = {name: spaces.flatdim(space[name]) for name in needed}
    return (
        sizes["node_features"] == sizes["node_mask"] * SCHEMA.node_width
        and sizes["edge_features"] == sizes["edge_mask"] * SCHEMA.edge_width
        and sizes["globals"] == len(SCHEMA.globals)
    )


_EXTRACTOR: dict[str, Any] = {
    "features_extractor_class": MGNNFeaturesExtractor,
    "features_extractor_kwargs": {"hidden_dim": 50, "embedding_dim": 50},
    # Actor and critic each have an m-GNN of their own.
    "share_features_extractor": False,
    "activation_fn": nn.ReLU,
}

MGNN_PRESET: Mapping[str, Mapping[str, Any]] = {
    "environment": {"observation": "hierarchical", "metric": "macs", "bits": [32]},
    "ppo": {
        "policy_kwargs": {
            **_EXTRACTOR,
            "net_arch": {"pi": [200], "vf": []},
            "log_std_init": math.log(0.5),
        },
        "learning_rate": 3e-4,
        "n_steps": 100,
        "batch_size": 100,
        "n_epochs": 10,
        "clip_range": 0.2,
        "gamma": 0.99,
        "ent_coef": 0.01,
    },
    "ddpg": {"policy_kwargs": {**_EXTRACTOR, "net_arch": {"pi": [200], "qf": [200]}}},
}
"""The paper's settings, as keyword arguments.

``environment`` for ``gymnasium.make``: its task, pruning to a number of multiply-accumulates.
``ppo`` and ``ddpg`` for the classes of these names in Stable-Baselines3, with
``"MultiInputPolicy"``: (hidden, embedding) = (50, 50) and a head of 200. What the paper leaves open
for PPO, from ``n_steps`` to the standard deviation of 0.5, is as in the released code
(``gnnrl/parameter.py`` and ``lib/RL/agent.py`` of yusx-swapp/GNN-RL-Model-Compression). What
Stable-Baselines3's PPO does in its own way stays so: the standard deviation is learned, where the
released code keeps it; neither the mean of an action nor a value passes through a hyperbolic
tangent; and advantages are normalised where the released code normalises returns.
"""
