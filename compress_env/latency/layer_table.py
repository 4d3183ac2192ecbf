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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from compress_env.latency.engines import available_cores
from compress_env.latency.interpolation import LayerInterpolation, monotone
from compress_env.latency.journal import Journal
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
        conditions: engine, version, threads, batch size and shape of an image.
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
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
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
            journal: file that keeps every measurement as it is made; to be deleted once the table
                is saved.
            resume: go on from the journal of an interrupted call.

        Raises:
            ValueError: an argument is not allowed, or the journal is of other measurements.
            ImportError: onnx or the engine is not installed.
        """
        if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, not {fractions!r}")
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, not {repeats!r}")
        threads = available_cores() if threads is None else threads
        if batch_size < 1 or threads < 1:
            raise ValueError(
                f"batch_size and threads must be at least 1, not {batch_size} and {threads}"
            )
        conditions = {
            "engine": engine,
            "version": versions_of([engine])[engine],
            "threads": threads,
            "batch_size": batch_size,
            "input_shape": list(graph.input_shape),
        }
        grids = [_grid(layer.in_channels, layer.out_channels, layer.kind, layer.groups, fractions)
                 for layer in graph.layers]  # fmt: skip
        cases = _cases(graph, grids)
        wanted = list(dict.fromkeys(case for layer in cases for case in layer.values()))
        known = Journal(journal, {**conditions, "repeats": repeats}, resume)
        times: dict[LayerCase, float] = {}
        for done, (series, case) in enumerate(product(range(2), wanted)):
            found = known.get((series, case))
            if found is None:
                found = layer_milliseconds(case, engine, batch_size, threads, (repeats + 1) // 2)
                known.add((series, case), found)
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
            table = monotone(table)
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
        return self._interpolation.of(
            kept_atoms, (np.asarray(bits).max(1) < FLOAT_BITS).astype(np.int64)
        )

    @cached_property
    def _interpolation(self) -> LayerInterpolation:
        inputs = [layer.in_channels for layer in self.layers]
        outputs = [layer.out_channels for layer in self.layers]
        times = [np.stack([layer.float32, layer.int8]) for layer in self.layers]
        return LayerInterpolation((inputs, outputs), (self.in_atoms, self.out_atoms), times)

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
            ValueError: the file is no table, lacks times of a kind, or is for another network or
                other images.
            FileNotFoundError: there is no such file.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("format") != 1 or data.pop("unit") != "milliseconds":
                raise KeyError("format")
            layers = dict(data.pop("layers"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"latency table: {path} is not one") from error
        shape = data.get("input_shape", list(graph.input_shape))
        if shape != list(graph.input_shape):
            raise ValueError(
                f"latency table: {path} was measured on images {shape} (channels, height, width), "
                f"not {list(graph.input_shape)}"
            )
        entries = [_read_entry(path, name, entry) for name, entry in layers.items()]
        return _table(graph, entries, data)


def _read_entry(path: str | os.PathLike[str], name: str, entry: Any) -> LayerTimes:
    where = f"latency table: {path}, layer '{name}':"
    try:
        columns = [np.array(entry[key], dtype=kind) for key, kind in _COLUMNS]
    except KeyError as error:
        raise ValueError(f"{where} there is no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} an entry is of the wrong type: {error}") from None
    inputs, outputs, *tables = columns
    for grid in (inputs, outputs):
        if grid.ndim != 1 or not grid.size or grid[0] < 1 or np.any(np.diff(grid) <= 0):
            raise ValueError(f"{where} numbers of channels must increase from 1 at least")
    for table in tables:
        if table.shape != (inputs.size, outputs.size) or not np.all(
            np.isfinite(table) & (table >= 0)
        ):
            raise ValueError(
                f"{where} there must be a time for every number of inputs and of outputs"
            )
    return LayerTimes(name, *columns)


_COLUMNS = (
    ("in_channels", np.int64),
    ("out_channels", np.int64),
    ("float32", np.float64),
    ("int8", np.float64),
)


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
