"""Whether a fine-tuning that a folder holds is the one that is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compress_env.finetune_options import FinetuneOptions
from compress_env.networks.weights import read_metadata
from compress_env.plan import CompressionPlan
from compress_env.task import CompressionTask
from compress_env.training_parts import check_same


def training_identity(
    task: CompressionTask, plan: CompressionPlan, options: FinetuneOptions
) -> dict[str, Any]:
    """What an interrupted training and the one that goes on with it have in common."""
    weights = hashlib.sha256()
    for value in task.network.state_dict().values():
        weights.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {
        **asdict(options),
        "network": task.network_name,
        "weights": weights.hexdigest()[:12],
        "plan": hashlib.sha256(plan.key()).hexdigest()[:12],
        "dataset": task.splits.name,
        "train_images": len(task.splits.train),
        "spare_images": len(task.spare),
        "task_seed": task.seed,
    }


def finished_results(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the file of a finished fine-tuning holds.

    Raises:
        ValueError: it is of another training, or of none.
    """
    metadata = read_metadata(path)
    if "options" not in metadata or "results" not in metadata:
        raise ValueError(f"out_folder: {path} exists and does not come from a fine-tuning")
    check_same(path, json.loads(metadata["options"]), identity)
    return dict(json.loads(metadata["results"]))
