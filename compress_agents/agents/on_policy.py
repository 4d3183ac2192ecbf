"""A2C, TRPO and recurrent PPO of Stable-Baselines3 with the graph network of `ppo`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import A2C
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from compress_agents.agents.stable_baselines import StableBaselinesAgent, extractor_keywords

__all__ = ["A2CAgent", "RecurrentPPOAgent", "TRPOAgent"]

_HIDDEN = 64


@dataclass(kw_only=True)
class OnPolicyAgent(StableBaselinesAgent):
    """What the three have in common.

    Args:
        update_interval: steps between updates, at least 2.
        learning_rate: of the algorithm's optimizer, above 0.
        action_std: standard deviation of the first actions, above 0 and at most 1.
        encoder: ``typed``, ``gcn``, ``gat``; ``flat`` for the same features without the graph.

    Raises:
        ValueError: a setting is not allowed.
    """

    update_interval: int = 25
    learning_rate: float = 1e-3
    action_std: float = 0.1
    encoder: str = "typed"

    def __post_init__(self) -> None:
        if self.update_interval < 2:
            raise ValueError(f"update_interval must be at least 2, not {self.update_interval}")
        if not 0 < self.action_std <= 1:
            raise ValueError(f"action_std must be above 0 and at most 1, not {self.action_std}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        extractor_keywords(self.encoder)

    def keywords(self, env: VecEnv, seed: int) -> dict[str, Any]:
        """Of the algorithm's constructor."""
        return {
            "env": env,
            "seed": seed,
            "n_steps": self.update_interval,
            "learning_rate": self.learning_rate,
            # All that counts is the reward at the end of an episode.
            "gamma": 1.0,
            "policy_kwargs": {
                "log_std_init": math.log(self.action_std),
                "net_arch": {"pi": [_HIDDEN], "vf": [_HIDDEN]},
                **extractor_keywords(self.encoder),
            },
            # DGL's wheel knows the CPU only, and the agent is small.
            "device": "cpu",
        }


@dataclass(kw_only=True)
class A2CAgent(OnPolicyAgent):
    """A2C (Mnih et al., *Asynchronous methods for deep reinforcement learning*, 2016)."""

    update_interval: int = 10

    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> OnPolicyAlgorithm:
        """The algorithm, untrained."""
        keywords = self.keywords(env, seed)
        # Without it, updates follow the value's error, which is large at first.
        return A2C("MultiInputPolicy", normalize_advantage=True, use_rms_prop=False, **keywords)


@dataclass(kw_only=True)
class TRPOAgent(OnPolicyAgent):
    """TRPO (Schulman et al., *Trust region policy optimization*, 2015).

    Args:
        trust_region: largest divergence of an update, in nats, above 0.
    """

    trust_region: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trust_region > 0:
            raise ValueError(f"trust_region must be above 0, not {self.trust_region}")

    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> OnPolicyAlgorithm:
        """The algorithm, untrained."""
        return TRPO(
            "MultiInputPolicy",
            batch_size=self.update_interval,
            target_kl=self.trust_region,
            **self.keywords(env, seed),
        )


@dataclass(kw_only=True)
class RecurrentPPOAgent(OnPolicyAgent):
    """PPO with an LSTM between graph network and heads, for episodes of many steps.

    Args:
        update_epochs: passes over the gathered steps per update, at least 1.
    """

    update_epochs: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update_epochs < 1:
            raise ValueError(f"update_epochs must be at least 1, not {self.update_epochs}")

    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> OnPolicyAlgorithm:
        """The algorithm, untrained."""
        keywords = self.keywords(env, seed)
        keywords["policy_kwargs"]["lstm_hidden_size"] = _HIDDEN
        return RecurrentPPO(
            "MultiInputLstmPolicy",
            batch_size=self.update_interval,
            n_epochs=self.update_epochs,
            clip_range=0.4,
            **keywords,
        )
