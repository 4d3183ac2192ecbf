"""Searches that learn nothing: what an agent has to beat at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["WHOLE_NETWORK", "GaussianSearch", "RandomSearch", "Uniform", "play", "reward_of"]

WHOLE_NETWORK: Mapping[str, Any] = {"step_mode": "network", "project_to_budget": True}
"""The environment in which one action is one plan that meets the target."""

Array = npt.NDArray[np.float32]


def reward_of(env: Any, action: npt.NDArray[np.floating[Any]]) -> float:
    """Play the episode of one whole-network action; see `WHOLE_NETWORK`.

    Args:
        env: the measured environment.
        action: (groups + 2 * layers,); what is outside of [-1, 1] is clipped.

    Returns:
        The reward.
    """
    env.reset()
    _, reward, _, _, _ = env.step(np.clip(action, -1.0, 1.0).astype(np.float32))
    return float(reward)


def play(env: Any, action: Callable[[int, int], Array]) -> None:
    """Play episodes until the budget is spent.

    Args:
        env: the measured environment.
        action: from an episode's number, from 0, and the entries of an action to the action.
    """
    size = env.action_space.shape[0]
    index = 0
    while True:
        reward_of(env, action(index, size))
        index += 1


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Uniform bits that just meet the target, nothing pruned: the action zero."""

    environment: ClassVar[Mapping[str, Any]] = WHOLE_NETWORK

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """One evaluation; see `compress_agents.agents.Agent`."""
        reward_of(env, np.zeros(env.action_space.shape, np.float32))


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Actions drawn uniformly from [-1, 1], projected onto the budget."""

    environment: ClassVar[Mapping[str, Any]] = WHOLE_NETWORK

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""

        def action(index: int, size: int) -> Array:
            generator = np.random.default_rng([seed, index])
            return generator.uniform(-1.0, 1.0, size).astype(np.float32)

        play(env, action)


@dataclass(frozen=True, kw_only=True)
class GaussianSearch:
    """Actions drawn normally around zero, so around uniform bits.

    Args:
        action_std: standard deviation, above 0 and at most 1.

    Raises:
        ValueError: it is not.
    """

    action_std: float = 0.1
    environment: ClassVar[Mapping[str, Any]] = WHOLE_NETWORK

    def __post_init__(self) -> None:
        if not 0 < self.action_std <= 1:
            raise ValueError(f"action_std must be above 0 and at most 1, not {self.action_std}")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""

        def action(index: int, size: int) -> Array:
            generator = np.random.default_rng([seed, index])
            return generator.normal(0.0, self.action_std, size).astype(np.float32)

        play(env, action)
