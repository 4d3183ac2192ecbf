"""Importing this lets forked processes compute; asynchronous vector environments are such.

On Linux, torch and DGL share GNU's OpenMP, whose threads do not exist in a forked process: once the
parent has computed anything on two threads, the first parallel loop of the child waits for them
forever. ``gymnasium.vector.AsyncVectorEnv`` forks, and the parent usually has evaluated a network
before. With one thread there is no parallel loop to wait in, hence one thread is what every forked
process gets, as torch's own data loader does for its workers. Spawned processes are not affected.
"""

from __future__ import annotations

import os

import torch


def _use_one_thread() -> None:
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Not on Windows, which cannot fork.
    os.register_at_fork(after_in_child=_use_one_thread)
