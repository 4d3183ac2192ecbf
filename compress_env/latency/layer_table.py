"""Latency of every layer, measured once on a machine, as a cost that a search can ask for.

The idea is HAQ's (Wang et al., "HAQ: Hardware-Aware Automated Quantization", 2019): a table of
layers stands for the hardware while a search runs. This one can be made again on any machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compress_env.latency.engines import available_cores
from compress_env.latency.measuring import versions_of
from compress_env.latency.single_layers import (
    LayerCase,
    case_of,
    layer_calls,
    layer_milliseconds,
)
from compress_env.layer_graph import LayerGraph
from compress_env.plan import FLOAT_BITS

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of a layer's channels at which it is measured."""

Progress = Callable[[int, int], None]
"""Called with how many measurements are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """One layer's entry.

    Attributes:
        name: of the layer.
        in_channels: input channels at which it was measured, increasing.
        out_channels: output channels, likewise.
        float32: milliseconds (in, out).
        int8: milliseconds (in, out).
    """

    name: str
    in_channels: np.ndarray
    out_channels: np.ndarray
    float32: np.ndarray
    int8: np.ndarray


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of a network's layers on one machine, for any plan.

    Calling it gives what `compress_env.actions.ActionDecoder` takes as `cost`. Between measured
    numbers of channels it interpolates; below the smallest it stays. More channels never cost less.
    A layer counts as 8-bit integers if its weights and its input have at most 8 bits: kernels for
    fewer bits do not exist in these engines. What lies between layers is not counted.

    Attributes:
        layers: one entry per layer of the network, in its order.
        in_atoms: for every layer the atoms of its input channels.
        out_atoms: for every layer the atoms of its output channels.
        conditions: engine, version, threads and batch size.
    """

    layers: tuple[LayerTimes, ...]
    in_atoms: tuple[np.ndarray, ...]
    out_atoms: tuple[np.ndarray, ...]
    conditions: dict[str, Any]

    @staticmethod
    def measure(
        graph: LayerGraph,
        engine: str = "openvino",
        batch_size: int = 1,
        threads: int | None = None,
        fractions: Sequence[float] = FRACTIONS,
        repeats: int = 20,
        progress: Progress | None = None,
    ) -> LatencyTable:
        """Time every layer alone; layers of the same form are timed once.

        Args:
            graph: layer graph of the dense network.
            engine: `"onnxruntime"` or `"openvino"`.
            batch_size: images per run.
            threads: threads per run; None for as many as this process has cores.
            fractions: shares of the channels, above 0 and at most 1.
            repeats: runs of every layer, in two rounds; the fastest counts.
            progress: called after every measurement.

        Raises:
            ValueError: an argument is not allowed.
            ImportError: onnx or the engine is not installed.
        """
        if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, not {fractions!r}")
        threads = available_cores() if threads is None else threads
        conditions = {
            "engine": engine,
            "version": versions_of([engine])[engine],
            "threads": threads,
            "batch_size": batch_size,
        }
        grids = [_grid(layer.in_channels, layer.out_channels, layer.kind, layer.groups, fractions)
                 for layer in graph.layers]  # fmt: skip
        cases = _cases(graph, grids)
        times: dict[LayerCase, float] = {}
        wanted = list(dict.fromkeys(case for layer in cases for case in layer.values()))
        for done, case in enumerate(2 * wanted):
            runs = (repeats + 1) // 2
            found = layer_milliseconds(case, engine, batch_size, threads, runs)
            times[case] = min(found, times.get(case, found))
            if progress is not None:
                progress(done + 1, 2 * len(wanted))
        entries = []
        for layer, (inputs, outputs), own in zip(graph.layers, grids, cases, strict=True):
            table = np.zeros((2, len(inputs), len(outputs)))
            for (kind, row, column, _), case in own.items():
                table[kind, row, column] += times[case]
            if layer.kind == "depthwise":
                table[:] = np.diagonal(table, axis1=1, axis2=2)[:, None, :].copy()
            table = _monotone(table)
            entries.append(LayerTimes(layer.name, inputs, outputs, table[0], table[1]))
        return _table(graph, entries, conditions)

    def __call__(self, kept_atoms: np.ndarray, bits: np.ndarray) -> float:
        """Milliseconds of a plan.

        Args:
            kept_atoms: bool (atoms,).
            bits: (layers, 2), weight bits and activation bits.
        """
        return float(self.layer_milliseconds(kept_atoms, bits).sum())

    def layer_milliseconds(self, kept_atoms: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Milliseconds of every layer, float64 (layers,)."""
        return self._interpolated.of(kept_atoms, np.asarray(bits).max(1) < FLOAT_BITS)

    @cached_property
    def _interpolated(self) -> _Interpolation:
        return _Interpolation(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, atomically."""
        layers = {
            layer.name: {
                "in_channels": layer.in_channels.tolist(),
                "out_channels": layer.out_channels.tolist(),
                "float32": layer.float32.round(6).tolist(),
                "int8": layer.int8.round(6).tolist(),
            }
            for layer in self.layers
        }
        data = {"format": 1, "unit": "milliseconds", **self.conditions, "layers": layers}
        path = Path(path)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(temporary, path)

    @staticmethod
    def load(path: str | os.PathLike[str], graph: LayerGraph) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no table, or one for another network.
            FileNotFoundError: there is no such file.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("format") != 1 or data.pop("unit") != "milliseconds":
                raise KeyError("format")
            layers = data.pop("layers")
            entries = [
                LayerTimes(name, *(np.array(entry[key], dtype=kind) for key, kind in _COLUMNS))
                for name, entry in layers.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"latency table: {path} is not one") from error
        return _table(graph, entries, data)


_COLUMNS = (
    ("in_channels", np.int64),
    ("out_channels", np.int64),
    ("float32", np.float64),
    ("int8", np.float64),
)


class _Interpolation:
    """A table in arrays, all layers at once."""

    def __init__(self, table: LatencyTable) -> None:
        self.rows = np.arange(len(table.layers))
        self.atoms = [np.concatenate(table.in_atoms), np.concatenate(table.out_atoms)]
        self.starts = [
            np.cumsum([0, *(len(atoms) for atoms in side[:-1])])
            for side in (table.in_atoms, table.out_atoms)
        ]
        self.grids = [
            _padded([layer.in_channels for layer in table.layers]),
            _padded([layer.out_channels for layer in table.layers]),
        ]
        shape = (2, len(table.layers), self.grids[0].shape[1], self.grids[1].shape[1])
        self.times = np.zeros(shape)
        for row, layer in enumerate(table.layers):
            for kind, times in enumerate((layer.float32, layer.int8)):
                padding = [
                    (0, size - have) for size, have in zip(shape[2:], times.shape, strict=True)
                ]
                self.times[kind, row] = np.pad(times, padding, mode="edge")

    def of(self, kept_atoms: np.ndarray, integer: np.ndarray) -> np.ndarray:
        """Milliseconds (layers,)."""
        places, shares = [], []
        for atoms, starts, grid in zip(self.atoms, self.starts, self.grids, strict=True):
            counts = np.add.reduceat(kept_atoms[atoms].astype(np.int64), starts)
            place = np.clip((grid <= counts[:, None]).sum(1) - 1, 0, grid.shape[1] - 2)
            low, high = grid[self.rows, place], grid[self.rows, place + 1]
            places.append(place)
            shares.append(np.clip((counts - low) / (high - low), 0.0, 1.0))
        (i, j), (a, b) = places, shares
        times = self.times[integer.astype(np.int64), self.rows]
        rows = self.rows
        below = (1 - b) * times[rows, i, j] + b * times[rows, i, j + 1]
        above = (1 - b) * times[rows, i + 1, j] + b * times[rows, i + 1, j + 1]
        result: np.ndarray = (1 - a) * below + a * above
        return result


def _monotone(table: np.ndarray) -> np.ndarray:
    """Times (kinds, in, out) in which more channels never cost less, however noisy they were."""
    most = np.maximum.accumulate(np.maximum.accumulate(table, 1), 2)
    turned = np.minimum.accumulate(np.minimum.accumulate(table[:, ::-1, ::-1], 1), 2)
    result: np.ndarray = (most + turned[:, ::-1, ::-1]) / 2
    return result


def _padded(grids: list[np.ndarray]) -> np.ndarray:
    """Grids in one array, continued beyond their ends by numbers that are never reached."""
    width = max(2, *(len(grid) for grid in grids))
    padded = np.zeros((len(grids), width))
    for row, grid in enumerate(grids):
        beyond = 1e9 * np.arange(1, width - len(grid) + 1)
        padded[row] = np.concatenate([grid, beyond])
    return padded


def _grid(
    in_channels: int, out_channels: int, kind: str, groups: int, fractions: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of channels at which a layer is measured; the dense ones are always among them."""
    multiple = groups if kind == "grouped" else 1

    def counts(channels: int) -> np.ndarray:
        shares = np.array([*fractions, 1.0]) * channels / multiple
        return np.unique(np.maximum(np.rint(shares).astype(np.int64), 1) * multiple)

    return counts(in_channels), counts(out_channels)


def _cases(
    graph: LayerGraph, grids: list[tuple[np.ndarray, np.ndarray]]
) -> list[dict[tuple[int, int, int, int], LayerCase]]:
    """For every layer what to measure, by kind (float32, int8), places in its grid, and call."""
    found = []
    for layer, (inputs, outputs), calls in zip(
        graph.layers, grids, layer_calls(graph), strict=True
    ):
        cases = {}
        for kind in (0, 1):
            for row, reads in enumerate(inputs.tolist()):
                for column, makes in enumerate(outputs.tolist()):
                    if layer.kind == "depthwise" and row != column:
                        continue
                    for call, (module, size) in enumerate(calls):
                        case = case_of(module, size, reads, makes, integer=kind == 1)
                        cases[kind, row, column, call] = case
        found.append(cases)
    return found


def _table(
    graph: LayerGraph, entries: list[LayerTimes], conditions: dict[str, Any]
) -> LatencyTable:
    if [entry.name for entry in entries] != [layer.name for layer in graph.layers] or any(
        entry.in_channels[-1] != layer.in_channels or entry.out_channels[-1] != layer.out_channels
        for entry, layer in zip(entries, graph.layers, strict=True)
    ):
        raise ValueError("latency table: it is for another network: its layers differ")
    return LatencyTable(
        tuple(entries),
        tuple(layer.in_atoms for layer in graph.layers),
        tuple(layer.out_atoms for layer in graph.layers),
        conditions,
    )
