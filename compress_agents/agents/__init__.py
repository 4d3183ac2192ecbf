"""Agents by name, and what an agent is: anything that acts on a Gymnasium environment.

An agent has one method, `Agent.search`. It plays episodes, or hands in plans, until it has had
enough or the budget is spent; the environment that it is given counts and records, so that every
agent is measured in the same way. One's own needs no registration::

    compress-agents train --agent my_module:MyAgent --agent-options step=0.1

Nothing heavy is imported here, so that a list of the agents is quick.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "AGENTS",
    "Agent",
    "AgentEntry",
    "agent_settings",
    "build_agent",
    "find_agent",
    "list_agents",
]

ENTRY_POINTS = "compress_agents.agents"
"""Entry point group in which other packages can name their agents."""


@runtime_checkable
class Agent(Protocol):
    """What finds plans.

    It may also have these three, which are looked for by name:

    - `environment`, a mapping: arguments of the environment that the agent cannot do without, such
      as ``{"step_mode": "layer"}``;
    - `check(env)`: raises `ValueError` before a run begins in an environment that it cannot act in;
    - `save(path)`: writes what was learned, at the end of a run.
    """

    def search(self, env: Any, seed: int, evaluations: int) -> None:
        """Look for good plans.

        Args:
            env: `compress_agents.measuring.MeasuredEnv`: a Gymnasium environment like any other,
                and `measure(plan)` to have a plan evaluated that was not made by actions. Both
                raise `BudgetSpent` once the budget is spent; that ends the search and is not to
                be caught. The best plan is on record; nothing need be returned.
            seed: all that the search draws must follow from it, so that a run can be resumed.
                The global generators of Python, NumPy and torch have been seeded with it.
            evaluations: how many evaluations there are.
        """
        ...


@dataclass(frozen=True)
class AgentEntry:
    """A line of the list of agents.

    Attributes:
        factory: `"module.path:callable"`; called with the agent's settings, it gives an `Agent`.
        summary: what it is, one line.
        source: the paper or package that it comes from.
        settings: values for some of the factory's settings.
    """

    factory: str
    summary: str = ""
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


AGENTS: dict[str, AgentEntry] = {
    "ppo": AgentEntry(
        "compress_agents.agents.ppo:GraphPPO",
        "PPO; a graph network (encoder=typed, gcn, gat) read out to one vector",
        "joint pruning-quantization paper, 2024; Schulman et al., 2017",
    ),
    "ppo-node": AgentEntry(
        "compress_agents.agents.ppo:NodePPO",
        "PPO; mean and value from node embeddings by shared heads: any depth of network",
        "Schulman et al., 2017; actor of this project",
    ),
    "ppo-mlp": AgentEntry(
        "compress_agents.agents.ppo:GraphPPO",
        "PPO; a multilayer perceptron on the same features, without the graph",
        "Schulman et al., 2017",
        {"encoder": "flat"},
    ),
    "a2c": AgentEntry(
        "compress_agents.agents.on_policy:A2CAgent",
        "A2C with the graph network",
        "Mnih et al., 2016; Stable-Baselines3",
    ),
    "trpo": AgentEntry(
        "compress_agents.agents.on_policy:TRPOAgent",
        "TRPO with the graph network",
        "Schulman et al., 2015; sb3-contrib",
    ),
    "ppo-recurrent": AgentEntry(
        "compress_agents.agents.on_policy:RecurrentPPOAgent",
        "PPO with an LSTM after the graph network",
        "sb3-contrib",
    ),
    "sac": AgentEntry(
        "compress_agents.agents.off_policy:SACAgent",
        "soft actor-critic with the graph network",
        "Haarnoja et al., 2018; Stable-Baselines3",
    ),
    "td3": AgentEntry(
        "compress_agents.agents.off_policy:TD3Agent",
        "twin delayed DDPG with the graph network",
        "Fujimoto et al., 2018; Stable-Baselines3",
    ),
    "ddpg": AgentEntry(
        "compress_agents.agents.off_policy:DDPGAgent",
        "DDPG with the graph network",
        "Lillicrap et al., 2016; Stable-Baselines3",
    ),
    "gnn-rl": AgentEntry(
        "compress_agents.agents.gnn_rl:GNNRL",
        "PPO with m-GNN, which embeds every motif of the network once",
        "GNN-RL, Yu et al., ICML 2022",
    ),
    "gnn-rl-paper": AgentEntry(
        "compress_agents.agents.gnn_rl:GNNRL",
        "the same with the settings of the paper and its released code",
        "GNN-RL, Yu et al., ICML 2022",
        {
            "update_interval": 100,
            "learning_rate": 3e-4,
            "action_std": 0.5,
            "clip_range": 0.2,
            "discount": 0.99,
            "entropy": 0.01,
        },
    ),
    "gnn-rl-ddpg": AgentEntry(
        "compress_agents.agents.gnn_rl:GNNRLWithDDPG",
        "DDPG with m-GNN, which the paper compares PPO with",
        "GNN-RL, Yu et al., ICML 2022",
    ),
    "channel-gcn": AgentEntry(
        "compress_agents.agents.channel_agent:ChannelAgent",
        "REINFORCE; graph convolutions over the channels of a layer choose which stay",
        "GCN channel pruning, Jiang et al., IJCAI 2022",
    ),
    "channel-random": AgentEntry(
        "compress_agents.agents.channel_agent:ChannelAgent",
        "channels drawn at random around the base plan, nothing learned",
        settings={"learning_rate": 0.0},
    ),
    "graph-q": AgentEntry(
        "compress_agents.agents.graph_q:GraphQ",
        "Q-learning of whole plans; an ensemble of graph networks chooses what is next",
        "Sutton and Barto, 2018; Osband et al., 2016; QT-Opt, Kalashnikov et al., 2018",
    ),
    "uniform": AgentEntry(
        "compress_agents.agents.baselines:Uniform", "uniform bits, nothing pruned: one evaluation"
    ),
    "random": AgentEntry(
        "compress_agents.agents.baselines:RandomSearch", "actions drawn uniformly from [-1, 1]"
    ),
    "gaussian": AgentEntry(
        "compress_agents.agents.baselines:GaussianSearch",
        "actions drawn normally around uniform bits",
    ),
    "evolution": AgentEntry(
        "compress_agents.agents.evolution:Evolution",
        "CMA-ES with a diagonal covariance matrix, started at uniform bits",
        "Ros and Hansen, 2008; package cmaes",
    ),
    "greedy": AgentEntry(
        "compress_agents.agents.greedy:Greedy",
        "greedy by measured sensitivity, one layer at a time; then local improvement",
        "HAWQ, Dong et al., 2019",
    ),
    "integer-program": AgentEntry(
        "compress_agents.agents.integer_program:IntegerProgram",
        "bits by integer programming over measured sensitivities",
        "HAWQ-V3, Yao et al., 2021; HiGHS",
    ),
    "amc": AgentEntry(
        "compress_agents.agents.amc:AMC",
        "AMC: DDPG layer by layer, actions bounded by the budget",
        "He et al., 2018",
    ),
    "haq": AgentEntry(
        "compress_agents.agents.haq:HAQ",
        "HAQ: DDPG over the bits of every layer's weights and activations",
        "Wang et al., 2019",
    ),
}
"""The agents of this package by name."""


def list_agents() -> dict[str, AgentEntry]:
    """The agents of this package, and those that other packages name as entry points."""
    outside = {
        point.name: AgentEntry(point.value, f"from outside: {point.value}")
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    }
    return {**AGENTS, **{name: e for name, e in outside.items() if name not in AGENTS}}


def find_agent(name: str) -> AgentEntry:
    """The entry of an agent.

    Args:
        name: a key of `AGENTS`, an entry point of the group ``compress_agents.agents``, or
            `"module.path:factory"`.

    Raises:
        ValueError: there is no agent of this name.
    """
    if name in AGENTS:
        return AGENTS[name]
    if ":" in name:
        return AgentEntry(name)
    agents = list_agents()
    if name in agents:
        return agents[name]
    known = ", ".join(agents)
    raise ValueError(f"agent must be one of {known}, or 'module.path:factory', not '{name}'")


def load_factory(name: str) -> Callable[..., Any]:
    """The factory of an agent, imported.

    Raises:
        ValueError: there is no agent of this name, or it cannot be imported.
    """
    module, _, attribute = find_agent(name).factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        hint = " (is its folder on PYTHONPATH?)" if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"agent '{name}' cannot be imported: {error}{hint}") from error
    if not callable(found):
        raise ValueError(f"agent '{name}' is not callable: name a class, or a function")
    factory: Callable[..., Any] = found
    return factory


def agent_settings(name: str) -> dict[str, Any]:
    """The settings of an agent by name, with their defaults (None where there is none).

    Raises:
        ValueError: there is no agent of this name, or it cannot be imported.
    """
    parameters = inspect.signature(load_factory(name)).parameters.values()
    named = {p.name: None if p.default is p.empty else p.default for p in parameters}
    return {**named, **find_agent(name).settings}


def _check_kind(setting: str, value: Any, default: Any) -> None:
    """Refuse what is no number, or no whole one, where the default is."""
    whole = isinstance(default, int)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{setting} must be a {'whole ' if whole else ''}number, not {value!r}")


def build_agent(name: str, settings: Mapping[str, Any]) -> Agent:
    """Make an agent.

    Args:
        name: as for `find_agent`.
        settings: some of its settings.

    Raises:
        ValueError: there is no such agent or setting, or a setting has a value that is not allowed.
    """
    known = agent_settings(name)
    for setting in settings:
        if setting not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"agent '{name}' has no setting {setting}: {has}")
        if name in AGENTS:  # others may take what their default is not
            _check_kind(setting, settings[setting], known[setting])
    try:
        agent = load_factory(name)(**{**find_agent(name).settings, **settings})
    except TypeError as error:
        raise ValueError(f"agent '{name}' cannot be made: {error}") from error
    if not isinstance(agent, Agent):
        raise ValueError(f"agent '{name}' must have a method search(env, seed, evaluations)")
    return agent
