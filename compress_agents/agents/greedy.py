"""Greedy search by measured sensitivity, and local improvement of what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compress_agents.agents.sensitivity import (
    Floats,
    Space,
    State,
    lower_to_budget,
    measure_losses,
    search_space,
)

__all__ = ["Greedy"]


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """One layer at a time: least loss per saved cost first (the idea of HAWQ, Dong et al., 2019).

    What a step of one bit-width loses is measured around uniform bits. From the largest plan,
    whatever loses least per saved cost is lowered, until the target is met. What remains of the
    evaluations goes to plans around the best one: a few random steps, then back onto the budget in
    the same greedy way, with sensitivities that are changed at random.

    Args:
        probing: share of the evaluations for measuring sensitivities, above 0 and below 1.
        steps: random steps away from the best plan, at most.
        spread: standard deviation of the logarithm of the random factors.

    Raises:
        ValueError: a setting is not allowed.
    """

    probing: float = 0.5
    steps: int = 3
    spread: float = 1.0
    environment: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not 0 < self.probing < 1:
            raise ValueError(f"probing must be above 0 and below 1, not {self.probing}")
        if self.steps < 1 or self.spread < 0:
            raise ValueError("steps must be at least 1 and spread at least 0")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""
        generator = np.random.default_rng(seed)
        space = search_space(env)
        drops, reward = measure_losses(env, space, int(evaluations * self.probing))
        best = space.base
        state = lower_to_budget(space, space.losses(drops), space.start)
        seen = {best.tobytes(), state.tobytes()}
        while True:
            found = env.measure(space.plan(state)).reward
            if found >= reward:
                best, reward = state, found
            state = self._neighbour(space, drops, best, generator, seen)

    def _neighbour(
        self,
        space: Space,
        drops: Floats,
        state: State,
        generator: np.random.Generator,
        seen: set[bytes],
    ) -> State:
        """A plan near a plan, a new one if one is found soon."""
        axes, end = space.axes, space.end
        for _ in range(100):
            moved = state.copy()
            for _ in range(generator.integers(1, self.steps + 1)):
                axis = axes[generator.integers(len(axes))]
                moved[axis] = np.clip(moved[axis] + generator.choice([-1, 1]), 0, end[axis])
            factors = np.exp(generator.normal(0.0, self.spread, len(axes)))
            moved = lower_to_budget(space, space.losses(drops * factors), moved)
            if moved.tobytes() not in seen:
                break
        seen.add(moved.tobytes())
        return moved
