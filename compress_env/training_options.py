"""What a training of a dense network is asked to do."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields

_SCHEDULES = ("cosine", "onecycle")
_REFERENCE_BATCH = 128
# The one-cycle schedule: share of the training in which it rises, and of the peak it starts at.
_RISE = 0.25
_FIRST = 0.04


@dataclass(frozen=True)
class NetworkTraining:
    """How to train a dense network.

    Attributes:
        network: a name that :func:`compress_env.networks.build_network` knows.
        dataset: a name that :func:`compress_env.data.load_splits` knows.
        data_root: folder of the images, for data sets that have one.
        image_size: side in pixels that the images are brought to.
        epochs: passes over the training split.
        learning_rate: the highest one of the schedule, for 128 images per step; other batch
            sizes take one in proportion (Goyal et al., 2017).
        batch_size: images per step; None: 128, or the power of two from 16 on with which an
            epoch of a small data set still has 25 steps.
        momentum: Nesterov's, from 0 to below 1.
        weight_decay: of every parameter.
        schedule: ``"cosine"`` falls from the first step on; ``"onecycle"`` rises during the
            first quarter before.
        label_smoothing: share of the label spread over all classes, from 0 to below 1.
        seed: of the splits, the first weights, the order of the images and their augmentation.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, ...; ``"auto"`` takes a GPU where there is one.
    """

    network: str
    dataset: str
    data_root: str | None = None
    image_size: int | None = None
    epochs: int = 40
    learning_rate: float = 0.1
    batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    label_smoothing: float = 0.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        allowed = {
            "epochs must be at least 1": self.epochs >= 1,
            "learning_rate must be positive": 0 < self.learning_rate < math.inf,
            "batch_size must be at least 2": self.batch_size is None or self.batch_size >= 2,
            "momentum must be at least 0 and below 1": 0 <= self.momentum < 1,
            "weight_decay must be at least 0": 0 <= self.weight_decay < math.inf,
            f"schedule must be one of {', '.join(_SCHEDULES)}": self.schedule in _SCHEDULES,
            "label_smoothing must be at least 0 and below 1": 0 <= self.label_smoothing < 1,
            "seed must be at least 0": self.seed >= 0,
        }
        for rule, holds in allowed.items():
            if not holds:
                raise ValueError(f"{rule}, got {getattr(self, rule.split()[0])!r}")

    def command(self) -> str:
        """The command line that does this training; what has its default is left out."""
        words = ["compress-agents train-network"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in {"network", "dataset"} or value != field.default:
                words.append(f"--{field.name.replace('_', '-')} {shlex.quote(str(value))}")
        return " ".join(words)

    def batch_size_for(self, images: int) -> int:
        """Images per step for a training split of so many images."""
        if self.batch_size is not None:
            return min(self.batch_size, images)
        return min(images, next((size for size in (128, 64, 32) if images >= 25 * size), 16))

    def learning_rate_at(self, progress: float, batch_size: int = _REFERENCE_BATCH) -> float:
        """The learning rate at a share of the training, from 0 to 1."""
        highest = self.learning_rate * batch_size / _REFERENCE_BATCH
        rise = _RISE if self.schedule == "onecycle" else 0.0
        if progress < rise:
            return highest * (_FIRST + (1 - _FIRST) * progress / rise)
        return highest * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
