"""Channels as nodes, joined where they do alike (GCN channel pruning, IJCAI 2022).

A node is a channel that can be removed: an atom of a coupling group. Its features are the
distribution of its mean activation over the calibration images, how important it is, how alike its
neighbours are, and the state of its group and its layer. Edges of type `similar` come from the
channels of the same group that do most alike.

In `layer` mode the graph is that of one layer, the next to be decided: first the channels that this
step decides, then those that an earlier layer of the same group has decided. In `network` mode it
is the union over all groups. A layer none of whose channels can be removed is shown as one node
with zeros for everything that concerns the channel.

The paper (Jiang, Cao and Yang, "On the Channel Pruning using Graph Convolution Network for
Convolutional Neural Network Acceleration") makes one such graph per layer and groups the layers of
a residual stream; a coupling group is that here. It compares distributions by their
Kullback-Leibler divergence; `compress_env.observations.similarity` says how this is done here.
Features other than those of the averages are this project's choice.
Every column is scaled to about [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress_env.complexity import ComplexityModel
from compress_env.observations.arrays import GraphArrays
from compress_env.observations.interface import ObservationContext, ObservedState
from compress_env.observations.layer import GLOBAL_COLUMNS, LayerObservation
from compress_env.observations.schema import EdgeType, GraphSchema, NodeType
from compress_env.observations.similarity import SIMILARITIES, mean_activations, nearest

NEIGHBOURS = 8
"""Edges into a node, where its group has that many other channels."""

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

STATIC_COLUMNS = (
    "activation_mean",
    "activation_spread",
    "activation_min",
    "activation_lower_quartile",
    "activation_median",
    "activation_upper_quartile",
    "activation_max",
    "importance",
    "importance_rank",
    "nearest_similarity",
    "mean_similarity",
    "macs_share_dense",
    "group_size",
    "coupled_layers",
)
CURRENT_COLUMNS = ("is_kept", "is_choosable", "is_decided", "kept_ratio", "similar_kept")
LAYER_COLUMNS = (
    "is_depthwise",
    "is_linear",
    "kernel",
    "depth",
    "macs_share_dense",
    "params_share_dense",
    "weight_spread",
    "weight_peak",
    "bits_fixed",
    "macs_share",
    "bops_share",
    "params_share",
    "weight_bits",
    "activation_bits",
)
NODE_COLUMNS = (
    *STATIC_COLUMNS,
    *CURRENT_COLUMNS,
    *(f"layer_{column}" for column in LAYER_COLUMNS),
)
"""Node features in order. The first fourteen do not change; the others follow the plan.

| column | meaning |
|---|---|
| `activation_mean` | hyperbolic tangent of the mean over images of the mean activation |
| `activation_spread` | likewise of its standard deviation over images |
| `activation_min` to `activation_max` | likewise of its smallest, quartile and largest values |
| `importance` | log2 of the importance over the group's mean, over 3, from -1 to 1 |
| `importance_rank` | place in the group by importance, from 1 (first to keep) to -1 |
| `nearest_similarity` | similarity of the most similar channel of the group |
| `mean_similarity` | mean similarity of the neighbours |
| `macs_share_dense` | log10 of the share of the dense MACs that make or read the channel, over 3 |
| `group_size` | log2 of the group's channels over 10 |
| `coupled_layers` | log2 of the number of layers that make the channel, over 5 |
| `is_kept` | 1 if the channel is in the current plan |
| `is_choosable` | 1 if the next step decides on it |
| `is_decided` | 1 if an earlier step has decided on it (`layer` mode) |
| `kept_ratio` | kept share of the group, from -1 (none) to 1 (all) |
| `similar_kept` | kept share of the neighbours, likewise |
| `layer_...` | that column of the `layer` observation, for the layer to be decided next |

