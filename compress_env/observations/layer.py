"""The layer graph as an observation: one node per layer (the joint pruning-quantization paper).

Every column is scaled to about [-1, 1]. Counts and sizes go through a logarithm.
"""

from __future__ import annotations

import numpy as np

from compress_env.observations.arrays import GraphArrays
from compress_env.observations.interface import ObservationContext, ObservedState
from compress_env.observations.schema import layer_schema
from compress_env.plan import FLOAT_BITS

KINDS = ("conv", "depthwise", "grouped", "linear")

STATIC_COLUMNS = (
    *(f"is_{kind}" for kind in KINDS),
    "kernel",
    "stride",
    "depth",
    "in_channels_dense",
    "out_channels_dense",
    "feature_map",
    "macs_share_dense",
    "params_share_dense",
    "weight_spread",
    "weight_peak",
    "input_nonnegative",
    "bits_fixed",
)
CURRENT_COLUMNS = (
    "in_channels",
    "out_channels",
    "kept_ratio",
    "kept_importance",
    "macs_share",
    "bops_share",
    "params_share",
    "weight_bits",
    "activation_bits",
    "is_next",
    "is_decided",
)
NODE_COLUMNS = STATIC_COLUMNS + CURRENT_COLUMNS
"""Node features in order. `_dense` columns do not change; the others follow the plan.

| column | meaning |
|---|---|
| `is_conv`, `is_depthwise`, `is_grouped`, `is_linear` | kind of the layer, 0 or 1 |
| `kernel` | side of the kernel over 7 |
| `stride` | stride over 2, less 0.5 |
| `depth` | place in the network, from -1 for the first layer to 1 for the last |
| `in_channels_dense`, `out_channels_dense` | log2 of the dense network's channels over 10 |
| `feature_map` | log2 of the output positions over 16 |
| `macs_share_dense`, `params_share_dense` | square root of the layer's share of the dense network |
| `weight_spread` | log10 of the standard deviation of the weights, over 3 |
| `weight_peak` | log2 of the largest weight in standard deviations, over 5 |
| `input_nonnegative` | 1 if the input follows a ReLU |
| `bits_fixed` | 1 if the bits are not the agent's to choose |
| `in_channels`, `out_channels` | log2 of the current channels over 10 |
| `kept_ratio` | kept share of the output channels, from -1 (none) to 1 (all) |
| `kept_importance` | share of the importance that is kept, likewise |
| `macs_share`, `bops_share`, `params_share` | square root of the share of the current network |
| `weight_bits`, `activation_bits` | current bits: -1 for 2, 1 for 8 or more |
| `is_next` | 1 for the layer to be decided next (`layer` mode) |
| `is_decided` | 1 for the layers before it (`layer` mode) |
"""

GLOBAL_COLUMNS = ("reduction", "target_reduction", "remaining", "steps_left", "is_quantized")
"""Globals in order.

| column | meaning |
|---|---|
| `reduction`, `target_reduction` | log10 of what remains, `log10(1 - reduction) / 3`: 0 is dense |
| `remaining` | reduction that is still missing, 0 to 1 |
| `steps_left` | share of the episode's steps that are left |
| `is_quantized` | share of bit-widths below 32 |
"""


def global_values(state: ObservedState) -> np.ndarray:
    """What concerns the whole network: float32 (5,), the columns of `GLOBAL_COLUMNS`."""
    bits = np.concatenate([state.plan.weight_bits, state.plan.activation_bits])
    values = [
        np.log10(max(1.0 - state.reduction, 1e-6)) / 3,
        np.log10(max(1.0 - state.target_reduction, 1e-6)) / 3,
        max(state.target_reduction - state.reduction, 0.0),
        state.steps_left,
        float((bits < FLOAT_BITS).mean()),
    ]
    return np.array(values, dtype=np.float32)


