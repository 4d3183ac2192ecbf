"""How much every layer minds being compressed, measured one at a time (the idea of HAWQ).

The decisions of a task are *units*, each with a table of options: a layer with its weight bits and
activation bits, or, where bits cannot meet the target, a coupling group with its kept channels.
What an option costs is counted; what it loses is measured at one probe and extrapolated. That is
what `greedy` and `integer_program` choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress_agents.measuring import unwrap
from compress_env.actions import ActionDecoder, Choice
from compress_env.plan import CompressionPlan

__all__ = ["Space", "Unit", "lower_to_budget", "measure_losses", "search_space"]

State = npt.NDArray[np.int64]
"""int64 (units, 2): which option every unit takes; 0 is the largest along an axis."""

Floats = npt.NDArray[np.float64]

_KEPT_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer or a coupling group, and what may be decided for it.

    Attributes:
        index: of the layer or the group.
        levels: for each of two axes what its options stand for, largest first: bits of weights
            and of activations, or kept channels and nothing.
        noise: for each axis float (options,), how much an option disturbs the network, in units
            of the difference between base and probe.
        base: for each axis the option of the base plan.
        probes: for each axis the option next to it at which the loss is measured.
        costs: float (options, options), cost of the network with everything else at its largest.
    """

    index: int
    levels: tuple[State, State]
    noise: tuple[Floats, Floats]
    base: tuple[int, int]
    probes: tuple[int, int]
    costs: Floats


@dataclass(frozen=True, eq=False)
class Space:
    """All plans that the units make.

    Attributes:
        decoder: for costs and plans.
        units: the decisions.
        of_bits: whether they are about bits; else about channels.
        largest: the choice with every unit at its largest.
    """

    decoder: ActionDecoder
    units: tuple[Unit, ...]
    of_bits: bool
    largest: Choice

    @property
    def axes(self) -> list[tuple[int, int]]:
        """Unit and axis of everything there is to decide."""
        return [
            (place, axis)
            for place, unit in enumerate(self.units)
            for axis in (0, 1)
            if len(unit.levels[axis]) > 1
        ]

    @property
    def start(self) -> State:
        """Everything at its largest."""
        return np.zeros((len(self.units), 2), dtype=np.int64)

    @property
    def base(self) -> State:
        """The base plan: uniform bits, or a uniform share of channels."""
        return np.array([unit.base for unit in self.units], dtype=np.int64)

    @property
    def end(self) -> State:
        """Everything at its smallest."""
        return np.array([[len(levels) - 1 for levels in unit.levels] for unit in self.units])

    def choice(self, state: State) -> Choice:
        """The choice of a state."""
        counts, bits = self.largest.counts.copy(), self.largest.bits.copy()
        for unit, options in zip(self.units, state, strict=True):
            if self.of_bits:
                bits[unit.index] = [unit.levels[axis][options[axis]] for axis in (0, 1)]
            else:
                counts[unit.index] = unit.levels[0][options[0]]
        return Choice(counts, bits)

    def plan(self, state: State) -> CompressionPlan:
        """The plan of a state."""
        return self.decoder.plan(self.choice(state))

    def target_met(self, state: State) -> bool:
        """Whether a state meets the target."""
        return self.decoder.target_met(self.choice(state))

    def losses(self, drops: Floats) -> list[Floats]:
        """For every unit float (options, options): what its options lose.

        Args:
            drops: for everything in `axes` the loss at the probe.
        """
        found = [np.zeros_like(unit.costs) for unit in self.units]
        for (place, axis), drop in zip(self.axes, drops, strict=True):
            along = drop * self.units[place].noise[axis]
            found[place] += along[:, None] if axis == 0 else along[None, :]
        return found


def search_space(env: Any) -> Space:
    """The units of an environment's task.

    Bits, if they can meet the target; else channels.

    Args:
        env: the environment, in wrappers or not.
    """
    decoder = unwrap(env).decoder
    unpruned = np.array_equal(decoder.base.counts, decoder.sizes)
    of_bits = bool(len(decoder.allowed) > 1 and decoder.paid.any() and unpruned)
    bits = np.where(decoder.fixed[:, None], decoder.base.bits, decoder.allowed[-1])
    largest = Choice(decoder.sizes.copy(), bits)
    if of_bits:
        indices = np.flatnonzero(~decoder.fixed)
        units = [_layer(decoder, largest, int(index)) for index in indices]
    else:
        units = [_group(decoder, largest, index) for index in range(len(decoder.sizes))]
    return Space(decoder, tuple(units), of_bits, largest)


