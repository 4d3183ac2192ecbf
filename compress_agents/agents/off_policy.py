"""SAC, TD3 and DDPG of Stable-Baselines3 with the graph network, set for few, short episodes.

A search has a few hundred episodes, most of one step, and its rewards differ in the third decimal
place. So the algorithms see rewards in hundredths from that of uniform bits, act in a part of the
action space around uniform bits, explore there from the first step, and start with an actor that
proposes uniform bits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from compress_agents.agents.stable_baselines import (
    StableBaselinesAgent,
    extractor_keywords,
    play_base,
)
from compress_agents.measuring import unwrap
from compress_env.wrappers import PaddedGraph

__all__ = ["DDPGAgent", "SACAgent", "TD3Agent"]

_HIDDEN = 64
_LARGEST_BUFFER = 10_000
_LARGEST_REWARD = 10.0
_SMALL = 0.01


class CentredBox(gymnasium.spaces.Box):
    """A `Box(-1, 1)` that is sampled normally around zero: what a first random action should be.

    Args:
        shape: of an element.
        std: standard deviation before clipping.
    """

    def __init__(self, shape: tuple[int, ...], std: float) -> None:
        super().__init__(-1.0, 1.0, shape, np.float32)
        self.std = std

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """A random element."""
        drawn = self.np_random.normal(0.0, self.std, self.shape)
        return np.clip(drawn, -1.0, 1.0).astype(np.float32)


class AroundUniform(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Actions in a part of the space around zero, rewards from that of the action zero.

    The first `reset` plays one episode of zeros for it.

    Args:
        env: with actions in `Box(-1, 1)`.
        reach: the action -1 or 1 stands for this much.
        action_std: of random actions, in the units of `env`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], reach: float, action_std: float) -> None:
        super().__init__(env)
        shape = env.action_space.shape or ()
        self.action_space = CentredBox(shape, action_std / reach)
        self.reach = reach
        self._reward_of_zero: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if self._reward_of_zero is None:
            self._reward_of_zero = play_base(self.env)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; the reward is in hundredths, from -10 to 10."""
        observation, reward, terminated, truncated, info = self.env.step(self.reach * action)
        scaled = 0.0
        if terminated or truncated:
            assert self._reward_of_zero is not None
            # A plan that breaks the network must not drown what all others say.
            scaled = 100.0 * (float(reward) - self._reward_of_zero)
            scaled = float(np.clip(scaled, -_LARGEST_REWARD, _LARGEST_REWARD))
        return observation, scaled, terminated, truncated, info


