"""The Gymnasium ids: one for every network, and a general one."""

from __future__ import annotations

import gymnasium

from compress_env.networks import NETWORKS

GENERAL_ID = "JointPruneQuant-v0"
ENTRY_POINT = "compress_env.env:JointPruneQuantEnv"


def environment_id(network: str) -> str:
    """The id of a network of `NETWORKS`, such as JointPruneQuant-ResNet20-v0."""
    return f"JointPruneQuant-{NETWORKS[network].title}-v0"


def register_environments() -> None:
    """Register all ids with Gymnasium; a second call changes nothing."""
    if GENERAL_ID in gymnasium.registry:
        return
    gymnasium.register(GENERAL_ID, entry_point=ENTRY_POINT)
    for name, spec in NETWORKS.items():
        gymnasium.register(
            environment_id(name),
            entry_point=ENTRY_POINT,
            kwargs={"network": name, "dataset": spec.default_dataset},
        )
