"""A checkpoint: the agent and the state of its run in one file, written at one stroke.

``agent.zip`` is what ``PPO.save`` writes, and ``PPO.load`` reads it. It has one entry more, the
state of the run; being one file, the two cannot disagree whenever the process is killed. Nothing
is unpickled to resume: weights are read as tensors only, and the state is JSON.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file

from compress_agents.runs import write_atomically

__all__ = ["load_checkpoint", "random_state", "restore_random_state", "save_checkpoint"]

_ENTRY = "run_state.json"


def save_checkpoint(path: Path, agent: PPO, state: dict[str, Any]) -> None:
    """Write agent and state atomically.

    Args:
        path: ``agent.zip``.
        agent: the agent.
        state: JSON-safe state of the run.
    """
    buffer = io.BytesIO()
    # The last observation is that of an environment which a later process does not have.
    agent.save(buffer, exclude=["_last_obs", "_last_episode_starts", "ep_info_buffer"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(_ENTRY, json.dumps(state))
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, agent: PPO) -> dict[str, Any]:
    """Give an agent, built with the same options, the weights of a checkpoint.

    Returns:
        The state of the run.

    Raises:
        ValueError: the file is not a checkpoint, or for another agent.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state: dict[str, Any] = json.loads(archive.read(_ENTRY))
        _, parameters, _ = load_from_zip_file(path, device=agent.device, load_data=False)
        agent.set_parameters(parameters, exact_match=True, device=agent.device)
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"resume: {path} is not the checkpoint of this run: {error}") from error
    return state


def random_state() -> dict[str, Any]:
    """The global random states that PPO draws from: torch's for actions, NumPy's for batches."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
        "numpy": [name, base64.b64encode(np.asarray(keys).tobytes()).decode(), *rest],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Go back to where `random_state` was called."""
    torch_bytes = np.frombuffer(base64.b64decode(state["torch"]), np.uint8)
    torch.set_rng_state(torch.from_numpy(torch_bytes.copy()))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.frombuffer(base64.b64decode(keys), np.uint32), *rest))
