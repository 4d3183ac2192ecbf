"""Interpolation in tables of layers, for all layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Grids = Sequence[np.ndarray]


class LayerInterpolation:
    """Values between those of a table, linear in the numbers of input and output channels.

    Args:
        grids: for inputs and for outputs: for every layer the numbers of channels in its table.
        atoms: likewise: for every layer the atoms of its channels.
        tables: for every layer its values (kinds, in, out).
    """

    def __init__(
        self, grids: tuple[Grids, Grids], atoms: tuple[Grids, Grids], tables: Sequence[np.ndarray]
    ) -> None:
        self.rows = np.arange(len(tables))
        self.atoms = [np.concatenate(side) for side in atoms]
        self.starts = [np.cumsum([0, *(len(each) for each in side[:-1])]) for side in atoms]
        self.grids = [_padded(side) for side in grids]
        shape = (len(tables[0]), len(tables), *(grid.shape[1] for grid in self.grids))
        self.tables = np.zeros(shape)
        for row, table in enumerate(tables):
            missing = [
                (0, size - have) for size, have in zip(shape[2:], table.shape[1:], strict=True)
            ]
            self.tables[:, row] = np.pad(table, [(0, 0), *missing], mode="edge")

    def of(self, kept_atoms: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Values (layers,) for kept atoms, bool (atoms,), and the kind of every layer (layers,)."""
        places, shares = [], []
        for atoms, starts, grid in zip(self.atoms, self.starts, self.grids, strict=True):
            counts = np.add.reduceat(kept_atoms[atoms].astype(np.int64), starts)
            place = np.clip((grid <= counts[:, None]).sum(1) - 1, 0, grid.shape[1] - 2)
            low, high = grid[self.rows, place], grid[self.rows, place + 1]
            places.append(place)
            shares.append(np.clip((counts - low) / (high - low), 0.0, 1.0))
        (i, j), (a, b), rows = places, shares, self.rows
        values = self.tables[kinds, rows]
        below = (1 - b) * values[rows, i, j] + b * values[rows, i, j + 1]
        above = (1 - b) * values[rows, i + 1, j] + b * values[rows, i + 1, j + 1]
        result: np.ndarray = (1 - a) * below + a * above
        return result


def monotone(tables: np.ndarray) -> np.ndarray:
    """Noisy values (kinds, in, out) changed so that more channels never have less."""
    most = np.maximum.accumulate(np.maximum.accumulate(tables, 1), 2)
    turned = np.minimum.accumulate(np.minimum.accumulate(tables[:, ::-1, ::-1], 1), 2)
    result: np.ndarray = (most + turned[:, ::-1, ::-1]) / 2
    return result


def _padded(grids: Grids) -> np.ndarray:
    """Grids in one array, continued beyond their ends by numbers that are never reached."""
    width = max(2, *(len(grid) for grid in grids))
    padded = np.zeros((len(grids), width))
    for row, grid in enumerate(grids):
        beyond = 1e9 * np.arange(1, width - len(grid) + 1)
        padded[row] = np.concatenate([grid, beyond])
    return padded
