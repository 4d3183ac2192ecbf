"""What an agent is shown of a plan: every observation as plain arrays.

`OBSERVATIONS` holds those that come with the package, by the names that the environment's argument
`observation` knows. One of your own is a class that follows `Observation`; hand it over instead of
a name:

```python
import gymnasium as gym
import numpy as np

import compress_env
from compress_env.observations import (
    EdgeType, GraphArrays, GraphSchema, NodeType, ObservationContext, ObservedState,
)

class BitsOnly:
    schema = GraphSchema(
        nodes=(NodeType("layer", ("weight_bits", "activation_bits")),),
        edges=(EdgeType("layer", "flow", "layer"),),
        globals=("reduction",),
    )
    max_size = None  # the same nodes and edges at every step

    def __init__(self, context: ObservationContext) -> None:
        self.edges = context.graph.flow_edges

    def observe(self, state: ObservedState) -> GraphArrays:
        bits = np.stack([state.plan.weight_bits, state.plan.activation_bits], axis=1)
        return GraphArrays(
            node_features=(bits / 32).astype(np.float32),
            edges=self.edges,
            edge_types=np.zeros(self.edges.shape[1], np.int64),
            globals=np.array([state.reduction], np.float32),
        )

env = gym.make("JointPruneQuant-ResNet20-v0", observation=BitsOnly)
```

The environment returns it as a `dgl.DGLGraph` with these node and edge types and the features in
`data["features"]`; `compress_env.wrappers.PaddedGraph` and `GraphInstanceObservation` take it as it
is. Where nodes or edges come and go along an episode, `max_size` is `(most nodes, most edges)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from compress_env.observations.arrays import GraphArrays
from compress_env.observations.channel import ChannelObservation
from compress_env.observations.hierarchical import HierarchicalObservation
from compress_env.observations.interface import (
    Observation,
    ObservationContext,
    ObservationFactory,
    ObservedState,
)
from compress_env.observations.layer import LayerObservation
from compress_env.observations.schema import EdgeType, GraphSchema, NodeType

__all__ = [
    "OBSERVATIONS",
    "EdgeType",
    "GraphArrays",
    "GraphSchema",
    "NodeType",
    "Observation",
    "ObservationContext",
    "ObservationFactory",
    "ObservedState",
]

OBSERVATIONS: Mapping[str, ObservationFactory] = {
    "layer": LayerObservation,
    "hierarchical": HierarchicalObservation,
    "channel": ChannelObservation,
}
"""The observations that come with the package, by name."""
