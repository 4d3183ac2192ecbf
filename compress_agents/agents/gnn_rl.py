"""GNN-RL (Yu, Mazaheri and Jannesari, ICML 2022): PPO or DDPG with m-GNN on the two-level graph.

Hidden states and embeddings of 50 and a head of 200 are the paper's. The defaults of the algorithms
are this project's, for searches of a few hundred evaluations; the agent ``gnn-rl-paper`` has those
of the paper's released code. The paper's task is ``metric="macs", bits=[32]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from compress_agents.agents.off_policy import DDPGAgent
from compress_agents.agents.ppo import PPOAgent
from compress_agents.graph_networks.mgnn import MGNN_PRESET

__all__ = ["GNNRL", "GNNRLWithDDPG"]


@dataclass(kw_only=True)
class GNNRL(PPOAgent):
    """PPO with an m-GNN each for actor and critic."""

    environment: ClassVar[Mapping[str, Any]] = {"observation": "hierarchical"}
    encoder_module: ClassVar[str] = "mgnn"

    def policy(self, layer_by_layer: bool) -> tuple[Any, dict[str, Any]]:
        """See `PPOAgent`."""
        keywords = dict(MGNN_PRESET["ppo"]["policy_kwargs"])
        del keywords["log_std_init"]  # follows `action_std`
        return "MultiInputPolicy", keywords


@dataclass(kw_only=True)
class GNNRLWithDDPG(DDPGAgent):
    """DDPG with an m-GNN each for actor and critic, which the paper compares PPO with."""

    environment: ClassVar[Mapping[str, Any]] = {"observation": "hierarchical"}
    encoder: str = field(default="m-gnn", init=False)

    def policy_keywords(self) -> dict[str, Any]:
        """See `OffPolicyAgent`."""
        return dict(MGNN_PRESET["ddpg"]["policy_kwargs"])
