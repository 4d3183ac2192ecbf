"""A reward and an observation of one's own, handed to the environment.

The reward pays for the class that the network knows worst, which accuracy hides. The observation
shows every layer with the error that rounding its weights to the current bits makes. Prints what
the agent now sees and what it is paid, beside what the accuracy would have been.

    python examples/7_own_reward_and_observation.py
    python examples/7_own_reward_and_observation.py --plans 100
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from compress_env.evaluation import Evaluation
from compress_env.observations import (
    EdgeType,
    GraphArrays,
    GraphSchema,
    NodeType,
    ObservationContext,
    ObservedState,
)
from compress_env.quantization import quantize_weights

BITS = range(2, 9)


def worst_class(plan: Evaluation, dense: Evaluation) -> float:
    """Share of the images of a class that are recognised, for the class with the least."""
    right = (plan.predictions == plan.labels).double()
    return min(right[plan.labels == label].mean().item() for label in plan.labels.unique())


class RoundingErrors:
    """One node per layer, data flow as edges, and what quantization does to the weights."""

    schema = GraphSchema(
        nodes=(NodeType("layer", ("kept", "weight_bits", "activation_bits", "rounding_error")),),
        edges=(EdgeType("layer", "flow", "layer"),),
        globals=("reduction", "missing"),
    )
    max_size = None  # the same nodes and edges at every step

    def __init__(self, context: ObservationContext) -> None:
        """Once per environment: everything that does not depend on the plan."""
        self.graph = context.graph
        self.errors = np.zeros((len(self.graph.layers), max(BITS) + 1), np.float32)
        for index, layer in enumerate(self.graph.layers):
            weight = self.graph.module.get_parameter(f"{layer.name}.weight").detach().flatten(1)
            for bits in BITS:
                codes, scales = quantize_weights(weight, bits)
                error = (codes * scales[:, None] - weight).norm() / weight.norm()
                self.errors[index, bits] = error.item()

    def observe(self, state: ObservedState) -> GraphArrays:
        """At every step: the plan in numbers, float32 and about [-1, 1]."""
        plan, layers = state.plan, np.arange(len(self.graph.layers))
        kept = np.array([mask.mean() for mask in plan.kept])
        made = self.graph.group_membership.T  # (layers, groups): which a layer makes
        of_layer = (made * kept).sum(1) / made.sum(1).clip(1) + (made.sum(1) == 0)
        weight_bits = np.minimum(plan.weight_bits, max(BITS))
        error = np.where(plan.weight_bits > max(BITS), 0, self.errors[layers, weight_bits])
        columns = [of_layer, plan.weight_bits / 32, plan.activation_bits / 32, error]
        return GraphArrays(
            node_features=np.stack(columns, axis=1).astype(np.float32),
            edges=self.graph.flow_edges,
            edge_types=np.zeros(self.graph.flow_edges.shape[1], np.int64),
            globals=np.array(
                [state.reduction, max(0.0, state.target_reduction - state.reduction)], np.float32
            ),
        )


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--plans", type=int, default=12, help="plans to try")
parser.add_argument("--target-reduction", type=float, default=0.984)
args = parser.parse_args()

env = gym.make(
    "JointPruneQuant-ResNet20-v0",
    target_reduction=args.target_reduction,
    reward=worst_class,
    observation=RoundingErrors,
)
check_env(env.unwrapped, skip_render_check=True)  # Gymnasium has nothing to say

env.reset(seed=0)
graph, _, _, _, _ = env.step(np.zeros(env.action_space.shape, np.float32))
print("what an agent sees of the first layers, with uniform bits:")
print("  ".join(f"{name:>15}" for name in RoundingErrors.schema.nodes[0].columns))
for row in graph.nodes["layer"].data["features"][:5].tolist():
    print("  ".join(f"{value:15.3f}" for value in row))

print("\nplan     reward (worst class)  accuracy")
random, best = np.random.default_rng(0), {"reward": (-1.0, 0), "accuracy": (-1.0, 0)}
for index in range(args.plans):
    env.reset()
    action = random.normal(0, 0.1 if index else 0.0, env.action_space.shape)
    _, reward, _, _, info = env.step(action.astype(np.float32))
    print(f"{index:4d}  {reward:23.2%}  {info['accuracy']:8.2%}")
    best["reward"] = max(best["reward"], (reward, index))
    best["accuracy"] = max(best["accuracy"], (info["accuracy"], index))
print(f"\nbest by the reward: plan {best['reward'][1]}; by accuracy: plan {best['accuracy'][1]}")