@dataclass(kw_only=True)
class OffPolicyAgent(StableBaselinesAgent):
    """What the three have in common.

    Args:
        warm_up: episodes of random actions around uniform bits, at least 1.
        batch_size: steps that a gradient is computed from.
        gradient_steps: per step of the environment.
        learning_rate: of actor and critic, above 0.
        action_std: standard deviation of the noise on an action, above 0 and at most 1.
        reach: how far from uniform bits an action can be, above 0 and at most 1.
        encoder: ``typed``, ``gcn``, ``gat``; ``flat`` for the same features without the graph.

    Raises:
        ValueError: a setting is not allowed.
    """

    warm_up: int = 50
    batch_size: int = 32
    gradient_steps: int = 1
    learning_rate: float = 3e-4
    action_std: float = 0.05
    reach: float = 0.2
    encoder: str = "typed"
    starts_with_base: ClassVar[bool] = False
    _steps: int = field(default=1, init=False, repr=False)
    _steps_in_all: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.warm_up, self.batch_size, self.gradient_steps) < 1:
            raise ValueError("warm_up, batch_size and gradient_steps must be at least 1")
        if not 0 < self.action_std <= 1 or not 0 < self.reach <= 1:
            raise ValueError("action_std and reach must be above 0 and at most 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        self.policy_keywords()

    def policy_keywords(self) -> dict[str, Any]:
        """Stable-Baselines3's ``policy_kwargs``."""
        return {"net_arch": [_HIDDEN], **extractor_keywords(self.encoder)}

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """See `StableBaselinesAgent`."""
        return AroundUniform(PaddedGraph(env), self.reach, self.action_std)

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`; the first evaluation is that of uniform bits."""
        inner = unwrap(env)
        self._steps = inner.layers_to_decide if inner.step_mode == "layer" else 1
        self._steps_in_all = evaluations * self._steps
        super().search(env, seed, max(evaluations - 1, 1))

    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> OffPolicyAlgorithm:
        """The algorithm, untrained."""
        size = env.action_space.shape or ()
        keywords = {
            "env": env,
            "seed": seed,
            "learning_rate": self.learning_rate,
            # What is gathered in a search fits, however long an observation is.
            "buffer_size": min(self._steps_in_all, _LARGEST_BUFFER),
            "learning_starts": self.warm_up * self._steps,
            "batch_size": self.batch_size,
            "gradient_steps": self.gradient_steps,
            "train_freq": 1,
            "tau": 0.02,
            # All that counts is the reward at the end of an episode.
            "gamma": 1.0,
            "policy_kwargs": self.policy_keywords(),
            # DGL's wheel knows the CPU only, and the agent is small.
            "device": "cpu",
        }
        std = self.action_std / self.reach
        return self.algorithm(keywords, std, NormalActionNoise(np.zeros(size), np.full(size, std)))

    @abstractmethod
    def algorithm(
        self, keywords: dict[str, Any], std: float, noise: NormalActionNoise
    ) -> OffPolicyAlgorithm:
        """The algorithm of these keywords.

        Args:
            keywords: of its constructor.
            std: of the noise on an action.
            noise: for algorithms without noise of their own.
        """


@dataclass(kw_only=True)
class SACAgent(OffPolicyAgent):
    """Soft actor-critic (Haarnoja et al., 2018).

    Args:
        entropy: its weight, at least 0; rewards are in hundredths.
    """

    entropy: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entropy >= 0:
            raise ValueError(f"entropy must be at least 0, not {self.entropy}")

    def algorithm(
        self, keywords: dict[str, Any], std: float, noise: NormalActionNoise
    ) -> OffPolicyAlgorithm:
        """See `OffPolicyAgent`."""
        learner = SAC("MultiInputPolicy", ent_coef=self.entropy, **keywords)
        start_small(learner.actor.mu, 0.0)
        start_small(learner.actor.log_std, math.log(std))
        return learner


@dataclass(kw_only=True)
class TD3Agent(OffPolicyAgent):
    """Twin delayed DDPG (Fujimoto et al., 2018)."""

    def algorithm(
        self, keywords: dict[str, Any], std: float, noise: NormalActionNoise
    ) -> OffPolicyAlgorithm:
        """See `OffPolicyAgent`."""
        return started_at_zero(
            TD3(
                "MultiInputPolicy",
                action_noise=noise,
                target_policy_noise=std,
                target_noise_clip=2 * std,
                **keywords,
            )
        )


@dataclass(kw_only=True)
class DDPGAgent(OffPolicyAgent):
    """Deep deterministic policy gradient (Lillicrap et al., 2016)."""

    def algorithm(
        self, keywords: dict[str, Any], std: float, noise: NormalActionNoise
    ) -> OffPolicyAlgorithm:
        """See `OffPolicyAgent`."""
        return started_at_zero(DDPG("MultiInputPolicy", action_noise=noise, **keywords))


def start_small(layer: Any, bias: float) -> None:
    """Make the outputs of a linear layer close to one number."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(_SMALL)
        layer.bias.fill_(bias)


def started_at_zero(learner: TD3) -> TD3:
    """Make the actor, and its copy, propose actions close to zero."""
    *_, last, _ = learner.actor.mu
    start_small(last, 0.0)
    learner.actor_target.load_state_dict(learner.actor.state_dict())
    return learner
