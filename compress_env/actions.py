"""From an action in [-1, 1] to a plan, with the projection onto the budget.

Zero stands for the plan a person would try first, the *base plan*: uniform bits that meet the
target with nothing pruned or, where bits cannot do that, a uniform share of kept channels. An
entry for bits moves a layer away from its base bits, over a range that is equal on both sides and
reaches every allowed width. An entry for a coupling group prunes where it is negative, by its
square, so that a small number goes with few channels and -1 leaves the fewest; where it is
positive, everything stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compress_env.checks import check_choice, check_count
from compress_env.complexity import LATENCY, METRICS, ComplexityModel, reduction
from compress_env.layer_graph import LayerGraph
from compress_env.plan import ALLOWED_BITS, FLOAT_BITS, CompressionPlan

BISECTIONS = 30
"""Halvings of the interval in which the projection looks for its offset."""

_TIE_BREAK = 1e-3
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Choice:
    """A plan in counts, which the arithmetic here works on.

    Attributes:
        counts: int64 (groups,), kept channels.
        bits: int64 (layers, 2), weight bits and activation bits.
        ranks: int64 (atoms,), the order in which channels are kept, where it is not the decoder's.
    """

    counts: np.ndarray
    bits: np.ndarray
    ranks: np.ndarray | None = None


class ActionDecoder:
    """Turns actions into plans for one network and one budget.

    Args:
        graph: layer graph of the network.
        costs: its complexity model.
        ranks: int64 (atoms,), the order in which channels are kept (`rank_channels`).
        bits: allowed bit-widths, from 2 to 8, or only 32 to prune alone.
        metric: one of `METRICS`, or `LATENCY`, which needs `cost`.
        target_reduction: share of the dense cost that must go, above 0 and below 1.
        first_last_bits: bits of the first and the last layers, or None to search these too.
        channel_multiple: kept counts are multiples of this (or everything), at least 1.
        network: name of the network, for the plans.
        cost: another cost than `metric` names: `(kept atoms, bits (layers, 2)) -> float`.

    Raises:
        ValueError: an argument is not allowed, or the target cannot be reached.
    """

    def __init__(
        self,
        graph: LayerGraph,
        costs: ComplexityModel,
        ranks: np.ndarray,
        bits: Sequence[int] = tuple(range(2, 9)),
        metric: str = "bops",
        target_reduction: float = 0.9636,
        first_last_bits: int | None = 8,
        channel_multiple: int = 1,
        network: str = "",
        cost: Callable[[np.ndarray, np.ndarray], float] | None = None,
    ) -> None:
        self.graph, self.costs, self.ranks, self.network = graph, costs, ranks, network
        check_arguments(target_reduction, metric, bits, first_last_bits, channel_multiple)
        if (metric == LATENCY) != (cost is not None):
            raise ValueError(f"cost must be given for metric '{LATENCY}', and for no other")
        self.allowed = np.array(sorted({int(b) for b in bits}), dtype=np.int64)
        self.metric, self.target_reduction = metric, target_reduction
        self._cost = cost or self._metric_cost
        self.sizes = np.array([group.size for group in graph.groups], dtype=np.int64)
        self.multiples = np.minimum(
            np.lcm(graph.group_multiples, channel_multiple), self.sizes
        ).astype(np.int64)
        layers = len(graph.layers)
        self.fixed = np.zeros(layers, dtype=bool)
        self.fixed_bits = first_last_bits
        if first_last_bits is not None and self.allowed.tolist() != [FLOAT_BITS]:
            self.fixed[[*graph.first_layers, *graph.last_layers]] = True
        self.ties = _TIE_BREAK * np.arange(2 * layers, 0, -1).reshape(layers, 2) / (2 * layers)
        self._group_of_atom = np.where(graph.atom_group >= 0, graph.atom_group, len(self.sizes))
        self.dense_cost = self._cost(
            np.ones(graph.atom_group.size, dtype=bool), np.full((layers, 2), FLOAT_BITS)
        )
        self.budget = (1.0 - target_reduction) * self.dense_cost
        self.paid = self._paid_bits()
        self.base = self._base()
        self.span = np.maximum(
            self.allowed[-1] - self.base.bits, self.base.bits - self.allowed[0]
        ).astype(float)

    # -- sizes of actions ------------------------------------------------------------------------

    @property
    def network_action_size(self) -> int:
        """Entries of a whole-network action: one per group, then two per layer."""
        return len(self.sizes) + 2 * len(self.fixed)

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, action: np.ndarray, before: Choice, project: bool) -> Choice:
        """Decode a whole-network action.

        Args:
            action: float (groups + 2 * layers,) in [-1, 1]: a number per group, then for every
                layer its weight bits and its activation bits.
            before: what has been decided so far; pruning accumulates on it.
            project: whether to move all bits together (and where these do not suffice, all kept
                shares) until the budget is just met.

        Returns:
            Counts and bits.
        """
        groups = len(self.sizes)
        share = kept_share(action[:groups])
        wanted = np.asarray(before.counts, dtype=float) * share
        bits = self.wanted_bits(action[groups:].reshape(-1, 2))
        counts = self.round_counts(wanted)
        if not project:
            return Choice(np.minimum(counts, before.counts), self.round_bits(bits))
        return self._project(wanted, bits)

    def bits_of(self, numbers: np.ndarray) -> np.ndarray:
        """Bits that numbers in [-1, 1] stand for, without regard to the budget.

        Args:
            numbers: float (layers, 2), steps away from the base plan's bits.

        Returns:
            int64 (layers, 2).
        """
        return self.round_bits(self.wanted_bits(numbers))

    def wanted_bits(self, numbers: np.ndarray) -> np.ndarray:
        """Unrounded bits that numbers in [-1, 1] stand for: float (..., layers, 2)."""
        wanted: np.ndarray = self.base.bits + numbers * self.span
        return wanted

    # -- plans and costs -------------------------------------------------------------------------

    def dense(self) -> Choice:
        """Everything kept, nothing quantized."""
        return Choice(self.sizes.copy(), np.full((len(self.fixed), 2), FLOAT_BITS))

    def plan(self, choice: Choice) -> CompressionPlan:
        """The plan of a choice: in every group the channels that rank first."""
        ranks = self.ranks if choice.ranks is None else choice.ranks
        kept = [
            ranks[atoms] < count
            for atoms, count in zip(self.graph.group_atoms, choice.counts, strict=True)
        ]
        return CompressionPlan.of(
            self.graph, kept, choice.bits[:, 0], choice.bits[:, 1], self.network
        )

    def kept_atoms(self, choice: Choice) -> np.ndarray:
        """Bool (atoms,) for the kept counts of a choice."""
        ranks = self.ranks if choice.ranks is None else choice.ranks
        limits = np.append(choice.counts, _NO_LIMIT)
        kept: np.ndarray = ranks < limits[self._group_of_atom]
        return kept

    def cost_of_plan(self, plan: CompressionPlan) -> float:
        """Cost of a plan in the metric, whoever made it."""
        bits = np.stack([plan.weight_bits, plan.activation_bits], axis=1)
        return self._cost(plan.kept_atoms(self.graph), bits)

    def cost_of(self, choice: Choice) -> float:
        """Cost of a choice in the metric."""
        return self._cost(self.kept_atoms(choice), choice.bits)

    def reduction(self, plan: CompressionPlan) -> float:
        """Share of the dense network's cost that a plan saves, in the metric."""
        return reduction(self.cost_of_plan(plan), self.dense_cost)

    def _metric_cost(self, kept: np.ndarray, bits: np.ndarray) -> float:
        return float(self.costs.count(kept, bits[:, 0], bits[:, 1]).of(self.metric))

    def _paid_bits(self) -> np.ndarray:
        """Whether weight bits and activation bits cost anything: bool (2,).

        No bits do in MACs and parameters, those of weights alone in size.
        """
        everything = np.ones(self.graph.atom_group.size, dtype=bool)
        highest = np.full((len(self.fixed), 2), self.allowed[-1])
        paid = np.zeros(2, dtype=bool)
        for which in (0, 1):
            lower = highest.copy()
            lower[:, which] = self.allowed[0]
            paid[which] = self._cost(everything, lower) < self._cost(everything, highest)
        return paid

    # -- rounding and projection -----------------------------------------------------------------

    def round_counts(self, wanted: np.ndarray) -> np.ndarray:
        """The nearest kept counts that are allowed: int64 (..., groups)."""
        rounded = np.rint(wanted / self.multiples).astype(np.int64) * self.multiples
        # Everything may stay even where the size is no multiple.
        rounded = np.where(wanted > self.sizes - 0.5, self.sizes, rounded)
        return np.clip(rounded, self.multiples, self.sizes)

    def round_bits(self, wanted: np.ndarray) -> np.ndarray:
        """The nearest bits that are allowed: int64 (..., layers, 2)."""
        middles = (self.allowed[1:] + self.allowed[:-1]) / 2.0
        bits = self.allowed[np.searchsorted(middles, wanted, side="right")]
        if self.fixed_bits is not None:
            bits[..., self.fixed, :] = self.fixed_bits
        return bits

    def smallest(self) -> Choice:
        """The lowest allowed bits, and the fewest channels that every group can keep."""
        bits = self.round_bits(np.full((len(self.fixed), 2), float(self.allowed[0])))
        return Choice(self.multiples.copy(), bits)

    def _project(self, wanted: np.ndarray, bits: np.ndarray) -> Choice:
        """Shift all bits that cost something by one number, as far up as the budget allows.

        Where even the lowest bits cost too much, or bits cost nothing, all kept shares are scaled
        by one number instead. Equal requests differ by a tie break, so that the projection can
        lower some layers and not others. Bits that cost nothing stay as requested.
        """
        counts = self.round_counts(wanted)
        tied = bits + self.ties
        reach = float(self.allowed[-1] - self.allowed[0]) + float(np.abs(bits).max())

        def shifted(offset: float) -> Choice:
            return Choice(counts, self.round_bits(tied + offset * self.paid))

        lowest = shifted(-reach)
        if self.paid.any() and self.target_met(lowest):
            return shifted(self._largest(shifted, -reach, reach))
        widths = lowest.bits

        def scaled(factor: float) -> Choice:
            return Choice(self.round_counts(np.minimum(wanted * factor, self.sizes)), widths)

        most = float((self.sizes / np.maximum(wanted, 1e-9)).max(initial=1.0))
        return scaled(self._largest(scaled, 0.0, min(most, 1e3)))

    def _largest(self, choice: Callable[[float], Choice], low: float, high: float) -> float:
        """The largest number whose choice meets the budget; costs grow with it."""
        if self.cost_of(choice(high)) <= self.budget:
            return high
        for _ in range(BISECTIONS):
            middle = (low + high) / 2.0
            if self.cost_of(choice(middle)) <= self.budget:
                low = middle
            else:
                high = middle
        return low

    def target_met(self, choice: Choice) -> bool:
        """Whether a choice costs no more than the budget."""
        return self.cost_of(choice) <= self.budget

    def _base(self) -> Choice:
        least = self.cost_of(self.smallest())
        if least > self.budget:
            reachable = 1.0 - least / self.dense_cost
            raise ValueError(
                f"target_reduction {self.target_reduction} cannot be reached: with bits "
                f"{self.allowed[0]}, first and last layer at {self.fixed_bits} bits and the fewest "
                f"channels the reduction is {reachable:.4f}"
            )
        wanted = self.sizes.astype(float)
        # Bits that cost nothing stay as they are here: at their highest.
        base = self._project(wanted, np.full((len(self.fixed), 2), float(self.allowed[-1])))
        # The projection of the base itself must be the base: fill up what rounding left over.
        for _ in range(2 * len(self.fixed)):
            filled = self._project(wanted, base.bits.astype(float))
            if np.array_equal(filled.bits, base.bits):
                break
            base = filled
        return base


