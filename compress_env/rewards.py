"""What an evaluated plan is paid.

A reward is called with the evaluation of the plan's network and that of the dense one on the same
images. Any callable of this form can be handed to the environment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from compress_env.evaluation.evaluator import Evaluation

Reward = Callable[[Evaluation, Evaluation], float]
"""`(plan's network, dense network) -> reward`."""

MISSED_TARGET_REWARD = -1.0
"""What an episode is paid that ends before it meets the target."""


def accuracy(plan: Evaluation, dense: Evaluation) -> float:
    """Accuracy on the search split, 0 to 1: the joint paper's reward."""
    return plan.accuracy


def agreement(plan: Evaluation, dense: Evaluation) -> float:
    """Share of images on which the plan's network predicts what the dense one does, 0 to 1.

    It looks at no label, so it cannot be paid for what the dense network has learned by heart.
    """
    return float((plan.predictions == dense.predictions).double().mean())


def divergence(plan: Evaluation, dense: Evaluation) -> float:
    """Minus the mean Kullback-Leibler divergence from the dense network's outputs, in nats.

    Finer than accuracy: it tells plans apart that make the same predictions.
    """
    dense_log = torch.log_softmax(dense.logits.double(), 1)
    plan_log = torch.log_softmax(plan.logits.double(), 1)
    return -float((dense_log.exp() * (dense_log - plan_log)).sum(1).mean())


def accuracy_and_divergence(plan: Evaluation, dense: Evaluation) -> float:
    """Accuracy, with a hundredth of the divergence to order plans of equal accuracy."""
    return plan.accuracy + 0.01 * max(divergence(plan, dense), -10.0)


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "agreement": agreement,
    "divergence": divergence,
    "accuracy_and_divergence": accuracy_and_divergence,
}
"""The rewards by name."""
