"""PPO in one file, in the manner of CleanRL, with a graph network in plain PyTorch.

Shows that neither DGL nor an RL library is needed: `PaddedGraph` turns every observation into
arrays of fixed size, and a graph network on those is a few matrix products. Copy the file and
change what you like. It prints a line per update; the reward should climb.

    python examples/3_ppo_in_one_file.py
    python examples/3_ppo_in_one_file.py --steps 4000 --target-reduction 0.984 --num-envs 4
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Normal

from compress_env import CompressionPlan  # importing it registers the ids
from compress_env.wrappers import PaddedGraph


class GraphAgent(nn.Module):
    """Actor and critic on the padded graph, with heads that all layers share.

    Nothing in it knows how many layers there are, so it acts on a network of any depth.
    """

    def __init__(self, num_features: int, num_globals: int, width: int = 64, rounds: int = 3):
        super().__init__()
        self.enter = nn.Linear(num_features + num_globals, width)
        # Four kinds of messages: to oneself, along the data flow, against it, along couplings.
        self.rounds = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(rounds))
        self.channels_head = nn.Linear(width, 1)
        self.bits_head = nn.Linear(width, 2)
        self.value_head = nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.tensor([-2.0, -2.0]))  # of channels, of bits
        for head in (self.channels_head, self.bits_head):
            nn.init.normal_(head.weight, std=0.01)  # starts at zero: uniform bits, nothing pruned
            nn.init.zeros_(head.bias)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Normal, Tensor]:
        """Distribution of actions (B, groups + 2 * layers) and values (B,)."""
        layers = self.embed(observation)
        batch, nodes, _ = layers.shape
        membership = observation["group_layers"].reshape(batch, -1, nodes)
        groups = mean_weights(membership) @ layers
        channels, bits = self.channels_head(groups).flatten(1), self.bits_head(layers).flatten(1)
        std = self.log_std.exp().repeat_interleave(torch.tensor([channels.shape[1], bits.shape[1]]))
        return Normal(torch.cat([channels, bits], 1), std), self.value_head(layers).mean((1, 2))

    def embed(self, observation: dict[str, Tensor]) -> Tensor:
        """Embeddings of the layers (B, N, width) after some rounds of messages."""
        batch, nodes = observation["node_mask"].shape
        features = observation["node_features"].reshape(batch, nodes, -1)
        every_node = observation["globals"][:, None].expand(-1, nodes, -1)
        hidden = torch.relu(self.enter(torch.cat([features, every_node], 2)))
        flow, coupling = adjacency(observation).unbind(1)
        kinds = [mean_weights(kind) for kind in (flow, flow.transpose(1, 2), coupling)]
        for layer in self.rounds:
            messages = [hidden, *(kind @ hidden for kind in kinds)]
            hidden = hidden + torch.relu(layer(torch.cat(messages, 2)))
        return hidden


def adjacency(observation: dict[str, Tensor]) -> Tensor:
    """(B, 2, N, N): 1 where an edge of a type (data flow, coupling) goes from column to row."""
    batch, nodes = observation["node_mask"].shape
    source, target = observation["edges"].reshape(batch, -1, 2).long().unbind(2)
    matrix = torch.zeros(batch, 2, nodes, nodes)
    rows = torch.arange(batch)[:, None]
    exists = observation["edge_mask"].float()  # 0 for padding
    matrix[rows, observation["edge_types"].long(), target, source] = exists
    return matrix


def mean_weights(matrix: Tensor) -> Tensor:
    """Rows divided by their sums, so that a product with them takes means."""
    return matrix / matrix.sum(2, keepdim=True).clamp(min=1)


def tensors(observation: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The arrays of a batch of observations as tensors."""
    return {name: torch.as_tensor(values) for name, values in observation.items()}


