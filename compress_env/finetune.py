"""Fine-tuning in a folder: a plan's network is trained at its bits, and kept as one file.

Beside the file lie the figures and the learning curve (`finetune.json`) and, while the training is
on, the state from which it can go on.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from compress_env.compressed_file import COMPRESSED_FILE, save_compressed
from compress_env.compression import compress
from compress_env.evaluation import Evaluation, evaluate_network, run_network
from compress_env.finetune_identity import finished_results, training_identity
from compress_env.finetune_options import FinetuneOptions
from compress_env.plan import CompressionPlan
from compress_env.quantized_training import QuantizedTraining, TrainingImages, folded_copy
from compress_env.task import CompressionTask
from compress_env.training_parts import read_checkpoint, write_checkpoint

__all__ = ["CHECKPOINT_FILE", "CURVE_FILE", "FinetuneOptions", "finetune"]

CURVE_FILE = "finetune.json"
"""Options, figures and curve of a fine-tuning."""

CHECKPOINT_FILE = "finetune.checkpoint"
"""State of an interrupted fine-tuning."""

# Steps between two looks at the loss, each of which waits for the GPU.
_WATCH_STEPS = 20


def finetune(
    task: CompressionTask,
    plan: CompressionPlan,
    options: FinetuneOptions,
    out_folder: str | os.PathLike[str],
    resume: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train the network of a plan and write it into a folder.

    It starts from the network that the plan means without training (`compress_env.compress`), and
    ends as such a network again, on integer codes. It learns from the training split and from what
    search and calibration leave of the search split, so that the search split stays a measure.

    Args:
        task: the dense network, its data and its device.
        plan: a plan for it.
        options: how to train.
        out_folder: gets `compressed.safetensors`, which `compress_env.load_compressed` reads, and
            `finetune.json`.
        resume: go on from an interrupted training, or return the results of a finished one; start
            where there is neither. On a CPU the result is to the bit that of an uninterrupted one.
        metadata: more strings to keep in the file, such as the command.

    Returns:
        `search_accuracy_before`, `search_accuracy`, `test_accuracy_before`, `test_accuracy` (0 to
        1; the test split is looked at once, at the end), `dense_search_accuracy`, `train_loss`,
        `train_accuracy` (since the last look at the search split), `steps` and `epochs` of the
        network that is kept, `images_per_second`, `wall_seconds`, `reduction` in BOPs, and
        `stopped`: empty, or why it ended early. It then holds the best network so far.

    Raises:
        ValueError: the plan is for another network, or its network has outputs that are no numbers
            before any training; there is the state of another training, or of an interrupted one
            although `resume` is not set.
    """
    plan = CompressionPlan.from_json(plan.to_json(), task.graph)
    folder = Path(out_folder)
    out, checkpoint = folder / COMPRESSED_FILE, folder / CHECKPOINT_FILE
    identity = training_identity(task, plan, options)
    if resume and out.is_file() and not checkpoint.is_file():
        return finished_results(out, identity)
    state = read_checkpoint(checkpoint, identity, resume)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, plan, options, identity)
    if state is not None:
        run.load_state_dict(state)
    network = run.train(checkpoint)
    results = run.results(network)
    known = {
        "dataset": task.splits.name,
        "mean": json.dumps(task.splits.mean),
        "std": json.dumps(task.splits.std),
        "options": json.dumps(identity),
        "results": json.dumps(results),
    }
    record = {"options": identity, "results": results, "curve": run.curve}
    partial = folder / f"{CURVE_FILE}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, folder / CURVE_FILE)
    save_compressed(
        network,
        out,
        plan,
        num_classes=task.splits.num_classes,
        input_shape=task.graph.input_shape,
        metadata={**(metadata or {}), **known},
    )
    checkpoint.unlink(missing_ok=True)
    return results


