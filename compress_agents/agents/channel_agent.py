"""The GCN channel pruning paper's agents: graph convolutions over channels choose which stay.

Jiang, Cao and Yang, "On the Channel Pruning using Graph Convolution Network for Convolutional
Neural Network Acceleration", IJCAI 2022: a set of GCN agents, one per layer, each of which sees the
graph of its layer's channels and decides for every channel whether it stays; they are trained
together by a policy gradient. The layers of a residual stream decide as one.

The paper's text was not at hand beyond its abstract and a summary. This project's choices are the
form of the network beyond its graph convolutions, REINFORCE with a mean of episodes for baseline,
the start at the base plan, and the numbers for bits, which the paper does not choose.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from compress_agents.graph_networks.channel_gcn import NODE, ChannelGCN
from compress_agents.measuring import unwrap
from compress_env.actions import ActionDecoder
from compress_env.dgl_import import dgl
from compress_env.graphs import FEATURES
from compress_env.layer_actions import LayerActionDecoder
from compress_env.observations.channel import NODE_COLUMNS

__all__ = ["ChannelAgent", "Decisions"]

_CHOOSABLE = NODE_COLUMNS.index("is_choosable")
_SURE = 4.0
"""Highest log-odds to start from: a channel that the base plan keeps is tried without it, too."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What was seen and done at one step.

    Attributes:
        layer: the layer that was decided.
        graph: the observation.
        keep: float32 (n,), 1 for a channel that is to stay; n is what the layer decides on.
        bits: float32 (2,), the numbers for bits, or (0,) where the layer has none to choose.
    """

    layer: int
    graph: Any
    keep: Tensor
    bits: Tensor


@dataclass(kw_only=True)
class ChannelAgent:
    """GCN agents that choose channels, trained by REINFORCE with a baseline.

    Every step of an episode decides one layer: for each of its channels an independent draw whether
    it stays, and numbers for its bits around what the agent says. After some episodes the
    log-probability of all draws of each moves with its reward above their mean, in units of their
    standard deviation (REINFORCE with a baseline; Williams, 1992). The last evaluation is without
    draws.

    Args:
        shared: one network for all layers in place of the paper's one network per layer.
        prior: log-odds for the base plan's decision on a channel before anything is learned, at
            least 0; with 0 each channel stays as likely as the base plan's share, which is how an
            untrained network would start.
        hidden_dim: length of an embedding.
        num_layers: rounds of graph convolution.
        episodes: episodes between updates, at least 2.
        learning_rate: of Adam; with 0 nothing is learned, which is what the agent has to beat.
        entropy: weight of the draws' mean entropy, at least 0; it keeps them from settling early.
        bits_std: standard deviation of the numbers for bits, above 0.

    Raises:
        ValueError: a setting is not allowed.
    """

    shared: bool = False
    prior: float = 2.0
    hidden_dim: int = 128
    num_layers: int = 2
    episodes: int = 10
    learning_rate: float = 0.01
    entropy: float = 0.0
    bits_std: float = 0.1
    environment: ClassVar[Mapping[str, Any]] = {
        "observation": "channel",
        "step_mode": "layer",
        "channel_action": "choice",
    }
    networks: nn.ModuleList | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"episodes must be at least 2, not {self.episodes}")
        if not isinstance(self.shared, bool):
            raise ValueError(f"shared must be True or False, not {self.shared!r}")
        if not self.learning_rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, not {self.learning_rate}")
        if not self.prior >= 0 or not self.entropy >= 0:
            raise ValueError("prior and entropy must be at least 0")
        if not self.bits_std > 0:
            raise ValueError(f"bits_std must be above 0, not {self.bits_std}")
        ChannelGCN(self.hidden_dim, self.num_layers)

    # -- the search ------------------------------------------------------------------------------

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """See `compress_agents.agents.Agent`."""
        self.prepare(unwrap(env).decoder, seed)
        assert self.networks is not None
        optimizer = torch.optim.Adam(self.networks.parameters(), lr=self.learning_rate)
        gathered: list[tuple[list[Decisions], float]] = []
        for _ in range(evaluations - 1):
            gathered.append(self.play(env))
            if len(gathered) == self.episodes:
                if self.learning_rate > 0:
                    self.update(optimizer, gathered)
                gathered = []
        self.play(env, draw=False)

    def prepare(self, decoder: ActionDecoder, seed: int) -> None:
        """Make networks for what a decoder decodes, untrained.

        Args:
            decoder: that of the environment.
            seed: of the networks' parameters and of all draws.
        """
        torch.manual_seed(seed)
        # Draws of their own: an evaluation may draw too, and a resumed run leaves those out.
        self._draws = torch.Generator().manual_seed(seed)
        layers = len(decoder.fixed)
        self.networks = nn.ModuleList(
            ChannelGCN(self.hidden_dim, self.num_layers)
            for _ in range(1 if self.shared else layers)
        )
        by_layer = LayerActionDecoder(decoder)
        self._start = [self._starting_odds(by_layer, layer) for layer in range(layers)]
        self._bits = [decoder.allowed.size > 1 and not fixed for fixed in decoder.fixed]

    def _starting_odds(self, by_layer: LayerActionDecoder, layer: int) -> Tensor:
        """Log-odds of a layer's channels before anything is learned: float32 (n,)."""
        decoder, odds = by_layer.decoder, [np.empty(0)]
        for group in by_layer.own_groups(layer):
            count, atoms = decoder.base.counts[group], decoder.graph.group_atoms[group]
            if self.prior:
                odds.append(np.where(decoder.ranks[atoms] < count, self.prior, -self.prior))
            else:
                share = count / atoms.size
                odds.append(np.full(atoms.size, np.log(share) - np.log(max(1 - share, 1e-9))))
        return torch.tensor(np.concatenate(odds).clip(-_SURE, _SURE), dtype=torch.float32)

    def play(self, env: Any, draw: bool = True) -> tuple[list[Decisions], float]:
        """Play one episode.

        Args:
            env: observes channels, takes an action per layer that names them.
            draw: whether to draw, or to do what is most likely.

        Returns:
            What was decided, and the sum of rewards.
        """
        observation, _ = env.reset()
        size = env.action_space.shape[0]
        steps: list[Decisions] = []
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                odds, means = self._odds(len(steps), observation)
            numbers = np.zeros(size, np.float32)
            if draw:
                keep = torch.bernoulli(torch.sigmoid(odds), generator=self._draws)
                bits = torch.normal(means, self.bits_std, generator=self._draws)
                numbers[: len(keep)] = 2 * keep - 1
            else:
                keep, bits = (odds > 0).float(), means
                # Most likely first, where the budget takes fewer.
                numbers[: len(keep)] = torch.tanh(odds / 2)
            numbers[size - 2 : size - 2 + len(bits)] = bits
            steps.append(Decisions(len(steps), observation, keep, bits))
            observation, reward, terminated, truncated, _ = env.step(numbers)
            total += float(reward)
            done = terminated or truncated
        return steps, total

    def _odds(self, layer: int, graph: Any) -> tuple[Tensor, Tensor]:
        """Log-odds of a layer's channels (n,), and means of its numbers for bits (2,) or (0,)."""
        odds, means = self._network(layer)(graph)
        choosable = graph.nodes[NODE].data[FEATURES][:, _CHOOSABLE] > 0.5
        return self._start[layer] + odds[choosable], means[0, : 2 * self._bits[layer]]

    def _network(self, layer: int) -> nn.Module:
        assert self.networks is not None
        return self.networks[0 if self.shared else layer]

    # -- learning --------------------------------------------------------------------------------

    def update(
        self, optimizer: torch.optim.Optimizer, played: Sequence[tuple[list[Decisions], float]]
    ) -> None:
        """One step along the policy gradient of some episodes.

        Args:
            optimizer: of the networks' parameters.
            played: episodes, as `play` returns them; at least two.
        """
        rewards = torch.tensor([reward for _, reward in played])
        spread = rewards.std()
        if float(spread) < 1e-8:
            return  # nothing to tell the episodes apart by
        advantages = (rewards - rewards.mean()) / spread
        likelihood, entropy = self._likelihood([steps for steps, _ in played])
        optimizer.zero_grad()
        loss = -(advantages * likelihood).mean() - self.entropy * entropy
        loss.backward()
        nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], 1.0
        )
        optimizer.step()

    def _likelihood(self, episodes: list[list[Decisions]]) -> tuple[Tensor, Tensor]:
        """Log-probability of every episode's draws (episodes,), and the mean entropy of a draw."""
        total = torch.zeros(len(episodes))
        entropies = []
        by_layer = [list(steps) for steps in zip(*episodes, strict=True)]
        batches = [list(chain.from_iterable(by_layer))] if self.shared else by_layer
        for batch in batches:
            graph = dgl.batch([step.graph for step in batch])
            odds, means = self._network(batch[0].layer)(graph)
            choosable = graph.nodes[NODE].data[FEATURES][:, _CHOOSABLE] > 0.5
            odds = odds[choosable] + torch.cat([self._start[step.layer] for step in batch])
            keep = torch.cat([step.keep for step in batch])
            counts = torch.tensor([len(step.keep) for step in batch])
            episode = torch.arange(len(batch)) % len(episodes)
            draws = Bernoulli(logits=odds)
            of_channel = episode.repeat_interleave(counts)
            total = total.index_add(0, of_channel, draws.log_prob(keep))
            entropies.append(draws.entropy())
            chosen = torch.tensor([len(step.bits) > 0 for step in batch])
            if chosen.any():
                bits = torch.stack([step.bits for step in batch if len(step.bits)])
                of_bits = Normal(means[chosen], self.bits_std).log_prob(bits).sum(1)
                total = total.index_add(0, episode[chosen], of_bits)
        return total, torch.cat(entropies).mean()

    def save(self, path: pathlib.Path) -> None:
        """Write the networks' weights, a torch state dict."""
        assert self.networks is not None
        torch.save(self.networks.state_dict(), path)