Mean activations are in units of the root mean square over all channels of the layers that read
them. Where no layer is next (`network` mode), `layer_...` is that of the first layer that makes the
channel.
"""

EDGE_COLUMNS = ("similarity",)
"""Edge features: `exp` of minus the symmetrised divergence (0 to 1), or the cosine (-1 to 1)."""

SCHEMA = GraphSchema(
    (NodeType("channel", NODE_COLUMNS),),
    (EdgeType("channel", "similar", "channel", EDGE_COLUMNS),),
    GLOBAL_COLUMNS,
)


@dataclass(frozen=True, eq=False)
class _View:
    """Which part of the whole graph is shown.

    Attributes:
        nodes: int64 (n,), rows of the whole graph.
        edges: int64 (2, e), between these.
        similarity: float32 (e, 1).
        layers: int64 (max(n, 1),), the layer that a node's `layer_...` columns are about.
    """

    nodes: np.ndarray
    edges: np.ndarray
    similarity: np.ndarray
    layers: np.ndarray


class ChannelObservation:
    """Observes the current plan on graphs of channels.

    Args:
        context: what does not change; its images are what mean activations are taken over, once,
            in the dense network.
        neighbours: edges into a node, at least 1.
        similarity: a name of `SIMILARITIES`: `"divergence"`, the paper's idea, or `"cosine"`.

    Raises:
        ValueError: `neighbours` or `similarity` is not allowed.
    """

    schema = SCHEMA

    def __init__(
        self,
        context: ObservationContext,
        neighbours: int = NEIGHBOURS,
        similarity: str = "divergence",
    ) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        if similarity not in SIMILARITIES:
            known = ", ".join(SIMILARITIES)
            raise ValueError(f"similarity must be one of {known}, not '{similarity}'")
        graph = context.graph
        self.graph, self.layer_by_layer = graph, context.step_mode == "layer"
        self.of_layers = LayerObservation(context)
        columns = self.of_layers.schema.nodes[0].columns
        self._layer_columns = [columns.index(name) for name in LAYER_COLUMNS]
        self.sizes = np.array([group.size for group in graph.groups], dtype=np.int64)
        self.first_layer = np.array([group.layers[0] for group in graph.groups], dtype=np.int64)
        self.group = np.repeat(np.arange(self.sizes.size), self.sizes)
        self.atoms = np.concatenate([*graph.group_atoms, np.empty(0, np.int64)]).astype(np.int64)
        profiles = mean_activations(graph, context.images)[self.atoms]
        self.edges, self.similarity = self._join(profiles, neighbours, similarity)
        self.into = np.bincount(self.edges[1], minlength=self.atoms.size)
        self.static = np.stack(
            [
                *_distribution_columns(profiles),
                *self._importance_columns(context),
                *self._similarity_columns(),
                *self._size_columns(context.costs),
            ],
            axis=1,
        ).astype(np.float32)
        shown: list[int | None] = list(range(len(graph.layers))) if self.layer_by_layer else [None]
        self._views = [self._view(layer) for layer in shown]

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Most nodes and edges of a layer's graph; None in `network` mode, where all are shown."""
        if not self.layer_by_layer:
            return None
        return (
            max(view.layers.size for view in self._views),
            max(view.edges.shape[1] for view in self._views),
        )

    # -- once per network ------------------------------------------------------------------------

    def _join(
        self, profiles: np.ndarray, neighbours: int, similarity: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Edges of all groups, int64 (2, e), group by group, and their similarity (e,)."""
        edges, values = [np.empty((2, 0), np.int64)], [np.empty(0)]
        for start, size in zip(np.cumsum(self.sizes) - self.sizes, self.sizes, strict=True):
            found = nearest(profiles[start : start + size], neighbours, SIMILARITIES[similarity])
            target = np.repeat(np.arange(size), found.indices.shape[1])
            edges.append(start + np.stack([found.indices.reshape(-1), target]))
            values.append(found.similarity.reshape(-1))
        return np.concatenate(edges, axis=1), np.concatenate(values)

    def _importance_columns(self, context: ObservationContext) -> list[np.ndarray]:
        scores = np.maximum(context.importance[self.atoms], 1e-12)
        mean = np.bincount(self.group, scores) / np.maximum(self.sizes, 1)
        ranks = context.ranks[self.atoms]
        return [
            np.clip(np.log2(scores / mean[self.group]) / 3, -1, 1),
            1 - 2 * ranks / (self.sizes[self.group] - 1),
        ]

    def _similarity_columns(self) -> list[np.ndarray]:
        # Edges come node by node, a node's most similar neighbour first.
        first = np.cumsum(self.into) - self.into
        total = np.bincount(self.edges[1], self.similarity, self.atoms.size)
        return [self.similarity[first], total / self.into]

    def _size_columns(self, costs: ComplexityModel) -> list[np.ndarray]:
        graph, atoms = self.graph, self.graph.atom_group.size
        macs = costs.layer_macs(np.ones(atoms, dtype=bool)).astype(float)
        makes = np.repeat(
            [cost / layer.out_channels for cost, layer in zip(macs, graph.layers, strict=True)],
            [layer.out_channels for layer in graph.layers],
        )
        reads = np.repeat(
            [cost / layer.in_channels for cost, layer in zip(macs, graph.layers, strict=True)],
            [layer.in_channels for layer in graph.layers],
        )
        touched = np.bincount(costs.out_atoms, makes, atoms)
        touched += np.bincount(costs.in_atoms, reads, atoms)
        makers = np.array([len(group.layers) for group in graph.groups])[self.group]
        return [
            np.log10(np.maximum(touched[self.atoms] / macs.sum(), 1e-6)) / 3,
            np.log2(self.sizes[self.group]) / 10,
            np.log2(makers) / 5,
        ]

    def _view(self, layer: int | None) -> _View:
        """What is shown for a layer to be decided, or of the whole network."""
        if layer is None:
            groups = np.arange(self.sizes.size)
        else:
            made = np.flatnonzero(self.graph.group_membership[:, layer])
            # What is decided now comes first: node i is entry i of the action.
            groups = made[np.argsort(self.first_layer[made] != layer, kind="stable")]
        own = [np.flatnonzero(self.group == group) for group in groups]
        nodes = np.concatenate([*own, np.empty(0, np.int64)]).astype(np.int64)
        place = np.full(self.atoms.size, -1)
        place[nodes] = np.arange(nodes.size)
        edges = place[self.edges]
        inside = edges[1] >= 0
        similarity = self.similarity[inside].astype(np.float32).reshape(-1, 1)
        shown = self.first_layer[self.group[nodes]] if layer is None else np.full(nodes.size, layer)
        layers = shown if nodes.size else np.array([layer or 0])
        return _View(nodes, np.ascontiguousarray(edges[:, inside]), similarity, layers)

    # -- once per state --------------------------------------------------------------------------

    def observe(self, state: ObservedState) -> GraphArrays:
        """The observation of a state."""
        # After the last layer there is no next one; the last stays in view.
        view = self._views[state.next_layer]
        of_layers = self.of_layers.observe(state)
        channels = np.concatenate([self.static, self._current_columns(state)], axis=1)
        shown = (
            channels[view.nodes]
            if view.nodes.size
            else np.zeros((1, channels.shape[1]), np.float32)
        )
        layers = of_layers.node_features[view.layers][:, self._layer_columns]
        return GraphArrays(
            node_features=np.concatenate([shown, layers], axis=1),
            edges=view.edges,
            edge_types=np.zeros(view.edges.shape[1], np.int64),
            globals=of_layers.globals,
            edge_features=view.similarity,
        )

    def _current_columns(self, state: ObservedState) -> np.ndarray:
        kept = state.plan.kept_atoms(self.graph)[self.atoms].astype(float)
        share = np.bincount(self.group, kept, self.sizes.size) / np.maximum(self.sizes, 1)
        near = np.bincount(self.edges[1], kept[self.edges[0]], kept.size) / self.into
        first = self.first_layer[self.group]
        # All channels are open at every step of `network` mode, where no layer is next.
        end = state.next_layer if state.next_layer >= 0 else len(self.graph.layers)
        choosable = first == end if self.layer_by_layer else np.ones_like(kept)
        decided = (first < end) & self.layer_by_layer
        columns = [kept, choosable, decided, 2 * share[self.group] - 1, 2 * near - 1]
        return np.stack(columns, axis=1).astype(np.float32)


def _distribution_columns(profiles: np.ndarray) -> list[np.ndarray]:
    quantiles = np.quantile(profiles, _QUANTILES, axis=1)
    return [np.tanh(profiles.mean(1)), np.tanh(profiles.std(1)), *np.tanh(quantiles)]
