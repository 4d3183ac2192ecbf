"""The value of a plan, learned by graph networks: whole batches of plans of one network.

A plan is shown as the layer graph with what it decides at every layer. Its value is read out as a
mean over the layers, since what layers lose nearly adds up as long as it is little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_agents.graph_networks.batching import batch_graphs
from compress_agents.graph_networks.encoders import build_encoder
from compress_env.batch_decoding import PlanBatch
from compress_env.env import JointPruneQuantEnv
from compress_env.graphs import FEATURES, NODE_TYPE
from compress_env.observations import ObservedState
from compress_env.observations.arrays import pad

__all__ = ["DECISION_COLUMNS", "PlanGraphs", "PlanValue", "ValueEnsemble"]

DECISION_COLUMNS = (
    "weight_bits",
    "activation_bits",
    "weight_noise",
    "activation_noise",
    "outputs_removed",
    "inputs_removed",
    "cost",
)
"""What a plan decides at a layer, in order.

| column | meaning |
|---|---|
| `weight_bits`, `activation_bits` | bits, from -1 for 2 to 1 for 8 or more |
| `weight_noise`, `activation_noise` | step of rounding, `2**-bits`, in steps of the base plan's |
| `outputs_removed`, `inputs_removed` | share of the channels that are gone, 0 to 1 |
| `cost` | square root of the layer's share of the cost of the dense network, times layers |
"""

_OUTPUT_WEIGHTS = (1.0, 0.5)
_KEPT_GRAPHS = 16


class PlanGraphs:
    """Makes observation graphs of plans, many at once.

    Nodes have the features that the environment shows of the base plan, which do not change, and
    the `DECISION_COLUMNS` of the plan.

    Args:
        env: an environment with the observation `layer`.

    Raises:
        ValueError: it has another observation.
    """

    def __init__(self, env: JointPruneQuantEnv) -> None:
        decoder, graph = env.decoder, env.task.graph
        base = decoder.plan(decoder.base)
        arrays = env.observer.observe(
            ObservedState(base, decoder.reduction(base), decoder.target_reduction, 0.0)
        )
        layers = len(graph.layers)
        if len(arrays.node_features) != layers or len(env.observer.schema.nodes) != 1:
            raise ValueError("observation must be 'layer', with one node for every layer")
        self.decoder, self.layers = decoder, layers
        padded = pad(arrays, layers, max(len(arrays.edge_types), 1), env.observer.schema)
        self._observation = {
            name: torch.from_numpy(np.array(values)) for name, values in padded.items()
        }
        # Columns that tell no layer from another would only be noise to learn from.
        varies = np.ptp(arrays.node_features, axis=0) > 0
        static = arrays.node_features[:, varies]
        self.static = (static - static.mean(axis=0)) / static.std(axis=0)
        self.num_globals = len(arrays.globals)
        self.num_features = self.static.shape[1] + len(DECISION_COLUMNS)
        self._outputs = self._shares([layer.out_atoms for layer in graph.layers])
        self._inputs = self._shares([layer.in_atoms for layer in graph.layers])
        self._positions = env.task.costs.positions
        every = np.ones(graph.atom_group.size, dtype=bool)
        dense = env.task.costs.layer_weights(every) * self._positions
        self._scale = layers / float(dense.sum() * decoder.base.bits.prod(axis=1).mean())
        self._graphs: dict[int, Any] = {}

    def _shares(self, atoms: list[np.ndarray]) -> np.ndarray:
        """Share of every layer's channels that are of a group: float (groups, layers)."""
        groups = self.decoder.graph.atom_group
        count = len(self.decoder.sizes)
        return np.stack(
            [
                np.bincount(groups[own][groups[own] >= 0], minlength=count)[:count] / own.size
                for own in atoms
            ],
            axis=1,
        )

    def features(self, plans: PlanBatch) -> Tensor:
        """Node features: float32 (n, layers, `num_features`)."""
        bits = plans.bits.astype(float)
        removed = 1.0 - plans.counts / self.decoder.sizes
        noise = 2.0 ** (self.decoder.base.bits - bits) - 1.0
        cost = plans.weights * self._positions * bits.prod(axis=2) * self._scale
        decided = np.concatenate(
            [
                (np.minimum(bits, 8.0) - 5.0) / 3.0,
                noise,
                np.stack([removed @ self._outputs, removed @ self._inputs, np.sqrt(cost)], axis=2),
            ],
            axis=2,
        )
        static = np.broadcast_to(self.static, (len(plans), *self.static.shape))
        return torch.from_numpy(np.concatenate([static, decided], axis=2).astype(np.float32))

    def batch(self, features: Tensor) -> Any:
        """One batched DGL graph for node features (n, layers, `num_features`)."""
        count = len(features)
        if count not in self._graphs:
            if len(self._graphs) >= _KEPT_GRAPHS:
                self._graphs.clear()
            repeated = {
                name: values.expand(count, *values.shape)
                for name, values in self._observation.items()
            }
            self._graphs[count] = batch_graphs(repeated)
        graph = self._graphs[count]
        graph.nodes[NODE_TYPE].data[FEATURES] = features.flatten(0, 1)
        return graph


