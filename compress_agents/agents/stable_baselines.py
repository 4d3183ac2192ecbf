"""What agents made of Stable-Baselines3's algorithms have in common."""

from __future__ import annotations

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from compress_agents.graph_networks.encoders import ENCODERS
from compress_agents.graph_networks.extractors import DGLFeaturesExtractor, FlatFeaturesExtractor
from compress_agents.measuring import unwrap
from compress_env.env import JointPruneQuantEnv
from compress_env.wrappers import PaddedGraph

__all__ = ["FLAT", "StableBaselinesAgent", "extractor_keywords", "play_best"]

FLAT = "flat"
"""In place of an encoder: a multilayer perceptron on the same features, without the graph."""

_NODE_VALUES = 4


def extractor_keywords(encoder: str) -> dict[str, Any]:
    """Keywords of a Stable-Baselines3 ``policy_kwargs`` for the features extractor.

    Args:
        encoder: a key of `ENCODERS`, or `FLAT`.

    Raises:
        ValueError: it is neither.
    """
    check_encoder(encoder, FLAT)
    if encoder == FLAT:
        return {"features_extractor_class": FlatFeaturesExtractor}
    return {
        "features_extractor_class": DGLFeaturesExtractor,
        "features_extractor_kwargs": {"encoder": encoder, "node_values": _NODE_VALUES},
    }


def check_encoder(encoder: str, *others: str) -> None:
    """Refuse what is neither a key of `ENCODERS` nor one of the others.

    Raises:
        ValueError: names what is allowed.
    """
    known = [*ENCODERS, *others]
    if encoder not in known:
        raise ValueError(f"encoder must be one of {', '.join(known)}, not '{encoder}'")


@dataclass(kw_only=True)
class StableBaselinesAgent(ABC):
    """An algorithm of Stable-Baselines3 with a graph network; the last evaluation is without noise.

    Where a step decides the whole network, the first evaluation is of the base plan, action zero,
    so that no search ends below what it started from.

    Attributes:
        environment: arguments of the environment that the agent cannot do without.
        starts_with_base: whether `search` plays the base plan; else the algorithm's wrapper does.
        learner: the algorithm, once a search has begun.
    """

    environment: ClassVar[Mapping[str, Any]] = {}
    starts_with_base: ClassVar[bool] = True
    learner: BaseAlgorithm | None = field(default=None, init=False, repr=False)

    @abstractmethod
    def build(self, env: VecEnv, seed: int, layer_by_layer: bool) -> BaseAlgorithm:
        """The algorithm, untrained.

        Args:
            env: observes padded graphs.
            seed: of the weights and of all that the algorithm draws.
            layer_by_layer: whether a step decides one layer.
        """

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """What the algorithm sees of the measured environment."""
        return PaddedGraph(env)

    def check(self, env: JointPruneQuantEnv) -> None:
        """Build the algorithm once, to see that it takes what the environment shows.

        Raises:
            ValueError: it does not.
        """
        self.build(DummyVecEnv([lambda: self.wrap(env)]), 0, env.step_mode == "layer")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""
        layer_by_layer = unwrap(env).step_mode == "layer"
        padded = self.wrap(env)
        self.learner = self.build(DummyVecEnv([lambda: padded]), seed, layer_by_layer)
        left = evaluations - 1
        if left > 1 and self.starts_with_base and not layer_by_layer:
            play_base(padded)
            left -= 1
        if left > 0:
            # Steps are without limit: the callback counts episodes.
            self.learner.learn(2**31, callback=_StopAfter(left))
        play_best(self.learner, padded)

    def save(self, path: pathlib.Path) -> None:
        """Write the algorithm as Stable-Baselines3 does, without what it has gathered."""
        assert self.learner is not None
        self.learner.save(path)


class _StopAfter(BaseCallback):
    """Ends the learning after a number of episodes."""

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self._left = episodes

    def _on_step(self) -> bool:
        self._left -= int(np.sum(self.locals["dones"]))
        return self._left > 0


def play_base(env: gymnasium.Env[Any, Any]) -> float:
    """One episode of action zero, which is the base plan; the sum of its rewards."""
    env.reset()
    action, done, total = np.zeros(env.action_space.shape or (), np.float32), False, 0.0
    while not done:
        _, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        done = terminated or truncated
    return total


def play_best(learner: BaseAlgorithm, env: gymnasium.Env[Any, Any]) -> None:
    """One episode of what an algorithm takes for best, without noise."""
    observation, _ = env.reset()
    done, state = False, None
    start = np.ones(1, dtype=bool)
    while not done:
        action, state = learner.predict(
            observation, state=state, episode_start=start, deterministic=True
        )
        start = np.zeros(1, dtype=bool)
        observation, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
