"""A node-wise actor-critic for Stable-Baselines3: one agent for networks of any depth.

Every number of the action, and the value, is computed from embeddings of nodes by heads that all
nodes share. No weight depends on how many layers or coupling groups there are, so the weights
learned on one network load into the agent of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from compress_agents.graph_networks.batching import (
    batch_graphs,
    group_layers,
    node_mask,
    scatter_nodes,
)
from compress_agents.graph_networks.encoders import build_encoder
from compress_agents.graph_networks.extractors import layer_graph_sizes, readout
from compress_env.dgl_import import dgl
from compress_env.graphs import NODE_TYPE

__all__ = ["NodeActorCriticPolicy", "NodeFeatures", "NodeFeaturesExtractor"]

KEEP, WEIGHT_BITS, ACTIVATION_BITS = range(3)
"""The kinds of numbers in an action; each has a standard deviation of its own."""


class NodeFeatures(NamedTuple):
    """What the heads read.

    Attributes:
        states: ``(nodes of all graphs, D)``, embeddings that know the whole graph.
        counts: int64 ``(B,)``, nodes per graph.
        observation: The padded observation.
    """

    states: Tensor
    counts: Tensor
    observation: Mapping[str, Tensor]


class NodeFeaturesExtractor(BaseFeaturesExtractor):
    """A graph network whose node embeddings are mixed with the readout of their graph.

    The state of a node is ``tanh(LayerNorm(W embedding + V [mean, maximum of its graph] + b))``.
    The norm keeps the hyperbolic tangent out of saturation whatever the encoder's scale.

    Args:
        observation_space: That of :class:`compress_env.wrappers.PaddedGraph`.
        encoder: A key of :data:`compress_agents.graph_networks.encoders.ENCODERS`.
        encoder_kwargs: Passed to the encoder, ``hidden_dim`` and ``num_layers`` for example.

    Raises:
        ValueError: If the space is another, or the encoder is unknown.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        encoder: str = "typed",
        encoder_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        num_node_features, num_globals, _ = layer_graph_sizes(observation_space)
        built = build_encoder(encoder, num_node_features, num_globals, **(encoder_kwargs or {}))
        super().__init__(observation_space, built.hidden_dim)
        self.encoder = built
        self.own = nn.Linear(built.hidden_dim, built.hidden_dim)
        self.context = nn.Linear(2 * built.hidden_dim, built.hidden_dim, bias=False)
        self.norm = nn.LayerNorm(built.hidden_dim)

    def forward(self, observations: dict[str, Tensor]) -> NodeFeatures:
        """The states of all nodes of a batch of padded observations."""
        graph = batch_graphs(observations)
        embeddings = self.encoder(graph)
        counts = graph.batch_num_nodes(NODE_TYPE)
        context = self.context(readout(graph, embeddings)).repeat_interleave(counts, dim=0)
        states = torch.tanh(self.norm(self.own(embeddings) + context))
        return NodeFeatures(states, counts, observations)


def _head(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, outputs))


