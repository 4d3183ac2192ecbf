"""RLlib on a local Ray: several rollout workers, and the DGL graph network in an `RLModule`.

The same script goes beyond one machine: start Ray on each (`ray start`), and pass the address of
the first. Ray 2.60 asks for exactly gymnasium 1.2.2, so give it a virtual environment of its own.

    pip install -e ".[agents]" "ray[rllib]"
    python examples/5_rllib.py
    python examples/5_rllib.py --workers 32 --steps 4096 --address auto
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import Tensor, nn

from compress_agents.graph_networks.extractors import DGLFeaturesExtractor
from compress_env.wrappers import PaddedGraph


class GraphModule(TorchRLModule, ValueFunctionAPI):
    """Actor and critic on the features that a graph network reads out."""

    def setup(self) -> None:
        """Called by RLlib when the spaces are known."""
        self.extractor = DGLFeaturesExtractor(self.observation_space, 128, node_values=4)
        self.mean = nn.Linear(128, self.action_space.shape[0])
        self.log_std = nn.Parameter(torch.full(self.action_space.shape, -2.0))
        self.value = nn.Linear(128, 1)
        nn.init.normal_(self.mean.weight, std=0.01)  # starts at zero: uniform bits, nothing pruned
        nn.init.zeros_(self.mean.bias)

    def _forward(self, batch: dict[str, Any], **keywords: Any) -> dict[str, Tensor]:
        features = self.extractor(batch[Columns.OBS])
        mean = self.mean(features)
        distribution = torch.cat([mean, self.log_std.expand_as(mean)], 1)
        return {Columns.ACTION_DIST_INPUTS: distribution, Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values (B,) of a batch, from its embeddings where there are any."""
        if embeddings is None:
            embeddings = self.extractor(batch[Columns.OBS])
        return self.value(embeddings).squeeze(1)


def make_environment(config: dict[str, Any]) -> gym.Env:
    """What every worker calls, in its own process."""
    return PaddedGraph(gym.make("JointPruneQuant-ResNet20-v0", **config))


def main() -> None:
    """Train, printing a line per update."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=192, help="steps in all; each is an episode")
    parser.add_argument("--workers", type=int, default=2, help="rollout workers, a core each")
    parser.add_argument("--address", help="of a running Ray; by default one is started here")
    args = parser.parse_args()

    local = {"num_cpus": args.workers + 1, "include_dashboard": False}
    ray.init(
        address=args.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if args.address else local),
    )
    register_env("padded-resnet20", make_environment)
    per_update = max(32, args.workers)
    config = (
        PPOConfig()
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .environment("padded-resnet20", env_config={"target_reduction": 0.991})
        .env_runners(num_env_runners=args.workers)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=GraphModule))
        .training(
            train_batch_size_per_learner=per_update,
            minibatch_size=per_update,
            num_epochs=10,
            lr=1e-3,
            gamma=1.0,
            clip_param=0.4,
            use_kl_loss=False,
            grad_clip=0.5,
        )
        .reporting(metrics_num_episodes_for_smoothing=per_update)
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    print("episodes  mean reward  best of them")
    episodes = 0
    while episodes < args.steps:
        found = algorithm.train()["env_runners"]
        episodes = int(found["num_episodes_lifetime"])
        print(
            f"{episodes:8d}  {found['episode_return_mean']:11.4f}  "
            f"{found['episode_return_max']:12.4f}",
            flush=True,
        )
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
