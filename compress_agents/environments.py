"""Environments for a search: one here, or several in processes of their own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from tqdm import tqdm

import compress_env  # noqa: F401  registers the ids
from compress_agents.config import SearchConfig
from compress_agents.sharing import load_shared, save_shared
from compress_env.allocator import keep_freed_memory
from compress_env.env import JointPruneQuantEnv
from compress_env.wrappers import PaddedGraph

__all__ = ["Replayable", "make_environment", "make_vector_environment"]


class _Processes(SubprocVecEnv):
    """Environments in processes that can be ended at any moment, in the middle of a step too."""

    def close(self) -> None:
        """End the processes. They keep nothing that would have to be saved.

        Stable-Baselines3 first waits for a step that was begun, which after Control-C can be one
        whose result has been read already.
        """
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        self.closed = True


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
    except gymnasium.error.NameNotFound as error:
        ours = [name for name in gymnasium.registry if name.startswith("JointPruneQuant")]
        near = ", ".join(get_close_matches(config.env_id, ours, n=3, cutoff=0))
        raise ValueError(
            f"env_id '{config.env_id}' is not to be had; nearest are {near}"
        ) from error
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


def make_vector_environment(first: JointPruneQuantEnv, num_envs: int) -> VecEnv:
    """What Stable-Baselines3 trains on: padded graphs, episodes watched by a ``Monitor``.

    Several environments are copies of the first in processes of their own, which divide the cores
    among them. They share its memory (`compress_agents.sharing`): network, images, calibration
    images and the evaluation of the dense network are made once and mapped by all.

    Args:
        first: the environment of `make_environment`; it is used where one is enough.
        num_envs: how many. From 2 on, this process takes as many threads as each of them: sums of
            floats depend on it, and a plan has to get the same accuracy everywhere.
    """
    if num_envs == 1:
        return DummyVecEnv([partial(_wrap, first)])
    threads = max(1, _cores() // num_envs)
    torch.set_num_threads(threads)
    # What every one of them would compute for its first episode.
    _ = first.task.dense_evaluation
    with TemporaryDirectory(prefix="compress-agents-", ignore_cleanup_errors=True) as folder:
        save_shared(first, folder)
        factories: list[Callable[[], gymnasium.Env[Any, Any]]] = [
            partial(_map_in_process, folder, threads) for _ in range(num_envs)
        ]
        with _thread_variables(threads):
            environments = _Processes(factories, start_method=_start_method())
        # All of them have mapped the files by now: a constructor asks each for its attributes.
        environments.get_attr("spec")
    return environments


def _start_method() -> str:
    """How processes start: copies of one that has imported everything, where that is safe.

    A fork of this process would inherit threads of torch in a state that can hang. The server has
    only imported, so that it has none, and what it imported is in memory once for all its copies.
    """
    if not sys.platform.startswith("linux"):
        return "spawn"
    multiprocessing.set_forkserver_preload([__name__, "stable_baselines3.common.env_util"])
    return "forkserver"


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """Processes started meanwhile have libraries that compute on so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _map_in_process(folder: str, threads: int) -> gymnasium.Env[Any, Any]:
    # Control-C reaches all processes at once; it is the parent that then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the server has imported stays where it is: looking through it for garbage would write to
    # it, and so copy it.
    gc.freeze()
    torch.set_num_threads(threads)
    keep_freed_memory()
    # Its default lock is a semaphore that outlives a process that is ended from outside.
    tqdm.set_lock(threading.RLock())
    return _wrap(load_shared(folder))


def _wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return Replayable(Monitor(PaddedGraph(env)))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