def _layer(decoder: ActionDecoder, largest: Choice, index: int) -> Unit:
    down = decoder.allowed[::-1].copy()
    levels = [down if decoder.paid[axis] else down[:1] for axis in (0, 1)]
    base = [
        int(np.argmin(np.abs(levels[axis] - decoder.base.bits[index, axis]))) for axis in (0, 1)
    ]
    # An error of uniform rounding has a quarter of the power with every further bit.
    noise = [4.0 ** -levels[axis].astype(float) for axis in (0, 1)]

    def cost(row: int, column: int) -> float:
        bits = largest.bits.copy()
        bits[index] = levels[0][row], levels[1][column]
        return decoder.cost_of(Choice(largest.counts, bits))

    return _unit(index, levels, noise, base, cost)


def _group(decoder: ActionDecoder, largest: Choice, index: int) -> Unit:
    size, multiple = int(decoder.sizes[index]), int(decoder.multiples[index])
    usual = int(decoder.base.counts[index])
    counts = {usual, size} | {
        min(max(multiple, round(size * share / multiple) * multiple), size)
        for share in _KEPT_SHARES
    }
    kept = np.array(sorted(counts, reverse=True), dtype=np.int64)
    # What the least important channels carry grows about with the square of their number.
    noise = (1.0 - kept / size) ** 2

    def cost(row: int, _: int) -> float:
        less = largest.counts.copy()
        less[index] = kept[row]
        return decoder.cost_of(Choice(less, largest.bits))

    one = np.zeros(1, dtype=np.int64)
    return _unit(index, [kept, one], [noise, np.zeros(1)], [int(np.argmax(kept == usual)), 0], cost)


def _unit(
    index: int,
    levels: Sequence[State],
    noise: Sequence[Floats],
    base: Sequence[int],
    cost: Callable[[int, int], float],
) -> Unit:
    probes, scaled = [], []
    for axis in (0, 1):
        last = len(levels[axis]) - 1
        # One step down or, from the lowest, one step up.
        probe = base[axis] + 1 if base[axis] < last else max(base[axis] - 1, 0)
        between = noise[axis][probe] - noise[axis][base[axis]]
        probes.append(probe)
        scaled.append(noise[axis] / (abs(between) or 1.0))
    shape = (len(levels[0]), len(levels[1]))
    costs = np.array([[cost(row, column) for column in range(shape[1])] for row in range(shape[0])])
    return Unit(
        index,
        (levels[0], levels[1]),
        (scaled[0], scaled[1]),
        (base[0], base[1]),
        (probes[0], probes[1]),
        costs,
    )


def measure_losses(env: Any, space: Space, evaluations: int) -> tuple[Floats, float]:
    """What the reward loses when one thing is lowered a step and all else is as in the base plan.

    At the base plan, and not at the largest one, because there everything else disturbs the network
    about as much as it will in the end. Where there are more things than evaluations, neighbours
    are lowered together and share what they lose.

    Args:
        env: the measured environment.
        space: of its task.
        evaluations: how many to spend, that of the base plan included; at least 1.

    Returns:
        Float (axes,), above 0, all equal where nothing was measured; and the base plan's reward.
    """
    axes = space.axes
    drops = np.ones(len(axes))
    reward: float = env.measure(space.plan(space.base)).reward
    blocks = min(evaluations - 1, len(axes))
    if blocks < 1:
        return drops, reward
    for block in np.array_split(np.arange(len(axes)), blocks):
        state, signs = space.base, 0
        for place, axis in (axes[index] for index in block):
            unit = space.units[place]
            state[place, axis] = unit.probes[axis]
            signs += int(np.sign(unit.probes[axis] - unit.base[axis]))
        lost = reward - env.measure(space.plan(state)).reward
        drops[block] = lost * np.sign(signs) / len(block)
    # What lost nothing, by chance, is not free: half of the least that was seen.
    least = drops[drops > 0].min(initial=1.0)
    positive: Floats = np.maximum(drops, least / 2)
    return positive, reward


def lower_to_budget(space: Space, losses: Sequence[Floats], state: State) -> State:
    """Lower, step by step, what loses least per saved cost, until the target is met.

    Then raise, one step each, whatever still fits, what gains most first.

    Args:
        space: the space.
        losses: of every unit's options.
        state: where to start.
    """
    state, end = state.copy(), space.end

    def step(place: int, axis: int, direction: int) -> tuple[float, float]:
        """Loss and saving of a step of one axis."""
        before = tuple(state[place])
        after = list(before)
        after[axis] += direction
        table, costs = losses[place], space.units[place].costs
        row, column = after
        return (
            float(table[row, column] - table[before]),
            float(costs[before] - costs[row, column]),
        )

    while not space.target_met(state):
        steps = [axis for axis in space.axes if state[axis] < end[axis]]
        if not steps:
            break
        priced = [step(*axis, 1) for axis in steps]
        cheapest = np.argmin([loss / max(saved, 1e-12) for loss, saved in priced])
        state[steps[int(cheapest)]] += 1
    gains = {axis: step(*axis, -1)[0] for axis in space.axes if state[axis] > 0}
    for axis in sorted(gains, key=gains.__getitem__):
        state[axis] -= 1
        if not space.target_met(state):
            state[axis] += 1
    return state
