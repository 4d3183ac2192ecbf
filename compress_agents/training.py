"""Runs of PPO, which goes on from a checkpoint, and the choice of the kind of run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.logger import configure

from compress_agents.agents import Agent, build_agent
from compress_agents.agents.ppo import PPOAgent
from compress_agents.callbacks import LearningFinished, RunCallback
from compress_agents.checkpoints import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from compress_agents.config import TrainingConfig
from compress_agents.environments import make_vector_environment
from compress_agents.records import Record, is_finished
from compress_agents.running import Run, SearchRun
from compress_env.wrappers import PaddedGraph

__all__ = ["Training", "open_run"]

_NO_LIMIT = 2**31


def open_run(config: TrainingConfig, run_dir: str | None = None, resume: bool = False) -> Run:
    """A run of the agent that the options name; see `compress_agents.running.Run`.

    Raises:
        ValueError: an option is not allowed, or the folder holds another run.
        OSError: a file cannot be read or written.
    """
    agent = build_agent(config.agent, config.settings())
    if isinstance(agent, PPOAgent):
        return Training(config, run_dir, resume, agent)
    if config.num_envs != 1:
        raise ValueError(f"num_envs must be 1 for agent '{config.agent}': only PPO takes more")
    return SearchRun(config, run_dir, resume, agent)


class Training(Run):
    """A run of PPO: checkpoints, several environments side by side, logs.

    The last evaluation is that of the action which the agent takes for best, without noise.

    Args:
        config: the options.
        run_dir: the run folder; None: `TrainingConfig.default_run_dir`.
        resume: go on with the run in the folder, from its latest checkpoint.
        agent: a `PPOAgent`, if not the one that the options name.

    Raises:
        ValueError: an option is not allowed, or the folder holds another run.
        OSError: a file cannot be read or written.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run_dir: str | None = None,
        resume: bool = False,
        agent: Agent | None = None,
    ) -> None:
        super().__init__(config, run_dir, resume, agent)
        if not isinstance(self.agent, PPOAgent):
            raise ValueError(f"agent must be one of PPO's, not '{config.agent}'")
        self.vector_env = make_vector_environment(self.env, config.num_envs)
        layer_by_layer = self.env.step_mode == "layer"
        self.learner = self.agent.build(self.vector_env, config.seed, layer_by_layer)
        self.resumed = resume and self.folder.agent.exists()
        self._open: dict[str, Any] | None = None
        if self.resumed:
            self._load()

    def _is_done(self, report: dict[str, Any]) -> bool:
        return self.resumed and self._has_learned()

    def _has_learned(self) -> bool:
        return is_finished(self.config, self.record, self.config.num_envs)

    def _search(self, show: Callable[[Record], None]) -> None:
        if not self.resumed and self.env.step_mode == "network" and self.config.evaluations > 2:
            # The base plan, so that no search ends below what it started from. Limits of steps
            # are about what is learned from, so it does not count among them.
            base = np.zeros(self.env.action_space.shape or (), np.float32)
            self._play(lambda _: base, counted=False)
        if not self._has_learned():
            self._learn(show)
        while not is_finished(self.config, self.record, spare=1):
            self._play(lambda seen: self.learner.predict(seen, deterministic=False)[0])
        self._play(lambda seen: self.learner.predict(seen, deterministic=True)[0])

    def close(self) -> None:
        """End the processes of the environments."""
        self.vector_env.close()

    def _learn(self, show: Callable[[Record], None]) -> None:
        def on_update() -> None:
            self.record.flush()
            save_checkpoint(self.folder.agent, self.learner, self._state(callback))

        callback = RunCallback(
            self.config, self.record, on_episode=lambda: show(self.record), on_update=on_update
        )
        if self._open is not None:
            callback.open_actions = [
                [np.array(action, np.float32) for action in actions]
                for actions in self._open["actions"]
            ]
            callback.open_rewards = list(self._open["rewards"])
        self.learner.set_logger(configure(str(self.folder.tensorboard), ["tensorboard"]))
        try:
            self.learner.learn(
                (self.config.total_timesteps or _NO_LIMIT) - self.learner.num_timesteps,
                callback=callback,
                reset_num_timesteps=not self.resumed,
            )
        except LearningFinished:
            self.learner.logger.close()

    # -- checkpoints -----------------------------------------------------------------------------

    def _state(self, callback: RunCallback) -> dict[str, Any]:
        return {
            "record": self.record.state_dict(),
            "random": random_state(),
            "updates": self.learner._n_updates,
            "open": {
                "actions": [[a.tolist() for a in actions] for actions in callback.open_actions],
                "rewards": callback.open_rewards,
            },
        }

    def _load(self) -> None:
        state = load_checkpoint(self.folder.agent, self.learner)
        self.record.load_state_dict(state["record"], self.env.task.graph)
        self._open = state["open"]
        learner: Any = self.learner
        learner.num_timesteps = self.record.env_steps
        learner._n_updates = state["updates"]
        observations = [
            self.vector_env.env_method(
                "replay", [np.array(action, np.float32) for action in actions], indices=index
            )[0]
            for index, actions in enumerate(state["open"]["actions"])
        ]
        learner._last_obs = {
            key: np.stack([observation[key] for observation in observations])
            for key in observations[0]
        }
        learner._last_episode_starts = np.array([not a for a in state["open"]["actions"]])
        restore_random_state(state["random"])

    # -- the end ---------------------------------------------------------------------------------

    def _play(
        self, act: Callable[[dict[str, np.ndarray]], np.ndarray], counted: bool = True
    ) -> None:
        """One episode outside of the learning, by a function from observations to actions."""
        env = PaddedGraph(self.env)
        observation, _ = env.reset()
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, info = env.step(act(observation))
            total += float(np.float32(reward))
            done = terminated or truncated
            if counted:
                self.record.step()
        self.record.end_episode(total, info)