class NodeActionHead(nn.Module):
    """Means of an action, and which kind of number each entry is.

    The layout is that of the environment: one number per coupling group, read from the mean state
    of the group's layers, then per layer weight bits and activation bits. With
    ``decision_column``, the action is instead the three numbers of the one layer to be decided.

    Args:
        dim: Length of a node's state.
        action_dim: Entries of an action.
        decision_column: Node feature that is highest for the layer to be decided next.
    """

    def __init__(self, dim: int, action_dim: int, decision_column: int | None = None) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.decision_column = decision_column
        self.group_head = _head(dim, 1)
        self.layer_head = _head(dim, 2)

    def forward(self, features: NodeFeatures) -> tuple[Tensor, Tensor]:
        """Means float32 and kinds int64, both ``(B, action_dim)``.

        Raises:
            ValueError: If the graph does not have as many groups and layers as the action.
        """
        mask = node_mask(features.observation)
        states = scatter_nodes(features.states, mask)
        if self.decision_column is not None:
            return self._decide_layer(features.observation, states, mask)
        return self._decide_network(features.observation, states, mask)

    def _decide_network(
        self, observation: Mapping[str, Tensor], states: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        membership = group_layers(observation)
        sizes = membership.sum(dim=2, keepdim=True).clamp(min=1)
        keep = self.group_head(membership @ states / sizes).squeeze(2)
        bits = self.layer_head(states).flatten(1)
        kinds = mask.new_zeros(keep.shape[1] + bits.shape[1], dtype=torch.long)
        kinds[keep.shape[1] :: 2] = WEIGHT_BITS
        kinds[keep.shape[1] + 1 :: 2] = ACTIVATION_BITS
        exists = torch.cat(
            [observation["group_mask"] > 0.5, mask.repeat_interleave(2, dim=1)], dim=1
        )
        if not bool((exists.sum(dim=1) == self.action_dim).all()):
            raise ValueError(
                f"observation must have groups + 2 * layers = {self.action_dim} entries to decide"
            )
        means = torch.cat([keep, bits], dim=1)[exists]
        shape = (len(mask), self.action_dim)
        return means.reshape(shape), kinds.expand_as(exists)[exists].reshape(shape)

    def _decide_layer(
        self, observation: Mapping[str, Tensor], states: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        column = observation["node_features"].reshape(*mask.shape, -1)[..., self.decision_column]
        current = column.masked_fill(~mask, -torch.inf).argmax(dim=1)
        state = states[torch.arange(len(states)), current]
        means = torch.cat([self.group_head(state), self.layer_head(state)], dim=1)
        kinds = torch.tensor([KEEP, WEIGHT_BITS, ACTIVATION_BITS], device=means.device)
        return means, kinds.expand_as(means)


class NodeValueHead(nn.Module):
    """The value of a graph: the mean over its nodes of what one shared head says."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = _head(dim, 1)

    def forward(self, features: NodeFeatures) -> Tensor:
        """Float32 ``(B, 1)``."""
        values: Tensor = dgl.ops.segment_reduce(features.counts, self.head(features.states), "mean")
        return values


class _Shared(nn.Module):
    """Takes the place of SB3's networks between extractor and heads: hands everything on."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = dim

    def forward(self, features: NodeFeatures) -> tuple[NodeFeatures, NodeFeatures]:
        return features, features

    def forward_actor(self, features: NodeFeatures) -> NodeFeatures:
        return features

    def forward_critic(self, features: NodeFeatures) -> NodeFeatures:
        return features


class NodeActorCriticPolicy(ActorCriticPolicy):
    """The node-wise actor-critic, for PPO, A2C and TRPO: ``PPO(NodeActorCriticPolicy, env)``.

    Actions are Gaussian. The initial mean is close to zero, which is the plan that a person would
    try first. The standard deviation is learned, one for kept channels, one for weight bits and
    one for activation bits.

    Args:
        observation_space: That of :class:`compress_env.wrappers.PaddedGraph`, of an environment
            with ``group_membership`` unless ``decision_column`` is given.
        action_space: ``Box``; groups + 2 * layers numbers, or 3 with ``decision_column``.
        lr_schedule: Learning rate by remaining progress.
        log_std_init: Initial logarithm of the standard deviations.
        decision_column: For layer-by-layer episodes, the node feature that is highest for the
            layer to be decided next.
        features_extractor_class: Must return :class:`NodeFeatures`.
        **keywords: Of ``ActorCriticPolicy``; ``net_arch`` has no effect.

    Raises:
        ValueError: If the action space is not a ``Box``, or ``use_sde`` is asked for.
    """

    action_net: Any
    value_net: Any

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        log_std_init: float = -1.0,
        decision_column: int | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = NodeFeaturesExtractor,
        **keywords: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"action_space must be a one-dimensional Box, got {action_space}")
        if keywords.get("use_sde"):
            raise ValueError("use_sde must be False: the node-wise actor has its own noise")
        if decision_column is not None and action_space.shape != (3,):
            raise ValueError(f"action_space must have 3 entries, got {action_space}")
        self.decision_column = decision_column
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            **keywords,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "decision_column": self.decision_column}

    def _build(self, lr_schedule: Schedule) -> None:
        dim, action_dim = self.features_dim, int(np.prod(self.action_space.shape or ()))
        self.mlp_extractor: Any = _Shared(dim)
        self.action_net = NodeActionHead(dim, action_dim, self.decision_column)
        self.value_net = NodeValueHead(dim)
        self.log_std = nn.Parameter(torch.full((3,), self.log_std_init))
        if self.ortho_init:
            self.apply(lambda module: self.init_weights(module, gain=2**0.5))
            self.init_weights(self.value_net.head[-1], gain=1)
        for head in (self.action_net.group_head, self.action_net.layer_head):
            self.init_weights(head[-1], gain=0.01)
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _get_action_dist_from_latent(self, latent_pi: Any) -> Distribution:
        means, kinds = self.action_net(latent_pi)
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        return self.action_dist.proba_distribution(means, self.log_std[kinds])
