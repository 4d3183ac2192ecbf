"""TorchRL: the environment as a `GymEnv`, its specs checked, and PPO from TorchRL's parts.

Shows how to register an id of one's own with the padded observation, since TorchRL, like most
stacks, takes arrays and not DGL graphs. Prints a rollout, then a line per update.

    pip install torchrl
    python examples/4_torchrl.py
    python examples/4_torchrl.py --steps 2000
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import (
    CatTensors,
    Compose,
    GymEnv,
    InitTracker,
    TransformedEnv,
    check_env_specs,
)
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from compress_env.wrappers import PaddedGraph

STEPS_PER_UPDATE = 32

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=256, help="steps in all; each is an episode")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

gym.register(
    "PaddedResNet20-v0",
    entry_point="compress_env.env:JointPruneQuantEnv",
    kwargs={"network": "resnet20", "target_reduction": 0.991},
    additional_wrappers=(PaddedGraph.wrapper_spec(),),
)
env = TransformedEnv(
    GymEnv("PaddedResNet20-v0"),
    Compose(InitTracker(), CatTensors(["node_features", "globals"], "features", del_keys=False)),
)
check_env_specs(env)
env.set_seed(args.seed)
rollout = env.rollout(3, break_when_any_done=False)
print("a rollout of random actions:")
for key in ("features", "edges", "edge_mask", "action", ("next", "reward"), ("next", "done")):
    print(f"  {key!s:<18} {tuple(rollout[key].shape)!s:<9} {rollout[key].dtype}")

# A perceptron will do here; 3_ppo_in_one_file.py has a graph network that can take its place.
num_features, num_actions = rollout["features"].shape[1], rollout["action"].shape[1]
mean = MLP(num_features, num_actions, num_cells=[64, 64], activation_class=nn.Tanh)
deviation = AddStateIndependentNormalScale(num_actions)
with torch.no_grad():
    mean[-1].weight.mul_(0.01)  # starts at zero: uniform bits, nothing pruned
    mean[-1].bias.zero_()
    deviation.state_independent_scale.fill_(-2.0)  # the logarithm
actor = ProbabilisticActor(
    TensorDictModule(nn.Sequential(mean, deviation), ["features"], ["loc", "scale"]),
    in_keys=["loc", "scale"],
    distribution_class=IndependentNormal,
    return_log_prob=True,
)
critic = ValueOperator(MLP(num_features, 1, num_cells=[64, 64]), in_keys=["features"])

estimate = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
loss = ClipPPOLoss(actor, critic, clip_epsilon=0.3, entropy_coeff=0.0, normalize_advantage=True)
optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
collector = Collector(env, actor, frames_per_batch=STEPS_PER_UPDATE, total_frames=args.steps)

print("\n steps  mean reward  best of them")
for update, steps in enumerate(collector, 1):
    for _ in range(10):
        with torch.no_grad():
            estimate(steps)
        losses = loss(steps.reshape(-1))
        optimizer.zero_grad()
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
    reward, done = steps["next", "reward"], update * STEPS_PER_UPDATE
    print(f"{done:6d}  {reward.mean():11.4f}  {reward.max():12.4f}", flush=True)
collector.shutdown()