class LayerObservation:
    """Observes the current plan on the graph of layers.

    Edges of type `flow` go from a layer to those that read its output; edges of type `coupling`
    join the layers of a coupling group, in both directions.

    Args:
        context: what does not change.
    """

    schema = layer_schema(NODE_COLUMNS, GLOBAL_COLUMNS)
    max_size = None

    def __init__(self, context: ObservationContext) -> None:
        self.graph, self.costs = context.graph, context.costs
        graph, costs = self.graph, self.costs
        layers = graph.layers
        self.edges = np.concatenate([graph.flow_edges, graph.coupling_edges], axis=1)
        self.kinds = np.repeat([0, 1], [graph.flow_edges.shape[1], graph.coupling_edges.shape[1]])
        self.out_channels = np.array([layer.out_channels for layer in layers])
        self.in_channels = np.array([layer.in_channels for layer in layers])
        self.out_layer = np.repeat(np.arange(len(layers)), self.out_channels)
        self.in_layer = np.repeat(np.arange(len(layers)), self.in_channels)
        scores = np.maximum(context.importance, 0.0)[costs.out_atoms] + 1e-12
        self.out_scores = scores
        self.total_scores = np.bincount(self.out_layer, scores, len(layers))
        self.static = self._static_columns(context.fixed)

    def _static_columns(self, fixed: np.ndarray) -> np.ndarray:
        layers, every = self.graph.layers, np.ones(self.graph.atom_group.size, dtype=bool)
        weights = [
            self.graph.module.get_parameter(f"{layer.name}.weight").detach().cpu().numpy()
            for layer in layers
        ]
        spread = np.array([max(float(weight.std()), 1e-6) for weight in weights])
        peak = np.array([max(float(np.abs(weight).max()), 1e-6) for weight in weights]) / spread
        counts, macs = self.costs.layer_weights(every), self.costs.layer_macs(every)
        columns = [
            *(np.array([layer.kind == kind for layer in layers]) for kind in KINDS),
            np.array([layer.kernel[0] / 7 for layer in layers]),
            np.array([layer.stride[0] / 2 - 0.5 for layer in layers]),
            np.linspace(-1, 1, len(layers)) if len(layers) > 1 else np.zeros(1),
            np.log2(self.in_channels) / 10,
            np.log2(self.out_channels) / 10,
            np.log2([layer.positions for layer in layers]) / 16,
            np.sqrt(macs / macs.sum()),
            np.sqrt(counts / counts.sum()),
            np.log10(spread) / 3,
            np.log2(np.maximum(peak, 1.0)) / 5,
            np.array([layer.input_nonnegative for layer in layers]),
            fixed,
        ]
        return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)

    def observe(self, state: ObservedState) -> GraphArrays:
        """The observation of a state."""
        plan, layers = state.plan, len(self.graph.layers)
        kept = plan.kept_atoms(self.graph)
        kept_out = kept[self.costs.out_atoms]
        outputs = np.bincount(self.out_layer, kept_out, layers)
        inputs = np.bincount(self.in_layer, kept[self.costs.in_atoms], layers)
        importance = np.bincount(self.out_layer, kept_out * self.out_scores, layers)
        weights = self.costs.layer_weights(kept)
        macs = weights * self.costs.positions
        bops = macs * plan.weight_bits * plan.activation_bits
        index = np.arange(layers)
        current = np.stack(
            [
                np.log2(inputs) / 10,
                np.log2(outputs) / 10,
                2 * outputs / self.out_channels - 1,
                2 * importance / self.total_scores - 1,
                np.sqrt(macs / macs.sum()),
                np.sqrt(bops / bops.sum()),
                np.sqrt(weights / weights.sum()),
                (np.minimum(plan.weight_bits, 8) - 5) / 3,
                (np.minimum(plan.activation_bits, 8) - 5) / 3,
                index == state.next_layer,
                index < state.next_layer,
            ],
            axis=1,
        ).astype(np.float32)
        return GraphArrays(
            node_features=np.concatenate([self.static, current], axis=1),
            edges=self.edges,
            edge_types=self.kinds,
            globals=global_values(state),
        )
