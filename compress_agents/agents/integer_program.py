"""The integer program: bits that lose least in sum, under the budget, by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from compress_agents.agents.sensitivity import (
    Floats,
    Space,
    State,
    Unit,
    measure_losses,
    search_space,
)

__all__ = ["IntegerProgram", "solve"]

_BISECTIONS = 12
_GAP = 1e-4
_DRAWS = 10


def solve(space: Space, losses: Sequence[Floats], centre: State, reach: int) -> State:
    """The state near another that meets the target and loses least in sum.

    With bits the costs of units add up and the program is exact. With channels they do not, since
    a layer costs the product of its inputs and outputs: then the budget of the program is lowered
    until the real cost meets the target.

    Args:
        space: the space.
        losses: of every unit's options.
        centre: a state that meets the target.
        reach: steps that everything may be away from it.
    """
    limit = space.decoder.budget
    allowed = [
        _near(unit, options, reach) for unit, options in zip(space.units, centre, strict=True)
    ]
    found = _solve_linear(space, losses, allowed, limit)
    if found is not None and space.target_met(found):
        return found
    low, high = limit - space.decoder.dense_cost * len(space.units), limit
    best = centre
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        found = _solve_linear(space, losses, allowed, middle)
        if found is not None and not space.target_met(found):
            high = middle
        else:
            low = middle
            best = best if found is None else found
    return best


def _near(unit: Unit, options: State, reach: int) -> npt.NDArray[np.bool_]:
    """Which options of a unit are near its present ones: bool (options, options)."""
    rows, columns = (
        np.abs(np.arange(len(levels)) - option) <= reach
        for levels, option in zip(unit.levels, options, strict=True)
    )
    near: npt.NDArray[np.bool_] = rows[:, None] & columns[None, :]
    return near


def _solve_linear(
    space: Space,
    losses: Sequence[Floats],
    allowed: Sequence[npt.NDArray[np.bool_]],
    limit: float,
) -> State | None:
    """One option per unit, least loss, savings that add up; None: it cannot be done."""
    tables = [unit.costs for unit in space.units]
    sizes = [table.size for table in tables]
    whole = tables[0][0, 0]
    # In units of the budget, so that the solver's tolerances mean something.
    scale = space.decoder.budget
    costs = np.concatenate([(table - table[0, 0]).ravel() for table in tables]) / scale
    loss = np.concatenate([np.asarray(table).ravel() for table in losses])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(rows.size), (rows, np.arange(rows.size))))
    result = milp(
        loss / loss.max(),
        integrality=np.ones(rows.size),
        bounds=Bounds(0, np.concatenate([table.ravel() for table in allowed]).astype(float)),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None, :], -np.inf, (limit - whole) / scale),
        ],
        options={"mip_rel_gap": _GAP},
    )
    if result.x is None:
        return None
    parts = np.split(result.x, np.cumsum(sizes)[:-1])
    return np.array(
        [
            np.unravel_index(int(part.argmax()), table.shape)
            for part, table in zip(parts, tables, strict=True)
        ],
        dtype=np.int64,
    )


@dataclass(frozen=True, kw_only=True)
class IntegerProgram:
    """Bits by integer programming over measured sensitivities (HAWQ-V3, Yao et al., 2021).

    What a step of one bit-width loses is measured around uniform bits, and holds nearby: a program
    may move everything by `reach` steps from the best plan so far. What remains of the evaluations
    goes to programs with other sensitivities, those of the best plan so far times random factors.

    Args:
        probing: share of the evaluations for measuring sensitivities, above 0 and below 1.
        reach: steps away from the best plan, at least 1.
        spread: standard deviation of the logarithm of the random factors, above 0.

    Raises:
        ValueError: a setting is not allowed.
    """

    probing: float = 0.5
    reach: int = 1
    spread: float = 0.5
    environment: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not 0 < self.probing < 1:
            raise ValueError(f"probing must be above 0 and below 1, not {self.probing}")
        if self.spread <= 0 or self.reach < 1:
            raise ValueError("spread must be above 0 and reach at least 1")

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""
        generator = np.random.default_rng(seed)
        space = search_space(env)
        drops, reward = measure_losses(env, space, int(evaluations * self.probing))
        best, tried = space.base, drops
        seen = {best.tobytes()}
        while True:
            spread = self.spread
            state = solve(space, space.losses(tried), best, self.reach)
            for _ in range(_DRAWS):
                if state.tobytes() not in seen:
                    break
                tried = drops * np.exp(generator.normal(0.0, spread, len(drops)))
                state = solve(space, space.losses(tried), best, self.reach)
                spread *= 1.2
            seen.add(state.tobytes())
            found = env.measure(space.plan(state)).reward
            if found >= reward:
                best, drops, reward = state, tried, found
            tried = drops * np.exp(generator.normal(0.0, self.spread, len(drops)))