def kept_share(numbers: np.ndarray) -> np.ndarray:
    """Share of the channels that action entries in [-1, 1] keep, 0 to 1."""
    share: np.ndarray = 1.0 - np.square(np.minimum(numbers, 0.0))
    return share


def check_arguments(
    target_reduction: float,
    metric: str,
    bits: Sequence[int],
    first_last_bits: int | None,
    channel_multiple: int,
) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    check_choice("metric", metric, (*METRICS, LATENCY))
    number = isinstance(target_reduction, (int, float, np.floating))
    if not number or not 0.0 < target_reduction < 1.0:
        raise ValueError(f"target_reduction must be above 0 and below 1, not {target_reduction!r}")
    listed = isinstance(bits, (Sequence, np.ndarray)) and not isinstance(bits, str)
    widths = list(bits) if listed else []
    whole = all(isinstance(b, (int, np.integer)) and b in ALLOWED_BITS for b in widths)
    if not widths or not whole or (FLOAT_BITS in widths and len({*widths}) > 1):
        raise ValueError(
            f"bits must be whole numbers from 2 to 8, or only 32 to prune alone, not {bits!r}"
        )
    if first_last_bits is not None and not (
        isinstance(first_last_bits, (int, np.integer)) and first_last_bits in ALLOWED_BITS
    ):
        raise ValueError(f"first_last_bits must be None, 2 to 8 or 32, not {first_last_bits!r}")
    check_count("channel_multiple", channel_multiple)
