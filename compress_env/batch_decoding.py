"""Many actions to plans at once, with the same result as one after the other.

An agent that compares hundreds of plans before it has one evaluated needs what they are and cost,
and nothing more: no network is built, no image is looked at, no episode is played.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_env.actions import BISECTIONS, ActionDecoder, Choice, kept_share
from compress_env.complexity import LATENCY

__all__ = ["PlanBatch", "decode_batch"]


@dataclass(frozen=True, eq=False)
class PlanBatch:
    """Plans for one network, as arrays.

    Attributes:
        counts: int64 (n, groups), kept channels.
        bits: int64 (n, layers, 2), weight bits and activation bits.
        weights: int64 (n, layers), weights that every layer keeps.
    """

    counts: np.ndarray
    bits: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def choice(self, index: int) -> Choice:
        """One of them, for `ActionDecoder.plan`."""
        return Choice(self.counts[index], self.bits[index])

    def take(self, indices: np.ndarray) -> PlanBatch:
        """Some of them: int64 (n,), or bool, as NumPy indexes."""
        return PlanBatch(self.counts[indices], self.bits[indices], self.weights[indices])

    def joined(self, other: PlanBatch) -> PlanBatch:
        """These and others."""
        return PlanBatch(
            np.concatenate([self.counts, other.counts]),
            np.concatenate([self.bits, other.bits]),
            np.concatenate([self.weights, other.weights]),
        )

    def keys(self) -> list[bytes]:
        """For every plan bytes that equal plans share."""
        return [c.tobytes() + b.tobytes() for c, b in zip(self.counts, self.bits, strict=True)]


def decode_batch(decoder: ActionDecoder, actions: np.ndarray) -> PlanBatch:
    """What `ActionDecoder.decode` makes of every action, projected onto the budget.

    Counted costs of bits are a sum over layers, so the bisection of all actions is carried out
    side by side. Where bits cannot meet the target, or cost is measured, actions are decoded one
    after the other.

    Args:
        decoder: of the network and the budget.
        actions: float (n, groups + 2 * layers) in [-1, 1], whole-network actions.

    Raises:
        ValueError: they have another shape.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != decoder.network_action_size:
        raise ValueError(f"actions must be (n, {decoder.network_action_size}), not {actions.shape}")
    shares = kept_share(actions[:, : len(decoder.sizes)])
    wanted = decoder.wanted_bits(actions[:, len(decoder.sizes) :].reshape(len(actions), -1, 2))
    counts = decoder.round_counts(decoder.sizes * shares)
    weights = _weights(decoder, counts)
    if decoder.metric != LATENCY and decoder.paid.any():
        bits, met = _shift_to_budget(decoder, counts, weights, wanted)
    else:
        bits, met = np.zeros(wanted.shape, np.int64), np.zeros(len(actions), bool)
    for index in np.flatnonzero(~met):
        choice = decoder.decode(actions[index], decoder.dense(), project=True)
        counts[index], bits[index] = choice.counts, choice.bits
        weights[index] = decoder.costs.layer_weights(decoder.kept_atoms(choice))
    return PlanBatch(counts, bits, weights)


def _weights(decoder: ActionDecoder, counts: np.ndarray) -> np.ndarray:
    """Weights of every layer, int64 (n, layers); equal counts are counted once."""
    unique, place = np.unique(counts, axis=0, return_inverse=True)
    no_bits = np.zeros((len(decoder.fixed), 2), np.int64)
    rows = [decoder.costs.layer_weights(decoder.kept_atoms(Choice(row, no_bits))) for row in unique]
    found: np.ndarray = np.reshape(rows, (-1, len(decoder.fixed)))[place.reshape(-1)]
    return found


def _shift_to_budget(
    decoder: ActionDecoder, counts: np.ndarray, weights: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The projection by bits of `ActionDecoder.decode`, row by row the same arithmetic.

    Returns:
        Bits, int64 (n, layers, 2), and which rows the budget can be met in: bool (n,).
    """
    # What bits are paid for: operations, or weights alone; the rest does not depend on them.
    factors = weights * decoder.costs.positions if decoder.metric == "bops" else weights
    lowest = np.array([decoder.cost_of(Choice(row, _least(decoder))) for row in counts])

    def variable(bits: np.ndarray) -> np.ndarray:
        each = bits.prod(axis=2) if decoder.metric == "bops" else bits[:, :, 0]
        cost: np.ndarray = (factors * each).sum(axis=1)
        return cost

    tied = wanted + decoder.ties
    reach = float(decoder.allowed[-1] - decoder.allowed[0]) + np.abs(wanted).max(axis=(1, 2))

    def shifted(offset: np.ndarray) -> np.ndarray:
        return decoder.round_bits(tied + offset[:, None, None] * decoder.paid)

    least = np.broadcast_to(_least(decoder), tied.shape)
    constant = lowest - variable(least)

    def fits(bits: np.ndarray) -> np.ndarray:
        met: np.ndarray = constant + variable(bits) <= decoder.budget
        return met

    low, high = -reach, reach.copy()
    low = np.where(fits(shifted(high)), high, low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        met = fits(shifted(middle))
        low, high = np.where(met, middle, low), np.where(met, high, middle)
    bits = shifted(low)
    return bits, fits(shifted(-reach))


def _least(decoder: ActionDecoder) -> np.ndarray:
    """The lowest bits, int64 (layers, 2)."""
    bits: np.ndarray = decoder.round_bits(
        np.full((len(decoder.fixed), 2), float(decoder.allowed[0]))
    )
    return bits