class _Run:
    """One fine-tuning: what it needs, and what it has reached."""

    def __init__(
        self,
        task: CompressionTask,
        plan: CompressionPlan,
        options: FinetuneOptions,
        identity: Mapping[str, Any],
    ) -> None:
        self.task, self.plan, self.options, self.identity = task, plan, options, identity
        images = TrainingImages(task.splits, task.spare, task.device)
        self.batch_size = sum(images.sizes(options))
        calibration, teacher = task.calibration.images, folded_copy(task.graph)
        self.training = QuantizedTraining(
            task.graph, plan, calibration, teacher, images, options, task.calibration_dtype
        )
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"accuracy": -1.0}
        self.stopped = ""
        self.seconds = self.first_loss = self.training_seconds = 0.0
        # Losses and shares of right predictions since the last look.
        self._since: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the training goes on."""
        return {
            "options": dict(self.identity),
            "training": self.training.state_dict(),
            "curve": self.curve,
            "best": self.best,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "first_loss": self.first_loss,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.training.load_state_dict(state["training"])
        self.curve, self.best = list(state["curve"]), dict(state["best"])
        self.seconds, self.first_loss = state["seconds"], state["first_loss"]
        self.training_seconds = state["training_seconds"]

    def train(self, checkpoint: Path) -> fx.GraphModule:
        """The steps that are left; the network that they lead to."""
        training = self.training
        if not self.curve:
            self._look(time.perf_counter())
        with tqdm(
            total=training.total_steps,
            initial=training.steps,
            desc=f"Fine-tuning {self.plan.network}",
            unit="step",
        ) as bar:
            self._show(bar)
            started = time.perf_counter()
            while training.steps < training.total_steps and not self.stopped:
                self._since.append(training.step())
                bar.update()
                looking = self._is_time_to_look()
                if looking or training.steps == 1 or training.steps % _WATCH_STEPS == 0:
                    self._watch(started)
                if looking and not self.stopped:
                    self._look(started)
                    self._show(bar)
                    if not self.stopped:  # else going on would not stop here once more
                        write_checkpoint(checkpoint, self.state_dict())
                    started = time.perf_counter()
        network = training.finished()
        if self.stopped:
            warnings.warn(self.stopped, RuntimeWarning, stacklevel=3)
            network.load_state_dict(self.best["network"])
        return network

    def results(self, network: nn.Module) -> dict[str, Any]:
        """The figures, with the look at the test split."""
        task, training = self.task, self.training
        test = task.splits.test
        before = compress(task.graph, self.plan, task.calibration.images, task.calibration_dtype)
        reached = self.best["accuracy"] if self.stopped else self.curve[-1]["search_accuracy"]
        steps = self.best["step"] if self.stopped else training.steps
        speed = training.steps * self.batch_size / max(self.training_seconds, 1e-9)
        return {
            "search_accuracy_before": self.curve[0]["search_accuracy"],
            "search_accuracy": reached,
            "dense_search_accuracy": self._evaluation(training.teacher).accuracy,
            "test_accuracy_before": evaluate_network(before, test, task.splits).accuracy,
            "test_accuracy": evaluate_network(network, test, task.splits).accuracy,
            "train_loss": self.curve[-1]["train_loss"],
            "train_accuracy": self.curve[-1]["train_accuracy"],
            "steps": steps,
            "epochs": steps / training.steps_per_epoch,
            "images_per_second": speed,
            "wall_seconds": self.seconds,
            "reduction": task.reduction(self.plan),
            "stopped": self.stopped,
        }

    def _is_time_to_look(self) -> bool:
        training = self.training
        return (
            training.steps == training.total_steps
            or training.steps % self.options.checkpoint_steps == 0
            or training.steps % training.steps_per_epoch == 0
        )

    def _watch(self, started: float) -> None:
        """Stop where the loss is no number or has grown out of all proportion."""
        recent = [loss for loss, _ in self._since[-_WATCH_STEPS:]]
        loss = float(torch.stack(recent).mean()) if recent else 0.0
        if self.training.steps == 1 and math.isfinite(loss):
            self.first_loss = loss
        limit = 2 * max(self.first_loss, math.log(self.task.splits.num_classes))
        if not loss <= limit:
            self._count_seconds(started)
            self._stop(f"the loss was {loss:.3g}")

    def _stop(self, why: str) -> None:
        if "step" not in self.best:
            raise ValueError(f"plan: {why} before any training")
        self.stopped = (
            f"learning_rate {self.options.learning_rate} is too high: {why} at step "
            f"{self.training.steps}. The network of step {self.best['step']} is kept"
        )

    def _look(self, started: float) -> None:
        """Note where the training stands, and remember the network if it is the best one."""
        means: list[float | None] = [None, None]
        if self._since:
            means = [float(torch.stack(column).mean()) for column in zip(*self._since, strict=True)]
            self._count_seconds(started)
        looked = time.perf_counter()
        network, steps = self.training.finished(), self.training.steps
        evaluation = self._evaluation(network)
        accuracy = evaluation.accuracy
        self.seconds += time.perf_counter() - looked
        self.curve.append(
            {
                "step": steps,
                "train_loss": means[0],
                "train_accuracy": means[1],
                "search_accuracy": accuracy,
                "wall_seconds": self.seconds,
            }
        )
        over = steps == self.training.total_steps or (means[0] or 0.0) > self.first_loss
        if not evaluation.logits.isfinite().all():
            self._stop("outputs were no numbers")
        elif accuracy >= self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "step": steps, "network": network.state_dict()}
        elif accuracy < self.best["accuracy"] / 2 and over:
            self._stop(f"the accuracy was {accuracy:.2%}")
        self._since.clear()

    def _show(self, bar: Any) -> None:
        last = self.curve[-1]
        loss = "" if last["train_loss"] is None else f"{last['train_loss']:.3f}"
        bar.set_postfix(loss=loss, accuracy=f"{last['search_accuracy']:.2%}")

    def _count_seconds(self, started: float) -> None:
        """Add the time of the steps since then."""
        seconds = time.perf_counter() - started
        self.training_seconds += seconds
        self.seconds += seconds

    def _evaluation(self, network: nn.Module) -> Evaluation:
        search = self.task.search
        return Evaluation(run_network(network, search.images), search.labels)
