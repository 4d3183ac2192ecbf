"""Stable-Baselines3's PPO with a DGL graph network.

Prints how the plans it proposes get better, a line per update.

    python examples/2_sb3_ppo.py
    python examples/2_sb3_ppo.py --steps 2000
"""

from __future__ import annotations

import argparse

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import compress_env  # noqa: F401  registers the ids
from compress_agents.graph_networks.extractors import DGLFeaturesExtractor
from compress_env.wrappers import PaddedGraph

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=320, help="steps; each is an episode")
args = parser.parse_args()

env = make_vec_env(
    "JointPruneQuant-ResNet20-v0",
    env_kwargs={"target_reduction": 0.991},
    wrapper_class=PaddedGraph,  # the DGL graph as arrays of fixed size, which SB3 can store
    seed=0,
)
agent = PPO(
    "MultiInputPolicy",
    env,
    n_steps=32,
    batch_size=32,
    gamma=1.0,
    clip_range=0.4,
    policy_kwargs={
        "features_extractor_class": DGLFeaturesExtractor,
        "features_extractor_kwargs": {"encoder": "typed", "node_values": 4},
        "log_std_init": -2.0,  # near uniform bits, where action zero is
    },
    device="cpu",  # where DGL is
)
for steps in range(32, args.steps + 1, 32):
    agent.learn(32, reset_num_timesteps=False)
    rewards = env.env_method("get_episode_rewards")[0]
    print(f"{steps} steps: mean reward {np.mean(rewards[-32:]):.4f}, best {max(rewards):.4f}")

action, _ = agent.predict(env.reset(), deterministic=True)
_, reward, _, info = env.step(action)
print(f"without noise: accuracy {reward[0]:.4f} at a reduction of {info[0]['reduction']:.3%}")
