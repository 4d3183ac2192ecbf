"""The computation graph in two levels as an observation (GNN-RL, Yu et al., ICML 2022).

The lower level holds the motifs of the network, each once: nodes of type `value` are the tensors
in a motif, edges of type `operation` its primitive operations. The upper level is the network:
nodes of type `state` are the hidden states between motifs, edges of type `motif` the occurrences
of motifs. The column `motif` says which motif a value belongs to and which one an edge is.
`compress_env.observations.motifs` says how motifs are found.

The lower level depends on the network alone, so that every motif need be embedded only once. What
differs between occurrences, the channels and bits of the current plan, stands on the states and
edges of the upper level. Every column is scaled to about [-1, 1]; counts and sizes go through a
logarithm.
"""

from __future__ import annotations

import numpy as np

from compress_env.observations.arrays import GraphArrays
from compress_env.observations.interface import ObservationContext, ObservedState
from compress_env.observations.layer import GLOBAL_COLUMNS, LayerObservation, global_values
from compress_env.observations.motifs import Hierarchy, Motif, find_motifs
from compress_env.observations.schema import EdgeType, GraphSchema, NodeType
from compress_env.observations.value_flow import KINDS

STATE_COLUMNS = (
    "is_input",
    "is_output",
    "depth",
    "channels_dense",
    "feature_map",
    "channels",
    "kept_ratio",
    "kept_importance",
)
"""Features of a `state`, in order.

| column | meaning |
|---|---|
| `is_input`, `is_output` | 1 for the network's input or its output |
| `depth` | place in the network, from -1 for the input to 1 for the output |
| `channels_dense` | log2 of the dense network's channels over 10 |
| `feature_map` | log2 of height times width over 16 |
| `channels` | log2 of the current channels over 10 |
| `kept_ratio` | kept share of the channels, from -1 (none) to 1 (all) |
| `kept_importance` | share of the importance that is kept, likewise |
"""

VALUE_COLUMNS = ("motif", "is_input", "is_output", "depth")
"""Features of a `value`, in order. They do not change.

| column | meaning |
|---|---|
| `motif` | number of the motif over 100 |
| `is_input`, `is_output` | 1 for the motif's input or its output |
| `depth` | longest way from the input, in operations, from -1 (the input) to 1 (the output) |
"""

OPERATION_COLUMNS = (*(f"is_{kind}" for kind in KINDS), "kernel", "stride")
"""Features of an `operation`, in order. They do not change.

| column | meaning |
|---|---|
| `is_conv`, `is_depthwise`, `is_grouped`, `is_linear` | kind of a layer, 0 or 1 |
| `is_normalize`, `is_activate`, `is_pool` | normalisation, activation, pooling or mean |
| `is_add`, `is_multiply`, `is_concatenate` | what joins several values |
| `is_move` | what only puts values elsewhere: slice, split, shuffle, padding, reshaping |
| `is_other` | anything else |
| `kernel` | side of a layer's kernel over 7, 0 for what is no layer |
| `stride` | how many times it shrinks height and width, over 2, less 0.5 |
"""

_SHARES = ("macs_share_dense", "params_share_dense", "macs_share", "bops_share", "params_share")
_MEANS = (
    "weight_spread", "weight_peak", "bits_fixed", "kept_ratio", "kept_importance", "weight_bits",
    "activation_bits", "is_decided",
)  # fmt: skip
MOTIF_COLUMNS = (
    "motif",
    "layers",
    *_SHARES,
    *_MEANS,
    "weight_bits_lowest",
    "activation_bits_lowest",
    "is_next",
)
"""Features of a `motif` edge, in order. All but the first two are 0 where it has no layer.

| column | meaning |
|---|---|
| `motif` | number of the motif over 100 |
| `layers` | log2 of 1 + the number of its layers, over 4 |
| `macs_share_dense`, `params_share_dense` | square root of its share of the dense network |
| `macs_share`, `bops_share`, `params_share` | square root of its share of the current network |
| `weight_spread`, `weight_peak`, `bits_fixed` | mean over its layers of the `layer` columns |
| `kept_ratio`, `kept_importance` | likewise |
| `weight_bits`, `activation_bits` | likewise: -1 for 2 bits, 1 for 8 or more |
| `is_decided` | likewise: share of its layers that are decided (`layer` mode) |
| `weight_bits_lowest`, `activation_bits_lowest` | the lowest of its layers |
| `is_next` | 1 if it has the layer to be decided next (`layer` mode) |
"""

MOTIF_SCALE = 100
"""The column `motif` is a motif's number over this."""

SCHEMA = GraphSchema(
    nodes=(NodeType("state", STATE_COLUMNS), NodeType("value", VALUE_COLUMNS)),
    edges=(
        EdgeType("state", "motif", "state", MOTIF_COLUMNS),
        EdgeType("value", "operation", "value", OPERATION_COLUMNS),
    ),
    globals=GLOBAL_COLUMNS,
)
"""Node and edge types of the observation; the globals are those of `layer`."""