class PlanValue(nn.Module):
    """A graph network that values plans.

    ``value = mean over layers of head(embedding of the layer)``. Encoder and head are the same at
    every layer, so what is learned of one tells something of all that are like it.

    Args:
        graphs: makes the graphs.
        encoder: a key of `compress_agents.graph_networks.encoders.ENCODERS`.
        hidden: length of an embedding.
        rounds: of message passing.
        outputs: numbers to predict of a plan.
    """

    def __init__(
        self, graphs: PlanGraphs, encoder: str, hidden: int, rounds: int, outputs: int
    ) -> None:
        super().__init__()
        self.graphs = graphs
        self.encoder = build_encoder(
            encoder,
            graphs.num_features,
            graphs.num_globals,
            hidden_dim=hidden,
            num_layers=rounds,
        )
        self.head = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Float32 (n, outputs) for node features (n, layers, features)."""
        embeddings = self.encoder(self.graphs.batch(features))
        values: Tensor = self.head(embeddings).reshape(*features.shape[:2], -1).mean(dim=1)
        return values


class ValueEnsemble(nn.Module):
    """Networks that learn the same from differently weighted plans.

    A plan has for every member a weight drawn from the exponential distribution when it is first
    seen (the Bayesian bootstrap of Rubin, 1981). Two numbers are predicted; the second is learned
    with half the weight.

    Args:
        graphs: makes the graphs.
        members: how many networks.
        encoder: as for `PlanValue`.
        hidden: likewise.
        rounds: likewise.
        learning_rate: of Adam.
        weight_decay: of Adam, decoupled.
    """

    def __init__(
        self,
        graphs: PlanGraphs,
        members: int,
        *,
        encoder: str,
        hidden: int,
        rounds: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.graphs = graphs
        self.members = nn.ModuleList(
            PlanValue(graphs, encoder, hidden, rounds, len(_OUTPUT_WEIGHTS)) for _ in range(members)
        )
        self._optimizers = [
            torch.optim.AdamW(member.parameters(), learning_rate, weight_decay=weight_decay)
            for member in self.members
        ]
        self._weights = np.zeros((members, 0), np.float32)

    def fit(
        self,
        features: Tensor,
        targets: np.ndarray,
        generator: np.random.Generator,
        steps: int,
        batch_size: int,
    ) -> None:
        """Go on learning from all plans seen so far, least squares.

        Args:
            features: float32 (n, layers, features), in the order of earlier calls, new plans last.
            targets: float32 (n, outputs); those of known plans may have changed.
            generator: draws weights and mini-batches.
            steps: gradient steps of every member.
            batch_size: plans to a step.
        """
        fresh = len(features) - self._weights.shape[1]
        drawn = generator.exponential(1.0, (len(self.members), fresh)).astype(np.float32)
        self._weights = np.concatenate([self._weights, drawn], axis=1)
        size = min(batch_size, len(features))
        wanted, weights = torch.from_numpy(targets), torch.from_numpy(self._weights)
        of_outputs = torch.tensor(_OUTPUT_WEIGHTS)
        for member, optimizer, own in zip(self.members, self._optimizers, weights, strict=True):
            for _ in range(steps):
                chosen = torch.from_numpy(generator.choice(len(features), size, replace=False))
                errors = torch.square(member(features[chosen]) - wanted[chosen])
                loss = (own[chosen, None] * errors * of_outputs).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def values(self, plans: PlanBatch, weights: Sequence[float] = (1.0, 0.0)) -> np.ndarray:
        """What every member expects of plans: float32 (members, n).

        Args:
            plans: of the network.
            weights: of the predicted numbers in the sum.
        """
        if not len(plans):
            return np.zeros((len(self.members), 0), np.float32)
        features, of_outputs = self.graphs.features(plans), torch.tensor(weights)
        return np.stack([(member(features) @ of_outputs).numpy() for member in self.members])
