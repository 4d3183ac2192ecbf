"""The plan: which channels of every coupling group stay, and how many bits every layer gets.

A plan is all that a search has to hand on: with the network and the calibration images it gives the
same compressed network and the same figures again. It is saved as JSON that a person can read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress_env.layer_graph import FROZEN, LayerGraph

FLOAT_BITS = 32
"""Bit-width that stands for "not quantized"."""

ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)
"""Bit-widths that a plan may hold."""


@dataclass(frozen=True, eq=False)
class CompressionPlan:
    """Kept channels for every coupling group, bit-widths for every layer.

    Attributes:
        network: name of the network the plan is for.
        groups: names of the coupling groups, in the order of the layer graph.
        kept: for every group a bool array (group size,), True where the channel stays.
        layers: names of the layers, in the order of the layer graph.
        weight_bits: int64 (layers,), 2 to 8, or 32 for float.
        activation_bits: int64 (layers,), bits of every layer's input, likewise.
    """

    network: str
    groups: tuple[str, ...]
    kept: tuple[np.ndarray, ...]
    layers: tuple[str, ...]
    weight_bits: np.ndarray
    activation_bits: np.ndarray

    def __post_init__(self) -> None:
        for name, mask in zip(self.groups, self.kept, strict=True):
            if mask.dtype != np.bool_ or not mask.any():
                raise ValueError(f"plan: group '{name}' must keep at least one channel")
        for what, bits in (("weight", self.weight_bits), ("activation", self.activation_bits)):
            if bits.shape != (len(self.layers),):
                raise ValueError(f"plan: {what} bits must be one number per layer")
            wrong = ~np.isin(bits, ALLOWED_BITS)
            if wrong.any():
                index = int(np.flatnonzero(wrong)[0])
                raise ValueError(
                    f"plan: layer '{self.layers[index]}' has {bits[index]} {what} bits; "
                    f"allowed are {', '.join(map(str, ALLOWED_BITS))}"
                )

    @staticmethod
    def dense(graph: LayerGraph, network: str = "", bits: int = FLOAT_BITS) -> CompressionPlan:
        """The plan that keeps every channel, with the same bits everywhere (32: the network)."""
        kept = [np.ones(group.size, dtype=bool) for group in graph.groups]
        widths = np.full(len(graph.layers), bits, dtype=np.int64)
        return CompressionPlan.of(graph, kept, widths, widths, network)

    @staticmethod
    def of(
        graph: LayerGraph,
        kept: Sequence[np.ndarray],
        weight_bits: np.ndarray,
        activation_bits: np.ndarray,
        network: str = "",
    ) -> CompressionPlan:
        """A plan for a graph from its arrays, in the graph's order."""
        return CompressionPlan(
            network=network,
            groups=tuple(group.name for group in graph.groups),
            kept=tuple(np.asarray(mask, dtype=bool) for mask in kept),
            layers=tuple(layer.name for layer in graph.layers),
            weight_bits=np.asarray(weight_bits, dtype=np.int64),
            activation_bits=np.asarray(activation_bits, dtype=np.int64),
        )

    def kept_atoms(self, graph: LayerGraph) -> np.ndarray:
        """Bool (atoms,): which atoms of the graph stay."""
        atoms: np.ndarray = graph.atom_group == FROZEN
        for indices, mask in zip(graph.group_atoms, self.kept, strict=True):
            atoms[indices] = mask
        return atoms

    def key(self) -> bytes:
        """Equal for equal plans; what caches are looked up by."""
        bits = np.concatenate([self.weight_bits, self.activation_bits]).astype(np.uint8)
        return bits.tobytes() + b"".join(np.packbits(mask).tobytes() for mask in self.kept)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompressionPlan):
            return NotImplemented
        return (
            (self.network, self.groups, self.layers) == (other.network, other.groups, other.layers)
            and [mask.size for mask in self.kept] == [mask.size for mask in other.kept]
            and self.key() == other.key()
        )

    def __hash__(self) -> int:
        return hash((self.network, self.key()))

    # -- JSON --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict: kept channel indices by group, bits by layer."""
        return {
            "format": 1,
            "network": self.network,
            "groups": {
                name: {"channels": int(mask.size), "kept": np.flatnonzero(mask).tolist()}
                for name, mask in zip(self.groups, self.kept, strict=True)
            },
            "layers": {
                name: {"weight_bits": int(weight), "activation_bits": int(activation)}
                for name, weight, activation in zip(
                    self.layers, self.weight_bits, self.activation_bits, strict=True
                )
            },
        }

    @staticmethod
    def from_json(data: Any, graph: LayerGraph, network: str | None = None) -> CompressionPlan:
        """Read what `to_json` wrote and check it against the network it is for.

        Args:
            data: the dict.
            graph: layer graph of the network.
            network: the network's name, if that is to be checked too.

        Raises:
            ValueError: not a plan, or a plan for another network; names the first difference.
        """
        if not isinstance(data, dict) or not _is_whole(data.get("format")) or data["format"] != 1:
            raise ValueError('plan: not a compression plan (its "format" must be 1)')
        own = data.get("network", "")
        if not isinstance(own, str):
            raise ValueError(f'plan: its "network" must be a name, not {own!r}')
        if network is not None and own not in ("", network):
            raise ValueError(f"plan: it is for network '{own}', not '{network}'")
        try:
            _check_names("coupling group", data["groups"], [g.name for g in graph.groups])
            _check_names("layer", data["layers"], [layer.name for layer in graph.layers])
            kept = [
                _read_kept(group.name, group.size, data["groups"][group.name])
                for group in graph.groups
            ]
            weight_bits, activation_bits = (
                [_read_bits(layer.name, key, data["layers"][layer.name]) for layer in graph.layers]
                for key in ("weight_bits", "activation_bits")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"plan: an entry is missing or of the wrong type: {error}") from error
        return CompressionPlan.of(
            graph, kept, np.array(weight_bits), np.array(activation_bits), own
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, atomically."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(temporary, path)

    @staticmethod
    def load(
        path: str | os.PathLike[str], graph: LayerGraph, network: str | None = None
    ) -> CompressionPlan:
        """Read a plan from JSON and check it against the network it is for.

        Raises:
            ValueError: the file is no plan, or a plan for another network; or it is a folder.
            FileNotFoundError: there is no such file.
        """
        if Path(path).is_dir():
            raise ValueError(f"plan: {path} is a folder, not the file of a plan")
        try:
            data = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"plan: {path} is not JSON: {error}") from error
        try:
            return CompressionPlan.from_json(data, graph, network)
        except ValueError as error:
            raise ValueError(f"plan: {path}: {str(error).removeprefix('plan: ')}") from error


def _check_names(what: str, found: dict[str, Any], expected: list[str]) -> None:
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    if missing or surplus:
        first = f"it lacks '{missing[0]}'" if missing else f"it has '{surplus[0]}'"
        raise ValueError(f"plan: it is for another network: {what}s differ ({first})")


def _is_whole(value: Any) -> bool:
    """Whether a value from JSON is a whole number; true and false, which Python counts, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _read_bits(name: str, key: str, entry: dict[str, Any]) -> int:
    bits = entry[key]
    if not _is_whole(bits):
        raise ValueError(
            f"plan: bit-widths must be whole numbers, but {key} of layer '{name}' is {bits!r}"
        )
    return int(bits)


def _read_kept(name: str, size: int, entry: dict[str, Any]) -> np.ndarray:
    if not _is_whole(entry["channels"]) or entry["channels"] != size:
        raise ValueError(
            f"plan: it is for another network: group '{name}' has {entry['channels']} channels "
            f"there and {size} here"
        )
    indices = entry["kept"]
    if not isinstance(indices, list) or not all(
        _is_whole(index) and 0 <= index < size for index in indices
    ):
        raise ValueError(f"plan: kept channels of group '{name}' must be from 0 to {size - 1}")
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask
