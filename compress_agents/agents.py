"""The agents that ``compress-agents train`` trains: PPO with a graph network."""

from __future__ import annotations

import math
import warnings
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from compress_agents.config import TrainingConfig
from compress_agents.extractors import DGLFeaturesExtractor
from compress_agents.node_actor import NodeActorCriticPolicy
from compress_env.observations.layer import NODE_COLUMNS

__all__ = ["build_agent"]

_LARGEST_BATCH = 256
_HIDDEN = 64
_NODE_VALUES = 4
# With some 50 numbers to an action, the usual 0.2 stops an update while it still helps.
_CLIP_RANGE = 0.4


def build_agent(config: TrainingConfig, env: VecEnv) -> PPO:
    """PPO as the options say, untrained.

    Args:
        config: the options.
        env: observes padded graphs.
    """
    log_std = math.log(config.action_std)
    if config.agent == "node":
        policy: Any = NodeActorCriticPolicy
        layer_by_layer = config.step_mode == "layer"
        keywords: dict[str, Any] = {
            "log_std_init": log_std,
            "decision_column": NODE_COLUMNS.index("is_next") if layer_by_layer else None,
        }
    else:
        policy = "MultiInputPolicy"
        keywords = {
            "log_std_init": log_std,
            "features_extractor_class": DGLFeaturesExtractor,
            "features_extractor_kwargs": {"node_values": _NODE_VALUES},
            "net_arch": {"pi": [_HIDDEN], "vf": [_HIDDEN]},
        }
    gathered = config.update_interval * config.num_envs
    batches = math.ceil(gathered / _LARGEST_BATCH)
    with warnings.catch_warnings():
        # That the last batch of an update may be smaller than the others.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        return PPO(
            policy,
            env,
            n_steps=config.update_interval,
            batch_size=math.ceil(gathered / batches),
            n_epochs=config.update_epochs,
            learning_rate=config.learning_rate,
            clip_range=_CLIP_RANGE,
            # All that counts is the reward at the end of an episode.
            gamma=1.0,
            seed=config.seed,
            policy_kwargs=keywords,
            # DGL's wheel knows the CPU only, and the agent is small.
            device="cpu",
        )
