"""What a plan costs: multiply-accumulates, parameters, size in bits, bit operations.

Pure functions of the layer graph and the plan; nothing is built. BOPs follow the joint
pruning-quantization paper: `sum over layers of MACs * weight bits * activation bits`, where a
32-bit float counts as 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_env.layer_graph import LayerGraph
from compress_env.plan import FLOAT_BITS, CompressionPlan

METRICS = ("bops", "macs", "params", "size")
"""What a reduction can be counted in."""

LATENCY = "latency"
"""What it can be measured in besides, by `compress_env.latency.LatencyTable`."""


@dataclass(frozen=True)
class Complexity:
    """Cost of one image through the network, and of keeping the network.

    Attributes:
        macs: multiply-accumulate operations in convolutions and linear layers.
        params: parameters: weights, biases, and those of the normalisation.
        size_bits: bits to store them; what is not a quantized weight takes 32 bits.
        bops: bit operations.
    """

    macs: int
    params: int
    size_bits: int
    bops: int

    def of(self, metric: str) -> int:
        """The figure that a metric of `METRICS` names."""
        return int(getattr(self, "size_bits" if metric == "size" else metric))


class ComplexityModel:
    """Counts for one layer graph, with everything that does not depend on the plan done once.

    A layer's weights are counted per group of its convolution, so grouped and depthwise layers
    need no special case: `weights = kernel * sum over groups of (inputs kept * outputs kept)`.

    Args:
        graph: the layer graph.
    """

    def __init__(self, graph: LayerGraph) -> None:
        layers = graph.layers
        slots = np.cumsum([0, *(layer.groups for layer in layers)])
        self.slots = int(slots[-1])
        self.slot_layer = np.repeat(np.arange(len(layers)), [layer.groups for layer in layers])
        self.in_atoms = np.concatenate([layer.in_atoms for layer in layers])
        self.out_atoms = np.concatenate([layer.out_atoms for layer in layers])
        self.in_slots = np.concatenate(
            [
                start + np.arange(layer.in_channels) // (layer.in_channels // layer.groups)
                for start, layer in zip(slots, layers, strict=False)
            ]
        )
        self.out_slots = np.concatenate(
            [
                start + np.arange(layer.out_channels) // (layer.out_channels // layer.groups)
                for start, layer in zip(slots, layers, strict=False)
            ]
        )
        self.kernel = np.array([layer.kernel[0] * layer.kernel[1] for layer in layers])
        self.positions = np.array([layer.positions for layer in layers])
        self.has_bias = np.array([layer.has_bias for layer in layers])
        # How many parameters besides the layers' weights and biases every atom carries.
        self.atom_parameters = np.zeros(graph.atom_group.size, dtype=np.int64)
        for name, atoms in graph.channels.items():
            count = sum(1 for _ in graph.module.get_submodule(name).parameters())
            np.add.at(self.atom_parameters, atoms, count)
        self.other_parameters = graph.other_parameters
        every = np.ones(graph.atom_group.size, dtype=bool)
        widths = np.full(len(layers), FLOAT_BITS)
        self.dense = self.count(every, widths, widths)

    def layer_weights(self, kept_atoms: np.ndarray) -> np.ndarray:
        """Number of weights of every layer, int64 (layers,), for kept atoms, bool (atoms,)."""
        kept = kept_atoms.astype(np.float64)
        inputs = np.bincount(self.in_slots, kept[self.in_atoms], self.slots)
        outputs = np.bincount(self.out_slots, kept[self.out_atoms], self.slots)
        connections = np.bincount(self.slot_layer, inputs * outputs, len(self.kernel))
        weights: np.ndarray = connections.astype(np.int64) * self.kernel
        return weights

    def layer_macs(self, kept_atoms: np.ndarray) -> np.ndarray:
        """MACs of every layer for one image, int64 (layers,)."""
        macs: np.ndarray = self.layer_weights(kept_atoms) * self.positions
        return macs

    def count(
        self, kept_atoms: np.ndarray, weight_bits: np.ndarray, activation_bits: np.ndarray
    ) -> Complexity:
        """The cost of kept atoms, bool (atoms,), with bits per layer, int64 (layers,) each."""
        weights = self.layer_weights(kept_atoms)
        macs = weights * self.positions
        biased = kept_atoms[self.out_atoms] & self.has_bias[self.slot_layer[self.out_slots]]
        others = int(biased.sum()) + int(self.atom_parameters[kept_atoms].sum())
        others += self.other_parameters
        return Complexity(
            macs=int(macs.sum()),
            params=int(weights.sum()) + others,
            size_bits=int((weights * weight_bits).sum()) + FLOAT_BITS * others,
            bops=int((macs * weight_bits * activation_bits).sum()),
        )

    def of_plan(self, graph: LayerGraph, plan: CompressionPlan) -> Complexity:
        """The cost of a plan."""
        return self.count(plan.kept_atoms(graph), plan.weight_bits, plan.activation_bits)


def complexity(graph: LayerGraph, plan: CompressionPlan) -> Complexity:
    """The cost of a plan; use `ComplexityModel` for many plans of one network."""
    return ComplexityModel(graph).of_plan(graph, plan)


def reduction(cost: float, dense_cost: float) -> float:
    """Share of the dense network's cost that is gone: `1 - cost / dense_cost`."""
    return 1.0 - cost / dense_cost