@torch.no_grad()
def collect(
    envs: gym.vector.VectorEnv, agent: GraphAgent, observation: dict[str, Tensor], length: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[float, CompressionPlan]]]:
    """Take `length` steps in every environment, from `observation` on.

    Returns:
        the steps as tensors (length, environments, ...), where the last value is what follows; the
        next observation; reward and plan of the episodes that ended.
    """
    steps, episodes = [], []
    for _ in range(length):
        distribution, value = agent(observation)
        action = distribution.sample()
        following, reward, terminated, truncated, info = envs.step(action.clamp(-1, 1).numpy())
        done = terminated | truncated
        step = {
            "action": action,
            "log_prob": distribution.log_prob(action).sum(1),
            "value": value,
            "reward": torch.as_tensor(reward).float(),
            "done": torch.as_tensor(done).float(),
        }
        steps.append(step | observation)
        observation = tensors(following)
        for index in np.flatnonzero(done):
            episodes.append((reward[index], info["final_info"]["plan"][index]))
    rollout = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    rollout["value"] = torch.cat([rollout["value"], agent(observation)[1][None]])
    return rollout, observation, episodes


def advantages_of(rollout: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al., 2016): (length, environments)."""
    values, going_on = rollout["value"], 1 - rollout["done"]
    errors = rollout["reward"] + gamma * values[1:] * going_on - values[:-1]
    advantages = torch.zeros_like(values)
    for step in reversed(range(len(errors))):
        following = gamma * gae_lambda * going_on[step] * advantages[step + 1]
        advantages[step] = errors[step] + following
    return advantages[:-1]


def learn(
    agent: GraphAgent, optimizer: torch.optim.Optimizer, rollout: dict[str, Tensor], args: Namespace
) -> None:
    """PPO's update (Schulman et al., 2017), several passes over the steps in minibatches."""
    advantages = advantages_of(rollout, args.gamma, args.gae_lambda)
    rollout = rollout | {"value": rollout["value"][:-1], "advantage": advantages}
    steps = {name: values.flatten(0, 1) for name, values in rollout.items()}
    returns = steps["advantage"] + steps["value"]
    for _ in range(args.epochs):
        for chosen in torch.randperm(len(returns)).chunk(args.minibatches):
            batch = {name: values[chosen] for name, values in steps.items()}
            distribution, value = agent(batch)
            ratio = (distribution.log_prob(batch["action"]).sum(1) - batch["log_prob"]).exp()
            gain = batch["advantage"] - batch["advantage"].mean()
            gain = gain / (gain.std(correction=0) + 1e-8)
            clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
            policy_loss = -torch.min(ratio * gain, clipped * gain).mean()
            value_loss = (value - returns[chosen]).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main() -> None:
    """Train, printing a line per update."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=320, help="steps in all; each is an episode")
    parser.add_argument("--steps-per-update", type=int, default=32)
    parser.add_argument("--num-envs", type=int, default=2, help="environments, each in a process")
    parser.add_argument("--target-reduction", type=float, default=0.991)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the steps of an update")
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--clip", type=float, default=0.3)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    envs = gym.make_vec(
        "JointPruneQuant-ResNet20-v0",
        num_envs=args.num_envs,
        vectorization_mode="async",
        # Episodes have one step: by default every second one would do nothing but reset.
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[PaddedGraph],
        target_reduction=args.target_reduction,
    )
    observation = tensors(envs.reset(seed=args.seed)[0])
    num_features = observation["node_features"].shape[1] // observation["node_mask"].shape[1]
    agent = GraphAgent(num_features, observation["globals"].shape[1])
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    print("update  steps  mean reward  best reward  std of bits  seconds")
    length = max(1, min(args.steps_per_update, args.steps) // args.num_envs)
    means, best_reward, best_plan, started = [], -np.inf, None, time.perf_counter()
    for update in range(1, max(1, args.steps // (length * args.num_envs)) + 1):
        rollout, observation, episodes = collect(envs, agent, observation, length)
        learn(agent, optimizer, rollout, args)
        for reward, plan in episodes:
            if reward > best_reward:
                best_reward, best_plan = reward, plan
        means.append(np.mean([reward for reward, _ in episodes]))
        print(
            f"{update:6d}  {update * length * args.num_envs:5d}  {means[-1]:11.4f}  "
            f"{best_reward:11.4f}  {agent.log_std[1].exp().item():11.3f}  "
            f"{time.perf_counter() - started:7.1f}",
            flush=True,
        )
    envs.close()
    print(f"\nmean reward of the first update {means[0]:.4f}, of the last {means[-1]:.4f}")
    print(f"best plan: reward {best_reward:.4f}, weight bits {best_plan.weight_bits.tolist()}")


if __name__ == "__main__":
    main()
