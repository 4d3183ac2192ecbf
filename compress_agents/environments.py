"""Environments for a search: one here, or several in processes of their own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import compress_env  # noqa: F401  registers the ids
from compress_agents.config import SearchConfig
from compress_env.env import JointPruneQuantEnv
from compress_env.wrappers import PaddedGraph

__all__ = ["Replayable", "make_environment", "make_vector_environment"]


class Replayable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Goes back into an unfinished episode by taking its actions again.

    Nothing is evaluated before an episode ends, so this costs next to nothing, and the
    environment need not be able to save its state.
    """

    def replay(self, actions: Sequence[npt.NDArray[np.float32]]) -> Any:
        """Start an episode, take these actions, none of which ends it, and observe."""
        observation, _ = self.reset()
        for action in actions:
            observation, *_ = self.step(action)
        return observation


def make_environment(
    config: SearchConfig, needs: Mapping[str, Any] = MappingProxyType({})
) -> JointPruneQuantEnv:
    """The environment of a search, without wrappers.

    Args:
        config: the options.
        needs: arguments of the environment that the agent cannot do without.

    Raises:
        ValueError: an option is not allowed, or the environment id is unknown.
    """
    arguments = config.environment_arguments(needs)
    try:
        with warnings.catch_warnings():
            # Gymnasium warns of ids without a version and of old versions.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            env: Any = gymnasium.make(config.env_id, disable_env_checker=True, **arguments)
    except gymnasium.error.Error as error:
        raise ValueError(f"env_id '{config.env_id}' is not to be had: {error}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"env_id '{config.env_id}' is not to be had: {error}") from error
    except TypeError as error:
        # What another environment says to arguments that it does not take.
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(
            f"env_id must be one of the JointPruneQuant-...-v0, not '{config.env_id}'"
        ) from error
    if not isinstance(env.unwrapped, JointPruneQuantEnv):
        raise ValueError(f"env_id must be one of the JointPruneQuant-...-v0, not '{config.env_id}'")
    return env.unwrapped


def make_vector_environment(
    config: SearchConfig, needs: Mapping[str, Any], first: JointPruneQuantEnv, num_envs: int
) -> VecEnv:
    """What Stable-Baselines3 trains on: padded graphs, episodes watched by a ``Monitor``.

    Args:
        config: the options.
        needs: arguments of the environment that the agent cannot do without.
        first: the environment of `make_environment`; it is used where one is enough.
        num_envs: how many; from 2 on each has its own process and its share of the cores. This
            process then takes as many threads as each of them: sums of floats depend on it, and
            a plan has to get the same accuracy everywhere.
    """
    if num_envs == 1:
        return DummyVecEnv([partial(_wrap, first)])
    threads = max(1, _cores() // num_envs)
    torch.set_num_threads(threads)
    factories: list[Callable[[], gymnasium.Env[Any, Any]]] = [
        partial(_make_in_process, config, needs, threads) for _ in range(num_envs)
    ]
    # A fork would inherit the threads that torch has started, in a state that can hang.
    return SubprocVecEnv(factories, start_method="spawn")


def _make_in_process(
    config: SearchConfig, needs: Mapping[str, Any], threads: int
) -> gymnasium.Env[Any, Any]:
    torch.set_num_threads(threads)
    return _wrap(make_environment(config, needs))


def _wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return Replayable(Monitor(PaddedGraph(env)))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
