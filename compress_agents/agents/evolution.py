"""Evolution: CMA-ES over whole-network actions, by the package ``cmaes``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from cmaes import SepCMA

from compress_agents.agents.baselines import WHOLE_NETWORK, reward_of

__all__ = ["Evolution"]


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """CMA-ES with a diagonal covariance matrix, started at uniform bits.

    With some 50 numbers to an action and a few hundred evaluations there is not enough to learn a
    full covariance matrix from; the diagonal one learns faster by the number of entries (Ros and
    Hansen, *A simple modification in CMA-ES achieving linear time and space complexity*, 2008).

    Args:
        action_std: standard deviation of the first generation, above 0 and at most 1.
        population: plans of a generation, at least 2; 0: `4 + 3 log(entries of an action)`.

    Raises:
        ValueError: a setting is not allowed.
    """

    action_std: float = 0.1
    population: int = 0
    environment: ClassVar[Mapping[str, Any]] = WHOLE_NETWORK

    def __post_init__(self) -> None:
        if not 0 < self.action_std <= 1:
            raise ValueError(f"action_std must be above 0 and at most 1, not {self.action_std}")
        if self.population != 0 and self.population < 2:
            raise ValueError(f"population must be at least 2, or 0, not {self.population}")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""
        size = env.action_space.shape[0]
        optimizer = SepCMA(
            mean=np.zeros(size),
            sigma=self.action_std,
            bounds=np.tile([-1.0, 1.0], (size, 1)),
            seed=seed,
            population_size=self.population or None,
        )
        while True:
            generation = [optimizer.ask() for _ in range(optimizer.population_size)]
            # CMA-ES minimises.
            optimizer.tell([(action, -reward_of(env, action)) for action in generation])
