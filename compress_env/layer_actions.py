"""From an action for one layer to the part of a plan that this layer decides.

Layers are decided one after the other, and every decision is bounded so that the target stays in
reach of those that are left.
"""

from __future__ import annotations

import numpy as np

from compress_env.actions import ActionDecoder, Choice, kept_share
from compress_env.importance import rank_group


class LayerActionDecoder:
    """Decodes the actions of `"layer"` mode.

    Args:
        decoder: what whole-network actions mean for the same network and budget.
    """

    def __init__(self, decoder: ActionDecoder) -> None:
        self.decoder, self.graph = decoder, decoder.graph
        first = [group.layers[0] for group in self.graph.groups]
        self._deciding = np.array(first, dtype=np.int64)
        """For every group the layer that decides on it, which is the first to make it."""

    def own_groups(self, index: int) -> list[int]:
        """The coupling groups that a layer is the first to make; it decides on them."""
        return np.flatnonzero(self._deciding == index).tolist()

    def own_atoms(self, index: int) -> np.ndarray:
        """The channels that a layer decides on, group by group: int64 (atoms,)."""
        own = [self.graph.group_atoms[group] for group in self.own_groups(index)]
        return np.concatenate([*own, np.empty(0, np.int64)]).astype(np.int64)

    @property
    def choice_size(self) -> int:
        """Entries of an action that chooses a layer's channels: one each, then two for bits."""
        most = max(self.own_atoms(index).size for index in range(len(self.graph.layers)))
        return most + 2

    def decode(self, action: np.ndarray, index: int, so_far: Choice) -> Choice:
        """Decode the action for one layer, bounded so that the target stays in reach.

        Bits, and then channels, are lowered until the budget can be met with all later layers at
        their smallest (AMC, algorithm 1).

        Args:
            action: float (3,) in [-1, 1]: channels of the groups that this layer is the first to
                make, of which zero keeps as many as the base plan, -1 the fewest and 1 all; then
                weight bits and activation bits.
            index: the layer.
            so_far: what has been decided; entries of later layers are not looked at.

        Returns:
            `so_far` with this layer decided.
        """
        decoder, own = self.decoder, self.own_groups(index)
        base, counts = decoder.base.counts, so_far.counts.copy()
        share, more = float(kept_share(action[0])), max(float(action[0]), 0.0)
        wanted = decoder.round_counts(base * share + more * (decoder.sizes - base))
        counts[own] = wanted[own]
        return self._bounded_layer(action[1:], index, Choice(counts, so_far.bits, so_far.ranks))

    def decode_choice(self, action: np.ndarray, index: int, so_far: Choice) -> Choice:
        """Decode the action for one layer that names its channels, bounded likewise.

        A positive number keeps a channel and a negative one removes it; zero does what the base
        plan does. Where the budget, or a multiple that counts must be of, wants fewer or more, the
        channels with the highest numbers stay, equal ones in the order of importance.

        Args:
            action: float (`choice_size`,) in [-1, 1]: a number per channel of `own_atoms`,
                others that are not looked at, and last weight bits and activation bits.
            index: the layer.
            so_far: what has been decided; entries of later layers are not looked at.

        Returns:
            `so_far` with this layer decided.
        """
        decoder, counts = self.decoder, so_far.counts.copy()
        ranks = (decoder.ranks if so_far.ranks is None else so_far.ranks).copy()
        start, own = 0, self.own_groups(index)
        for group in own:
            atoms = self.graph.group_atoms[group]
            numbers = action[start : start + atoms.size]
            start += atoms.size
            before = decoder.ranks[atoms]
            stays = (numbers > 0) | ((numbers == 0) & (before < decoder.base.counts[group]))
            order = np.lexsort((before, -numbers))
            ranks[atoms[order]] = np.arange(atoms.size)
            ranks[atoms] = rank_group(self.graph, atoms, -ranks[atoms])
            counts[group] = stays.sum()
        counts[own] = decoder.round_counts(counts.astype(float))[own]
        return self._bounded_layer(action[-2:], index, Choice(counts, so_far.bits, ranks))

    def _bounded_layer(self, numbers: np.ndarray, index: int, wanted: Choice) -> Choice:
        """Set a layer's bits, and lower them and its channels until the target is in reach."""
        counts, bits = wanted.counts.copy(), wanted.bits.copy()
        bits[index] = self.decoder.bits_of(numbers)[index]
        rest, own = self._smallest_rest(index), self.own_groups(index)
        while not self._reachable(Choice(counts, bits, wanted.ranks), rest):
            lower = self._lower_once(index, own, counts, bits)
            if not lower:
                break
        return Choice(counts, bits, wanted.ranks)

    def _smallest_rest(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Which groups and layers are decided only after a layer: bool (groups,), (layers,)."""
        return self._deciding > index, np.arange(len(self.graph.layers)) > index

    def _reachable(self, choice: Choice, rest: tuple[np.ndarray, np.ndarray]) -> bool:
        later_groups, later_layers = rest
        smallest = self.decoder.smallest()
        counts = np.where(later_groups, smallest.counts, choice.counts)
        bits = np.where(later_layers[:, None], smallest.bits, choice.bits)
        return self.decoder.cost_of(Choice(counts, bits, choice.ranks)) <= self.decoder.budget

    def _lower_once(self, index: int, own: list[int], counts: np.ndarray, bits: np.ndarray) -> bool:
        """Lower the wider of a layer's bit-widths that cost something, or else its channels."""
        decoder = self.decoder
        if not decoder.fixed[index] and decoder.paid.any():
            which = int(
                not decoder.paid[0] or (decoder.paid[1] and bits[index, 1] >= bits[index, 0])
            )
            place = int(np.searchsorted(decoder.allowed, bits[index, which]))
            if place > 0:
                bits[index, which] = decoder.allowed[place - 1]
                return True
        above = [group for group in own if counts[group] > decoder.multiples[group]]
        for group in above:
            multiple = decoder.multiples[group]
            counts[group] = max(multiple, (counts[group] - 1) // multiple * multiple)
        return bool(above)
