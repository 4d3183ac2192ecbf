"""What a fine-tuning is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class FinetuneOptions:
    """How to train a compressed network at the bits of its plan.

    Attributes:
        epochs: passes over the training split.
        steps: number of optimizer steps instead of `epochs`; None: as many as `epochs` take.
        learning_rate: the highest one; it falls along half a cosine to zero.
        batch_size: images per step.
        optimizer: `"sgd"` (Nesterov momentum 0.9) or `"adamw"`, for which the default learning rate
            is too high: 0.001 suits it.
        weight_decay: of the weights; not of biases, normalisation and step sizes.
        distill: share of the loss that compares outputs with the dense network's (Kullback-Leibler
            divergence, Hinton et al., 2015); the rest is cross-entropy with the labels. 0 to 1.
        temperature: what both networks' outputs are divided by in that comparison.
        label_smoothing: share of the label spread over all classes, from 0 to below 1.
        spare_fraction: share of every batch that is drawn from the part of the search split that
            the search never looked at. It matters where those images are of better quality than
            the training split's. It is cut so that no such image is seen over ten times as often
            as one of the training split, to nothing where there are none.
        checkpoint_steps: steps between two looks at the search split, each followed by a
            checkpoint from which an interrupted training can go on; also after every epoch.
        mixed_precision: whether convolutions run in 16 bits (float16 on a GPU, bfloat16
            elsewhere); None: on a GPU.
        compile: whether `torch.compile` fuses the network, which takes a C++ compiler and a minute
            or two before the first step, and after that about half the time per step on a CPU.
        seed: of the order of the images and their augmentation.
    """

    epochs: int = 10
    steps: int | None = None
    learning_rate: float = 0.01
    batch_size: int = 128
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    distill: float = 0.5
    temperature: float = 2.0
    label_smoothing: float = 0.0
    spare_fraction: float = 0.25
    checkpoint_steps: int = 250
    mixed_precision: bool | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "epochs must be at least 1": self.epochs >= 1,
            "steps must be at least 1": self.steps is None or self.steps >= 1,
            "learning_rate must be positive": 0 < self.learning_rate < math.inf,
            "batch_size must be at least 2": self.batch_size >= 2,
            f"optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            "weight_decay must be at least 0": 0 <= self.weight_decay < math.inf,
            "distill must be from 0 to 1": 0 <= self.distill <= 1,
            "temperature must be positive": 0 < self.temperature < math.inf,
            "label_smoothing must be at least 0 and below 1": 0 <= self.label_smoothing < 1,
            "spare_fraction must be at least 0 and below 1": 0 <= self.spare_fraction < 1,
            "checkpoint_steps must be at least 1": self.checkpoint_steps >= 1,
            "seed must be at least 0": self.seed >= 0,
        }
        for rule, holds in allowed.items():
            if not holds:
                raise ValueError(f"{rule}, got {getattr(self, rule.split()[0])!r}")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at a share of the training, from 0 to 1."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
