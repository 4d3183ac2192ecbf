"""A training: from options to a run folder with the best plan found and a report of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.logger import configure

from compress_agents.agents import build_agent
from compress_agents.callbacks import RunCallback, is_finished
from compress_agents.checkpoints import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from compress_agents.config import TrainingConfig
from compress_agents.environments import make_environment, make_vector_environment
from compress_agents.records import Record
from compress_agents.reporting import finish
from compress_agents.runs import RunFolder
from compress_env.wrappers import PaddedGraph

__all__ = ["Training"]


class Training:
    """A run of PPO, new or resumed.

    The constructor does all that can fail for the options' sake; nothing is written before it has
    succeeded.

    Args:
        config: the options.
        run_dir: the run folder; None: `TrainingConfig.default_run_dir`.
        resume: go on with the run in the folder. The result is that of a run that was never
            interrupted.

    Raises:
        ValueError: an option is not allowed, or the folder holds another run.
        OSError: a file cannot be read or written.
    """

    def __init__(
        self, config: TrainingConfig, run_dir: str | None = None, resume: bool = False
    ) -> None:
        self.config = config
        self.folder = RunFolder(run_dir or config.default_run_dir())
        self.folder.check(config, resume)
        self.env = make_environment(config)
        self.record = Record(self.folder)
        self.folder.claim(config)
        self.vector_env = make_vector_environment(config, self.env, config.num_envs)
        self.agent = build_agent(config, self.vector_env)
        self.resumed = resume and self.folder.agent.exists()
        self._open: dict[str, Any] | None = None
        if self.resumed:
            self._load()

    def run(self, show: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
        """Train to the end and write the report.

        Args:
            show: called after every episode, for a progress bar.

        Returns:
            The report.
        """
        try:
            done = self.folder.read_report()
            if done is not None and self.resumed and is_finished(self.config, self.record):
                return done
            self.folder.report.unlink(missing_ok=True)
            show(self.record)
            if not is_finished(self.config, self.record):
                self._learn(show)
            self._try_final_action()
            self.record.flush()
            show(self.record)
            return finish(self.config, self.folder, self.env, self.record)
        finally:
            self.vector_env.close()
            self.folder.release()

    def _learn(self, show: Callable[[Record], None]) -> None:
        def on_update() -> None:
            self.record.flush()
            save_checkpoint(self.folder.agent, self.agent, self._state(callback))

        callback = RunCallback(
            self.config, self.record, on_episode=lambda: show(self.record), on_update=on_update
        )
        if self._open is not None:
            callback.open_actions = [
                [np.array(action, np.float32) for action in actions]
                for actions in self._open["actions"]
            ]
            callback.open_rewards = list(self._open["rewards"])
        self.agent.set_logger(configure(str(self.folder.tensorboard), ["tensorboard"]))
        self.agent.learn(
            self.config.total_timesteps - self.agent.num_timesteps,
            callback=callback,
            reset_num_timesteps=not self.resumed,
        )

    # -- checkpoints -----------------------------------------------------------------------------

    def _state(self, callback: RunCallback) -> dict[str, Any]:
        return {
            "record": self.record.state_dict(),
            "random": random_state(),
            "updates": self.agent._n_updates,
            "open": {
                "actions": [[a.tolist() for a in actions] for actions in callback.open_actions],
                "rewards": callback.open_rewards,
            },
        }

    def _load(self) -> None:
        state = load_checkpoint(self.folder.agent, self.agent)
        self.record.load_state_dict(state["record"], self.env.task.graph)
        self._open = state["open"]
        agent: Any = self.agent
        agent.num_timesteps = self.record.env_steps
        agent._n_updates = state["updates"]
        observations = [
            self.vector_env.env_method(
                "replay", [np.array(action, np.float32) for action in actions], indices=index
            )[0]
            for index, actions in enumerate(state["open"]["actions"])
        ]
        agent._last_obs = {
            key: np.stack([observation[key] for observation in observations])
            for key in observations[0]
        }
        agent._last_episode_starts = np.array([not a for a in state["open"]["actions"]])
        restore_random_state(state["random"])

    # -- the end ---------------------------------------------------------------------------------

    def _try_final_action(self) -> None:
        """One episode of what the agent now takes for best, without noise."""
        env = PaddedGraph(self.env)
        observation, _ = env.reset()
        total, done = 0.0, False
        while not done:
            action, _ = self.agent.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, info = env.step(action)
            total += float(np.float32(reward))
            done = terminated or truncated
            self.record.step()
        self.record.end_episode(total, info)
