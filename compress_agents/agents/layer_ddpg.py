"""DDPG that decides layer by layer, as AMC and HAQ have it.

Both papers walk through the network once per episode, describe every layer by a short vector, and
pay all decisions of an episode with the one reward at its end, less a moving average.
"""

from __future__ import annotations

import copy
import pathlib
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

__all__ = ["ActorCritic", "LayerDDPG", "Walk"]

Array = npt.NDArray[np.float32]

_LARGEST_REWARD = 10.0
_SMALL = 0.01


def _perceptron(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    ]


class ActorCritic(nn.Module):
    """Actor and critic of DDPG (Lillicrap et al., 2016), two hidden layers each.

    Args:
        states: entries of a state.
        actions: entries of an action, in [-1, 1].
        hidden: width of the layers.
    """

    def __init__(self, states: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(*_perceptron(states, hidden, actions), nn.Tanh())
        self.critic = nn.Sequential(*_perceptron(states + actions, hidden, 1))
        *_, last, _ = self.actor
        with torch.no_grad():
            # The first proposal is close to zero: uniform bits.
            for parameter in last.parameters():
                parameter.mul_(_SMALL)

    def act(self, states: Tensor) -> Tensor:
        """Actions float32 (batch, actions)."""
        actions: Tensor = self.actor(states)
        return actions

    def value(self, states: Tensor, actions: Tensor) -> Tensor:
        """Expected rewards float32 (batch, 1)."""
        values: Tensor = self.critic(torch.cat([states, actions], dim=1))
        return values


@dataclass(kw_only=True)
class LayerDDPG(ABC):
    """What AMC and HAQ have in common; settings are AMC's where nothing else is said.

    Args:
        warm_up: episodes of random actions around uniform bits before anything is learned.
        noise: standard deviation of the truncated normal noise on an action until then. The
            papers' is about 1 of a range of 2, at several times as many episodes.
        noise_decay: factor on the noise per episode after the warm-up.
        hidden: width of the two hidden layers.
        batch_size: decisions that a gradient is computed from.
        actor_rate: learning rate of the actor.
        critic_rate: learning rate of the critic.
        memory: decisions that are remembered.
        discount: of the value of the next decision, 0 to 1. The papers have 1, but every decision
            is paid the whole reward already, and with few episodes the sum of all values to come
            drowns what a decision did.

    Raises:
        ValueError: a setting is not allowed.
    """

    warm_up: int = 50
    noise: float = 0.08
    noise_decay: float = 0.99
    hidden: int = 300
    batch_size: int = 64
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    memory: int = 2000
    discount: float = 0.0
    learner: _Learner | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.warm_up, self.hidden, self.batch_size, self.memory) < 1:
            raise ValueError("warm_up, hidden, batch_size and memory must be at least 1")
        if not 0 < self.noise <= 1 or not 0 < self.noise_decay <= 1:
            raise ValueError("noise and noise_decay must be above 0 and at most 1")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be from 0 to 1, not {self.discount}")
        if not self.actor_rate > 0 or not self.critic_rate > 0:
            raise ValueError("actor_rate and critic_rate must be above 0")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`; first and last episode are without noise."""
        learner = None
        for index in count():
            std = self.noise * self.noise_decay ** max(index - self.warm_up, 0)
            if index in (0, evaluations - 1):
                std = 0.0
            walk = Walk(self, seed, std, learner)
            reward = self.play(env, walk)
            self.learner = learner = walk.learner
            assert learner is not None
            learner.remember(walk.states, walk.actions, reward)
            if index >= self.warm_up:
                for _ in walk.actions:
                    learner.update()

    @abstractmethod
    def play(self, env: Any, walk: Walk) -> float:
        """Play one episode.

        Args:
            env: the measured environment.
            walk: makes the decisions.

        Returns:
            The reward at its end.
        """

    def save(self, path: pathlib.Path) -> None:
        """Write the weights of actor and critic."""
        assert self.learner is not None
        torch.save(self.learner.networks.state_dict(), path)


class Walk:
    """The decisions of one episode.

    Args:
        settings: of the agent.
        seed: of the search.
        std: of the noise on actions.
        learner: what decides; None: a new one, which the first decision shows the sizes of.
    """

    def __init__(
        self, settings: LayerDDPG, seed: int, std: float, learner: _Learner | None
    ) -> None:
        self.settings, self.seed, self.std, self.learner = settings, seed, std, learner
        self.states: list[Array] = []
        self.actions: list[Array] = []

    def decide(self, state: Array, size: int) -> Array:
        """An action.

        Args:
            state: float32 (entries,), about [-1, 1].
            size: entries of the action.

        Returns:
            float32 (size,), in [-1, 1].
        """
        if self.learner is None:
            self.learner = _Learner(self.settings, len(state), size, self.seed)
        self.states.append(state)
        self.actions.append(self.learner.act(state, self.std))
        return self.actions[-1]


class _Learner:
    """Networks, memory and optimizers of one search."""

    def __init__(self, settings: LayerDDPG, states: int, actions: int, seed: int) -> None:
        self.settings, self.generator = settings, np.random.default_rng(seed)
        self.networks = ActorCritic(states, actions, settings.hidden)
        self.target = copy.deepcopy(self.networks)
        self.actor_optimizer = torch.optim.Adam(
            self.networks.actor.parameters(), settings.actor_rate
        )
        self.critic_optimizer = torch.optim.Adam(
            self.networks.critic.parameters(), settings.critic_rate
        )
        self.memory: deque[tuple[Array, Array, float, Array, float]] = deque(maxlen=settings.memory)
        self.average: float | None = None

    def act(self, state: Array, std: float) -> Array:
        """An action, drawn from a normal distribution that is cut off at -1 and 1."""
        with torch.no_grad():
            mean = self.networks.act(torch.from_numpy(state)[None])[0].numpy()
        if std == 0:
            action: Array = mean
            return action
        low, high = (-1 - mean) / std, (1 - mean) / std
        drawn = truncnorm.rvs(
            low, high, loc=mean, scale=std, size=mean.shape, random_state=self.generator
        )
        return np.asarray(drawn, np.float32)

    def remember(self, states: list[Array], actions: list[Array], reward: float) -> None:
        """Keep an episode; every decision is paid the reward at its end, in hundredths."""
        following = [*(after for _, after in pairwise(states)), np.zeros_like(states[0])]
        for place, (state, action, after) in enumerate(
            zip(states, actions, following, strict=True)
        ):
            goes_on = float(place + 1 < len(states))
            self.memory.append((state, action, 100 * reward, after, goes_on))

    def update(self) -> None:
        """One gradient step of critic and actor, and of their copies that make the targets."""
        chosen = self.generator.integers(len(self.memory), size=self.settings.batch_size)
        columns = zip(*(self.memory[index] for index in chosen), strict=True)
        states, actions, paid, after, goes_on = (
            torch.from_numpy(np.asarray(column, np.float32)) for column in columns
        )
        # Subtracted here, so that old rewards and new ones count against the same average.
        mean = float(paid.mean())
        self.average = mean if self.average is None else (self.average + mean) / 2
        # A plan that breaks the network must not drown what all others say.
        paid = (paid - self.average).clamp(-_LARGEST_REWARD, _LARGEST_REWARD)
        with torch.no_grad():
            later = self.target.value(after, self.target.act(after))[:, 0]
            wanted = paid + self.settings.discount * goes_on * later
        loss = nn.functional.mse_loss(self.networks.value(states, actions)[:, 0], wanted)
        _step(self.critic_optimizer, loss)
        _step(self.actor_optimizer, -self.networks.value(states, self.networks.act(states)).mean())
        with torch.no_grad():
            for own, copied in zip(
                self.networks.parameters(), self.target.parameters(), strict=True
            ):
                copied.lerp_(own, 0.01)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
