"""Learning the value of plans with graph networks, and choosing the plan that promises most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from scipy.stats import rankdata

from compress_agents.agents.baselines import WHOLE_NETWORK
from compress_agents.graph_networks.encoders import ENCODERS
from compress_agents.graph_networks.plan_value import PlanGraphs, ValueEnsemble
from compress_agents.measuring import unwrap
from compress_env.actions import ActionDecoder
from compress_env.batch_decoding import PlanBatch, decode_batch

__all__ = ["GraphQ", "mutate", "rank_scores"]

Floats = npt.NDArray[np.float64]

_TOP = 4
"""Plans per member that become parents of the next generation of candidates."""

_SHAKE = 0.45
"""Largest random fraction of a bit: below a half, so that it decides what the projection moves
first, and moves nothing of its own."""

_PRUNING_STD = 0.15
"""Standard deviation of a move of a coupling group, in units of its action entry."""


def rank_scores(values: npt.ArrayLike) -> Floats:
    """Values by their ranks as quantiles of the normal distribution: float (n,).

    Of rewards only the order counts in the choice of the best plan. The few plans that break the
    network would else leave no resolution among the good ones.
    """
    ranks = rankdata(values)
    scores: Floats = ndtri((ranks - 0.5) / len(ranks))
    return scores


def mutate(
    decoder: ActionDecoder, plans: PlanBatch, moves: float, generator: np.random.Generator
) -> Floats:
    """Actions that stand for plans near plans.

    A move takes a bit-width that costs something one up or down, or a kept share some way. The
    projection then pays for it, or spends what it saved, where random fractions of a bit say.

    Args:
        decoder: of the plans.
        plans: n plans.
        moves: moves of a plan, on average.
        generator: what draws.

    Returns:
        Float (n, groups + 2 * layers) in [-1, 1].
    """
    free = ~decoder.fixed[:, None] & decoder.paid & (len(decoder.allowed) > 1)
    groups = -np.sqrt(1.0 - plans.counts / decoder.sizes)
    rate = moves / max(groups.shape[1] + free.sum(), 1)
    moved = generator.random(groups.shape) < rate
    groups = groups + moved * generator.normal(0.0, _PRUNING_STD, groups.shape)
    places = np.searchsorted(decoder.allowed, plans.bits)
    moved = (generator.random(places.shape) < rate) & free
    places = places + moved * generator.choice([-1, 1], places.shape)
    bits = decoder.allowed[np.clip(places, 0, len(decoder.allowed) - 1)]
    bits = bits + generator.uniform(-_SHAKE, _SHAKE, bits.shape)
    numbers = (bits - decoder.base.bits) / np.maximum(decoder.span, 1.0)
    actions = np.concatenate([groups, numbers.reshape(len(plans), -1)], axis=1)
    clipped: Floats = np.clip(actions, -1.0, 1.0)
    return clipped


@dataclass
class _Replay:
    """All evaluated plans, with what they achieved.

    Attributes:
        plans: the plans, from the first on.
        rewards: what they were paid.
        accuracies: of their networks, 0 to 1.
        keys: of the plans.
    """

    plans: PlanBatch
    rewards: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)

    def targets(self) -> npt.NDArray[np.float32]:
        """What is learned: float32 (n, 2), scores of the reward and of its part besides accuracy.

        Accuracy moves in steps of one image, and by chance; the part besides it, the divergence,
        does not, and tells early which way is up.
        """
        besides = np.subtract(self.rewards, self.accuracies)
        scores = np.stack([rank_scores(self.rewards), rank_scores(besides)], axis=1)
        return scores.astype(np.float32)

    def agreement(self) -> float:
        """How far the two scores go together: their correlation, 0 where it is negative."""
        reward, besides = self.targets().T
        if min(np.ptp(reward), np.ptp(besides)) == 0:
            return 0.0
        return max(float(np.corrcoef(reward, besides)[0, 1]), 0.0)

    def best(self, count: int) -> PlanBatch:
        """The best plans, best first, the earlier of equal ones."""
        return self.plans.take(np.argsort(-np.array(self.rewards), kind="stable")[:count])

    def new(self, plans: PlanBatch, other: PlanBatch) -> PlanBatch:
        """Those of the plans that are neither known, nor among others, nor there twice."""
        taken = self.keys | set(other.keys())
        fresh = []
        for index, key in enumerate(plans.keys()):
            if key not in taken:
                taken.add(key)
                fresh.append(index)
        return plans.take(np.array(fresh, dtype=np.int64))


@dataclass(kw_only=True)
class GraphQ:
    """Q-learning where an episode is one step: an ensemble of graph networks values plans.

    With one step to an episode the value of an action is that of the plan which it leads to, an
    afterstate (Sutton and Barto, 2018, section 6.8), and its target is the reward. All plans
    evaluated so far are the replay. Every member has random weights on them (Bayesian bootstrap,
    Rubin, 1981), so that members disagree where there is little to go by. The next plans are
    those that one member each values most (Thompson sampling with bootstrapped networks, Osband
    et al., 2016), found by some generations of mutation and selection without any evaluation, as
    QT-Opt (Kalashnikov et al., 2018) maximises its Q-function.

    Args:
        warm_up: evaluations before anything is learned, at least 1: the base plan, then plans
            around it.
        action_std: standard deviation of their actions, above 0 and at most 1.
        update_interval: evaluations between updates, at least 1.
        members: networks of the ensemble, at least 2.
        encoder: a key of `compress_agents.graph_networks.encoders.ENCODERS`.
        hidden: length of an embedding, at least 1.
        rounds: of message passing, at least 1.
        learning_rate: of Adam, above 0.
        weight_decay: of Adam, at least 0.
        first_steps: gradient steps of the first update of a member, at least 1.
        steps: gradient steps of every later one, at least 1.
        batch_size: plans to a gradient step, at least 1.
        parents: best plans so far that candidates are made from, at least 1.
        candidates: plans to a generation, at least 1.
        generations: of candidates before a choice, at least 1.
        moves: moves from a plan to a candidate, on average, above 0.
        detail: weight in the choice of the score of the reward besides accuracy, times its
            correlation with the score of the reward, at least 0.

    Raises:
        ValueError: a setting is not allowed.
    """

    warm_up: int = 16
    action_std: float = 0.1
    update_interval: int = 4
    members: int = 4
    encoder: str = "typed"
    hidden: int = 32
    rounds: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    first_steps: int = 150
    steps: int = 30
    batch_size: int = 64
    parents: int = 12
    candidates: int = 150
    generations: int = 4
    moves: float = 3.0
    detail: float = 0.75
    environment: ClassVar[Mapping[str, Any]] = {**WHOLE_NETWORK, "observation": "layer"}

    def __post_init__(self) -> None:
        for name in (
            *("warm_up", "update_interval", "hidden", "rounds", "first_steps", "steps"),
            *("batch_size", "parents", "candidates", "generations"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.members < 2:
            raise ValueError(f"members must be at least 2, not {self.members}")
        if self.encoder not in ENCODERS:
            known = ", ".join(sorted(ENCODERS))
            raise ValueError(f"encoder must be one of {known}, not '{self.encoder}'")
        if not 0 < self.action_std <= 1:
            raise ValueError(f"action_std must be above 0 and at most 1, not {self.action_std}")
        for name in ("learning_rate", "moves"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "detail"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        self.ensemble: ValueEnsemble | None = None

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`; ends early where there is no new plan to be found."""
        generator = np.random.default_rng(seed)
        inner = unwrap(env)
        graphs = PlanGraphs(inner)
        self.ensemble = ValueEnsemble(
            graphs,
            self.members,
            encoder=self.encoder,
            hidden=self.hidden,
            rounds=self.rounds,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        replay, plans = self._begin(inner.decoder, generator)
        steps = self.first_steps
        while len(plans):
            for index in range(len(plans)):
                measured = env.measure(inner.decoder.plan(plans.choice(index)))
                replay.rewards.append(measured.reward)
                replay.accuracies.append(measured.accuracy)
            replay.plans = replay.plans.joined(plans)
            replay.keys.update(plans.keys())
            self.ensemble.fit(
                graphs.features(replay.plans), replay.targets(), generator, steps, self.batch_size
            )
            steps = self.steps
            plans = self._propose(inner.decoder, self.ensemble, replay, generator)

    def save(self, path: Path) -> None:
        """Write the networks' weights, a torch state dict."""
        assert self.ensemble is not None
        torch.save(self.ensemble.state_dict(), path)

    def _begin(
        self, decoder: ActionDecoder, generator: np.random.Generator
    ) -> tuple[_Replay, PlanBatch]:
        """An empty replay, and what to evaluate first."""
        shape = (2 * self.warm_up, decoder.network_action_size)
        actions = np.clip(generator.normal(0.0, self.action_std, shape), -1.0, 1.0)
        actions[0] = 0.0
        plans = decode_batch(decoder, actions)
        replay = _Replay(plans.take(np.zeros(0, dtype=np.int64)))
        first = replay.new(plans, replay.plans)
        return replay, first.take(np.arange(min(self.warm_up, len(first))))

    def _propose(
        self,
        decoder: ActionDecoder,
        ensemble: ValueEnsemble,
        replay: _Replay,
        generator: np.random.Generator,
    ) -> PlanBatch:
        """The new plans that the members value most, one member each in turn."""
        parents = best = replay.best(self.parents)
        pool = replay.plans.take(np.zeros(0, dtype=np.int64))
        values = np.zeros((self.members, 0))
        weights = (1.0, self.detail * replay.agreement())
        for _ in range(self.generations):
            drawn = parents.take(generator.integers(len(parents), size=self.candidates))
            made = decode_batch(decoder, mutate(decoder, drawn, self.moves, generator))
            new = replay.new(made, pool)
            pool = pool.joined(new)
            values = np.concatenate([values, ensemble.values(new, weights)], axis=1)
            top = np.unique(np.argsort(-values, axis=1, kind="stable")[:, :_TOP])
            parents = pool.take(top).joined(best.take(np.arange(min(_TOP, len(best)))))
        return pool.take(_choose(values, self.update_interval))


def _choose(values: Floats, count: int) -> npt.NDArray[np.int64]:
    """Plans that members value most: the first member its first choice, the second, and so on.

    Args:
        values: float (members, plans).
        count: how many to choose, fewer if there are fewer.
    """
    orders: Sequence[list[int]] = np.argsort(-values, axis=1, kind="stable").tolist()
    chosen: list[int] = []
    for turn in range(min(count, values.shape[1])):
        own = orders[turn % len(orders)]
        chosen.append(next(index for index in own if index not in chosen))
    return np.array(chosen, dtype=np.int64)
