"""PPO on graphs: what `compress-agents train` trains unless told otherwise."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from compress_agents.agents.stable_baselines import (
    StableBaselinesAgent,
    check_encoder,
    extractor_keywords,
)
from compress_agents.graph_networks.node_actor import NodeActorCriticPolicy
from compress_env.observations.layer import NODE_COLUMNS

__all__ = ["GraphPPO", "NodePPO", "PPOAgent"]

_LARGEST_BATCH = 256
_HIDDEN = 64


@dataclass(kw_only=True)
class PPOAgent(StableBaselinesAgent):
    """PPO (Schulman et al., 2017), with settings for episodes of one step.

    Args:
        update_interval: steps of each environment between updates, at least 2.
        update_epochs: passes over the gathered steps per update.
        learning_rate: of Adam, above 0.
        action_std: standard deviation of the first actions, above 0.
        clip_range: how far an update may change the probability of an action. With some 50 numbers
            to an action, the usual 0.2 stops an update while it still helps.
        discount: of later rewards, above 0 and at most 1; all that counts here is the reward at
            the end of an episode.
        entropy: weight of the entropy of actions, at least 0.

    Raises:
        ValueError: a setting is not allowed.
    """

    update_interval: int = 25
    update_epochs: int = 10
    learning_rate: float = 1e-3
    action_std: float = 0.1
    clip_range: float = 0.4
    discount: float = 1.0
    entropy: float = 0.0

    encoder_module: ClassVar[str] = "encoder"
    """Name of the module that is the graph network, within the features extractors."""
    prepare: Callable[[PPO], None] | None = field(default=None, init=False, repr=False)
    """Called with the algorithm once it is built, to give it weights from elsewhere."""

    def __post_init__(self) -> None:
        # PPO normalises advantages over an update, which takes two.
        if self.update_interval < 2 or self.update_epochs < 1:
            raise ValueError("update_interval must be at least 2 and update_epochs at least 1")
        if not self.learning_rate > 0 or not self.action_std > 0:
            raise ValueError("learning_rate and action_std must be above 0")
        if not 0 < self.discount <= 1 or self.entropy < 0 or self.clip_range <= 0:
            raise ValueError(
                "discount must be above 0 and at most 1, entropy at least 0, clip_range above 0"
            )

    @abstractmethod
    def policy(self, layer_by_layer: bool) -> tuple[Any, dict[str, Any]]:
        """Stable-Baselines3's policy, and the keywords for it."""

    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> PPO:
        """The algorithm, untrained."""
        policy, keywords = self.policy(layer_by_layer)
        gathered = self.update_interval * env.num_envs
        batches = math.ceil(gathered / _LARGEST_BATCH)
        with warnings.catch_warnings():
            # That the last batch of an update may be smaller than the others.
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            learner = PPO(
                policy,
                env,
                n_steps=self.update_interval,
                batch_size=math.ceil(gathered / batches),
                n_epochs=self.update_epochs,
                learning_rate=self.learning_rate,
                clip_range=self.clip_range,
                gamma=self.discount,
                ent_coef=self.entropy,
                seed=seed,
                policy_kwargs={"log_std_init": math.log(self.action_std), **keywords},
                # DGL's wheel knows the CPU only, and the agent is small.
                device="cpu",
            )
        if self.prepare is not None:
            self.prepare(learner)
        return learner


@dataclass(kw_only=True)
class GraphPPO(PPOAgent):
    """PPO with a graph network that is read out to one vector, or with a perceptron.

    Args:
        encoder: ``typed``, ``gcn``, ``gat``; ``flat`` for the same features without the graph.
    """

    encoder: str = "typed"

    def policy(self, layer_by_layer: bool) -> tuple[Any, dict[str, Any]]:
        """See `PPOAgent`."""
        layers = {"pi": [_HIDDEN], "vf": [_HIDDEN]}
        return "MultiInputPolicy", {**extractor_keywords(self.encoder), "net_arch": layers}

    def __post_init__(self) -> None:
        super().__post_init__()
        extractor_keywords(self.encoder)


@dataclass(kw_only=True)
class NodePPO(PPOAgent):
    """PPO whose actor and critic are heads shared by all nodes.

    Args:
        encoder: ``typed``, ``gcn`` or ``gat``.
    """

    encoder: str = "typed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)

    def policy(self, layer_by_layer: bool) -> tuple[Any, dict[str, Any]]:
        """See `PPOAgent`."""
        return NodeActorCriticPolicy, {
            "decision_column": NODE_COLUMNS.index("is_next") if layer_by_layer else None,
            "features_extractor_kwargs": {"encoder": self.encoder},
        }