class HierarchicalObservation:
    """Observes the current plan on the two-level computation graph.

    Args:
        context: what does not change.
    """

    schema = SCHEMA
    max_size = None

    def __init__(self, context: ObservationContext) -> None:
        self.hierarchy = find_motifs(context.graph)
        self.graph = context.graph
        self.of_layers = LayerObservation(context)
        states, motifs = self.hierarchy.states, self.hierarchy.motifs
        occurrences = self.hierarchy.occurrences
        self.state_atoms = np.concatenate([state.atoms for state in states])
        self.atom_state = np.repeat(np.arange(len(states)), [state.atoms.size for state in states])
        self.scores = np.maximum(context.importance, 0.0)[self.state_atoms] + 1e-12
        self.channels = np.array([state.channels for state in states])
        self.has_layer = np.array([bool(each.layers) for each in occurrences])
        self.layer_order = np.concatenate([np.array(each.layers, np.int64) for each in occurrences])
        self.layer_edge = np.repeat(
            np.arange(len(occurrences)), [len(each.layers) for each in occurrences]
        )
        self.state_static = _state_columns(self.hierarchy)
        self.values = np.concatenate([_value_columns(*each) for each in enumerate(motifs)])
        operations = [_operation_columns(motif) for motif in motifs]
        sizes = [len(states), *(motif.size for motif in motifs)]
        first = np.cumsum(sizes)
        upper = [(each.source, each.destination) for each in occurrences]
        self.edges = np.concatenate(
            [
                np.array(upper, np.int64).reshape(-1, 2).T,
                *(motif.edges + start for motif, start in zip(motifs, first, strict=False)),
            ],
            axis=1,
        )
        self.edge_types = np.repeat([0, 1], [len(occurrences), sum(map(len, operations))])
        self.node_types = np.repeat([0, 1], [len(states), len(self.values)])
        self.operations = np.concatenate(operations)
        counts = np.bincount(self.layer_edge, minlength=len(occurrences))
        self.counts = np.maximum(counts, 1)
        self.edge_static = np.stack(
            [[each.motif / MOTIF_SCALE for each in occurrences], np.log2(1 + counts) / 4], axis=1
        )

    def observe(self, state: ObservedState) -> GraphArrays:
        """The observation of a state."""
        states, edges = self._states(state), self._motif_edges(state)
        return GraphArrays(
            node_features=_stacked(states, self.values, SCHEMA.node_width),
            edges=self.edges,
            edge_types=self.edge_types,
            globals=global_values(state),
            node_types=self.node_types,
            edge_features=_stacked(edges, self.operations, SCHEMA.edge_width),
        )

    def _states(self, state: ObservedState) -> np.ndarray:
        kept = state.plan.kept_atoms(self.graph)[self.state_atoms].astype(np.float64)
        number = len(self.channels)
        of_state = np.bincount(self.atom_state, minlength=number)
        share = _ratio(np.bincount(self.atom_state, kept, number), of_state)
        importance = _ratio(
            np.bincount(self.atom_state, kept * self.scores, number),
            np.bincount(self.atom_state, self.scores, number),
        )
        current = [np.log2(self.channels * share) / 10, 2 * share - 1, 2 * importance - 1]
        return np.concatenate([self.state_static, np.stack(current, axis=1)], axis=1)

    def _motif_edges(self, state: ObservedState) -> np.ndarray:
        columns = self.of_layers.schema.nodes[0].columns
        features = self.of_layers.observe(state).node_features.astype(np.float64)
        layers = dict(zip(columns, features.T[:, self.layer_order], strict=True))

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(self.layer_edge, values, len(self.counts))

        def lowest(values: np.ndarray) -> np.ndarray:
            found = np.full(len(self.counts), np.inf)
            np.minimum.at(found, self.layer_edge, values)
            return np.where(self.has_layer, found, 0.0)

        found = [
            *(np.sqrt(total(layers[name] ** 2)) for name in _SHARES),
            *(total(layers[name]) / self.counts for name in _MEANS),
            lowest(layers["weight_bits"]),
            lowest(layers["activation_bits"]),
            total(layers["is_next"]),
        ]
        return np.concatenate([self.edge_static, np.stack(found, axis=1)], axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part over whole, and 1 where there is nothing: the input keeps all its channels."""
    return np.where(whole > 0, part / np.maximum(whole, 1e-30), 1.0)


def _stacked(upper: np.ndarray, lower: np.ndarray, width: int) -> np.ndarray:
    """Two tables below one another, filled with zeros: float32 (rows, width)."""
    joined = np.zeros((len(upper) + len(lower), width), np.float32)
    joined[: len(upper), : upper.shape[1]] = upper
    joined[len(upper) :, : lower.shape[1]] = lower
    return joined


def _state_columns(hierarchy: Hierarchy) -> np.ndarray:
    """The columns of the states that do not change."""
    states, number = hierarchy.states, len(hierarchy.states)
    index = np.arange(number)
    columns = [
        index == 0,
        index == number - 1,
        2 * index / max(number - 1, 1) - 1,
        np.log2([state.channels for state in states]) / 10,
        np.log2([state.positions for state in states]) / 16,
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _value_columns(number: int, motif: Motif) -> np.ndarray:
    depth = np.zeros(motif.size)
    for read, made in motif.edges.T:  # in the order of the data flow
        depth[made] = max(depth[made], depth[read] + 1)
    index = np.arange(motif.size)
    columns = [
        np.full(motif.size, number / MOTIF_SCALE),
        index == 0,
        index == motif.size - 1,
        2 * depth / depth[-1] - 1,
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _operation_columns(motif: Motif) -> np.ndarray:
    rows = [
        [
            *(float(operation.kind == kind) for kind in KINDS),
            operation.kernel / 7,
            operation.stride / 2 - 0.5,
        ]
        for operation in motif.operations
    ]
    return np.array(rows)
