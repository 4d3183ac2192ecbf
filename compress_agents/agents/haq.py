"""HAQ: bits of weights and activations, one decision after the other (Wang et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from compress_agents.agents.layer_ddpg import LayerDDPG, Walk
from compress_agents.measuring import unwrap
from compress_env.actions import ActionDecoder, Choice
from compress_env.env import JointPruneQuantEnv
from compress_env.wrappers import PaddedGraph

__all__ = ["HAQ", "lower_in_turn"]


@dataclass(kw_only=True)
class HAQ(LayerDDPG):
    """HAQ: every layer's weight bits, then its activation bits; nothing is pruned.

    *HAQ: Hardware-aware automated quantization with mixed precision*. A state is the layer's node
    features, whether weights or activations are decided, and the action before. What costs too
    much is lowered in turn, one bit at a time, until the target is met. An action is a step away
    from uniform bits, as everywhere in the environment, where the paper's is a bit-width.
    """

    environment: ClassVar[Mapping[str, Any]] = {"step_mode": "network", "observation": "layer"}

    def check(self, env: JointPruneQuantEnv) -> None:
        """See that bits alone can meet the target.

        Raises:
            ValueError: they cannot.
        """
        lower_in_turn(env.decoder, env.decoder.bits_of(-np.ones((len(env.decoder.fixed), 2))))

    def play(self, env: Any, walk: Walk) -> float:
        """See `LayerDDPG`."""
        decoder = unwrap(env).decoder
        observation, _ = PaddedGraph(env).reset()
        nodes = observation["node_features"].reshape(len(observation["node_mask"]), -1)
        actions = np.zeros((len(decoder.fixed), 2))
        before = np.zeros(1, np.float32)
        for layer in np.flatnonzero(~decoder.fixed):
            for kind in (0, 1):
                state = np.concatenate([nodes[layer], [kind], before]).astype(np.float32)
                before = walk.decide(state, 1)
                actions[layer, kind] = before[0]
        choice = lower_in_turn(decoder, decoder.bits_of(actions))
        return float(env.measure(decoder.plan(choice)).reward)


def lower_in_turn(decoder: ActionDecoder, bits: npt.NDArray[np.int64]) -> Choice:
    """Lower bits until the target is met, nothing being pruned: HAQ's way.

    Args:
        decoder: of the environment.
        bits: int64 (layers, 2).

    Raises:
        ValueError: the lowest bits do not meet the target.
    """
    choice = Choice(decoder.sizes.copy(), bits.copy())
    lowest = decoder.allowed[0]
    while not decoder.target_met(choice):
        places = np.argwhere((choice.bits > lowest) & ~decoder.fixed[:, None] & decoder.paid)
        if not len(places):
            raise ValueError(
                f"target_reduction {decoder.target_reduction} in {decoder.metric} cannot be met by "
                "bits alone, which is all that agent haq chooses"
            )
        for layer, kind in places:
            at = int(np.searchsorted(decoder.allowed, choice.bits[layer, kind]))
            choice.bits[layer, kind] = decoder.allowed[at - 1]
            if decoder.target_met(choice):
                break
    return choice
