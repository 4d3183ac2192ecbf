"""Make the environment, look at it, and take random actions.

Shows what an observation, an action and the information after a step are, and how good a plan is
that nobody thought about: action zero is uniform bits, and most random plans are worse.

    python examples/1_random_actions.py
    python examples/1_random_actions.py --steps 100 --target-reduction 0.984
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np

import compress_env  # noqa: F401  registers the ids

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=10, help="random plans to try")
parser.add_argument("--target-reduction", type=float, default=0.991, help="share of BOPs to save")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

# A ResNet-20 trained on scikit-learn's digits; both come with the package.
env = gym.make(
    "JointPruneQuant-ResNet20-v0", target_reduction=args.target_reduction, render_mode="ansi"
)
graph, info = env.reset(seed=args.seed)
env.action_space.seed(args.seed)
print(f"observation: {graph.num_nodes('layer')} layers, {graph.num_edges('flow')} data flow edges,")
print(f"             {graph.num_edges('coupling')} coupling edges, a dgl.DGLGraph")
print(f"             features of a layer: {', '.join(env.unwrapped.node_columns)}")
print(f"action:      {env.action_space}\n")

print("action        reward  reduction  mean bits  channels kept")
best_reward, best_picture = -1.0, ""
for step in range(args.steps + 1):
    env.reset()
    # Zero is uniform bits and all channels. The others are drawn half as far as the space goes.
    action = np.zeros(env.action_space.shape, np.float32)
    if step > 0:
        action = 0.5 * env.action_space.sample()
    _, reward, terminated, truncated, info = env.step(action)
    assert terminated or truncated  # one step is an episode unless project_to_budget=False

    plan = info["plan"]
    bits = (plan.weight_bits.mean() + plan.activation_bits.mean()) / 2
    kept = np.concatenate(plan.kept).mean()
    name = f"random {step}" if step else "zero"
    print(f"{name:<12}  {reward:.4f}  {info['reduction']:.3%}    {bits:.2f}       {kept:.1%}")
    if reward > best_reward:
        best_reward, best_picture = reward, env.render()

print(f"\nThe best of them, reward {best_reward:.4f}:\n{best_picture}")
env.close()
