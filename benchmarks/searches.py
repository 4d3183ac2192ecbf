"""Searches to be measured: with real images and weights where they are given, else random ones."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.subjects import find_weights, random_network
from compress_agents.config import TrainingConfig
from compress_agents.training import Training

__all__ = ["SearchTimes", "Source", "random_source", "timed_search"]

_CLASSES = 10
_SPLITS = {"train": 200, "val": 2200, "test": 1000}
"""Random images in each split; `val` is enough for a search with calibration."""


@dataclass(frozen=True)
class Source:
    """Where images and weights lie.

    Attributes:
        data_root: image folders `train/`, `val/`, `test/`.
        weights_dir: files that begin with a network's name.
    """

    data_root: str
    weights_dir: str

    def config(self, network: str, images: int, evaluations: int, num_envs: int) -> TrainingConfig:
        """A search by the defaults of the command line."""
        return TrainingConfig(
            env_id="JointPruneQuant-v0",
            network=network,
            dataset="imagefolder",
            data_root=self.data_root,
            weights=str(find_weights(self.weights_dir, network)),
            search_images=images,
            evaluations=evaluations,
            num_envs=num_envs,
        )


def random_source(folder: Path, networks: tuple[str, ...]) -> Source:
    """Random images of 32x32 in ten classes, and random weights, written to a folder."""
    generator = np.random.default_rng(0)
    for split, count in _SPLITS.items():
        for index in range(count):
            path = folder / split / str(index % _CLASSES) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, compress_level=1)
    for network in networks:
        torch.save(random_network(network).state_dict(), folder / f"{network}-random.pt")
    return Source(str(folder), str(folder))


@dataclass(frozen=True)
class SearchTimes:
    """What a search took.

    Attributes:
        evaluations: plans that were evaluated.
        seconds: from making the environment to the report, test images included.
        update_seconds: of these, the updates of the agent.
        test_accuracy: of the best plan, 0 to 1.
    """

    evaluations: int
    seconds: float
    update_seconds: float
    test_accuracy: float


def timed_search(config: TrainingConfig, run_dir: str | os.PathLike[str]) -> SearchTimes:
    """Run a search of PPO as `compress-agents train` does, and time it."""
    start = time.perf_counter()
    run = Training(config, str(run_dir))
    algorithm = type(run.learner)
    update, updating = algorithm.train, 0.0

    def timed_update(learner: Any) -> None:
        nonlocal updating
        before = time.perf_counter()
        update(learner)
        updating += time.perf_counter() - before

    # On the class: what hangs on the learner itself goes into its checkpoints.
    with patch.object(algorithm, "train", timed_update):
        report = run.run()
    return SearchTimes(
        report["evaluations"], time.perf_counter() - start, updating, report["test_accuracy"]
    )
