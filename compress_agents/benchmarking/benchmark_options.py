"""Options of a benchmark: which searches it is made of.

Those that a benchmark varies are lists; the others are those of `train`, the same for all agents.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Any, get_type_hints

from compress_agents.agents import build_agent
from compress_agents.command_line.options import option, parse_settings
from compress_agents.config import TrainingConfig

__all__ = ["BENCHMARK_OPTIONS", "Search", "list_searches", "parse_agents", "split_label"]

_VARIED = {
    "env_id", "target_reduction", "agent", "agent_options", "seed", "evaluations", "weights",
}  # fmt: skip
_UNEQUAL = {
    # A search that stops early, or takes other settings of one kind of agent.
    "total_timesteps", "max_episodes", "solve_reward", "num_envs",
    "update_interval", "update_epochs", "learning_rate", "action_std",
}  # fmt: skip
_IN_NAMES = ("network", "dataset", "metric")


def parse_words(text: str) -> tuple[str, ...]:
    """``"a,b"`` as words; spaces around them do not count.

    Raises:
        ValueError: one of them is empty.
    """
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError(f"a list must be a,b,c, not '{text}'")
    return words


def parse_reductions(text: str) -> tuple[float, ...]:
    """``"0.984,0.991"`` as numbers.

    Raises:
        ValueError: one of them is none.
    """
    try:
        return tuple(float(word) for word in parse_words(text))
    except ValueError:
        raise ValueError(f"target_reductions must be such as 0.984,0.991, not '{text}'") from None


def parse_agents(text: str) -> tuple[str, ...]:
    """``"ppo,ppo[encoder=gat],uniform"`` as labels of agents; settings are in brackets.

    Raises:
        ValueError: it is no such list.
    """
    labels = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not labels or ",".join(labels) != text:
        raise ValueError(f"agents must be a list such as ppo,ppo[encoder=gat], not '{text}'")
    stripped = tuple(label.strip() for label in labels)
    for label in stripped:
        split_label(label)
    return stripped


def split_label(label: str) -> tuple[str, str]:
    """Name and settings of an agent from its label: ``"ppo[encoder=gat]"``.

    Raises:
        ValueError: it is no label.
    """
    match = re.fullmatch(r"([^\[\],\s]+)(?:\[([^\[\]]*)\])?", label)
    if match is None:
        raise ValueError(f"agents must be such as ppo or ppo[encoder=gat], not '{label}'")
    return match[1], match[2] or ""


def agent_label(name: str, agent_options: str) -> str:
    """What `split_label` takes apart."""
    return f"{name}[{agent_options}]" if agent_options else name


def _options() -> type[Any]:
    types = get_type_hints(TrainingConfig)
    varied: list[tuple[str, Any, Any]] = [
        ("agents", tuple[str, ...], option(
            ("ppo", "ppo-mlp", "gaussian", "uniform"),
            "Agents, a,b,c; settings in brackets: ppo[encoder=gat].",
            shown="ppo,ppo-mlp,gaussian,uniform", parse=parse_agents,
        )),
        ("env_ids", tuple[str, ...], option(
            ("JointPruneQuant-ResNet20-v0",), "Environments, X,Y.",
            shown="JointPruneQuant-ResNet20-v0", parse=parse_words,
        )),
        ("target_reductions", tuple[float, ...], option(
            (0.984,), "Shares of the dense cost to remove.", shown="0.984", parse=parse_reductions,
        )),
        ("seeds", int, option(5, "Searches of every agent: seeds 0, 1, ...")),
        ("evaluations", int, option(500, "Evaluations of every search.")),
        ("weights", tuple[str, ...] | None, option(
            None, "File of the dense weights; of several environments one each, a,b.",
            shown="embedded or published ones", parse=parse_words,
        )),
    ]  # fmt: skip
    shared = [
        (entry.name, types[entry.name], option(entry.default, **entry.metadata))
        for entry in fields(TrainingConfig)
        if entry.name not in _VARIED | _UNEQUAL
    ]
    return make_dataclass("BenchmarkOptions", [*varied, *shared], frozen=True)


BENCHMARK_OPTIONS = _options()
"""A dataclass with a field per option, for `takes_options`."""


@dataclass(frozen=True)
class Search:
    """A run of a benchmark.

    Attributes:
        name: of its run folder.
        config: its options.
    """

    name: str
    config: TrainingConfig


def list_searches(options: Any) -> list[Search]:
    """All searches of a benchmark, seed by seed, so that early results are of all agents.

    Args:
        options: an instance of `BENCHMARK_OPTIONS`.

    Raises:
        ValueError: an option is not allowed.
    """
    if options.seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {options.seeds}")
    for target in options.target_reductions:
        if not 0 < target < 1:
            raise ValueError(f"target_reductions must be above 0 and below 1, not {target:g}")
    for env_id in options.env_ids:
        _check_environment(env_id)
    settings = [split_label(label) for label in options.agents]
    for name, words in settings:
        build_agent(name, parse_settings(words))
    varied = {"agents", "env_ids", "target_reductions", "seeds", "evaluations", "weights"}
    shared = {
        entry.name: getattr(options, entry.name)
        for entry in fields(options)
        if entry.name not in varied
    }
    searches = [
        _search(
            {
                **shared,
                "env_id": env_id,
                "weights": weights,
                "target_reduction": target,
                "seed": seed,
                "agent": name,
                "agent_options": words,
                "evaluations": options.evaluations,
            }
        )
        for seed in range(options.seeds)
        for env_id, weights in zip(
            options.env_ids, _weights(options.weights, options.env_ids), strict=True
        )
        for target in options.target_reductions
        for name, words in settings
    ]
    names = [search.name for search in searches]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"agents, env_ids, target_reductions must not repeat: {twice} is twice")
    return searches


def _check_environment(env_id: str) -> None:
    """Refuse an id before a search is started with it, which would fail once per agent and seed."""
    import gymnasium  # noqa: PLC0415  the command line lists options without it

    import compress_env  # noqa: F401, PLC0415  registers the ids

    if ":" in env_id:
        return  # the module in front of the colon registers it when the environment is made
    with warnings.catch_warnings():
        # Gymnasium warns of ids without a version and of old versions.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            gymnasium.spec(env_id)
        except gymnasium.error.Error as error:
            known = sorted(name for name in gymnasium.registry if name.startswith("JointPrune"))
            raise ValueError(
                f"env_ids: there is no environment '{env_id}'; this package has {', '.join(known)}"
            ) from error


def _weights(given: Sequence[str] | None, env_ids: Sequence[str]) -> Sequence[str | None]:
    if given is None:
        return [None] * len(env_ids)
    if len(given) != len(env_ids):
        raise ValueError(
            f"weights must be one file for each of the {len(env_ids)} env_ids, not {len(given)}"
        )
    return given


def _search(values: Mapping[str, Any]) -> Search:
    config = TrainingConfig(**values)
    defaults = {entry.name: entry.default for entry in fields(TrainingConfig)}
    parts = [
        config.env_id,
        *(values[name] for name in _IN_NAMES if values[name] != defaults[name]),
        f"{config.target_reduction:g}",
        agent_label(config.agent, config.agent_options),
        str(config.evaluations),
        f"seed{config.seed}",
    ]
    name = re.sub(r"[^\w.]+", "-", "-".join(parts))
    return Search(name, config)
