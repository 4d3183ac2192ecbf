"""Training of the dense network that is compressed afterwards."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from .checks import logits_of
from .data import ImageSet, Splits, load_splits, normalize
from .datasets.augmentation import augment
from .datasets.cache import cache_folder, locked
from .networks import NETWORKS, build_network
from .networks.weights import default_weights, read_metadata, save_weights
from .training_options import NetworkTraining
from .training_parts import Feed, check_same, read_checkpoint, seed_of, write_checkpoint

__all__ = ["NetworkTraining", "accuracy", "ensure_digits_weights", "train_network"]

_EVALUATION_BATCH = 250
# Options that may differ between an interrupted training and the one that goes on with it.
_MOVABLE = {"data_root", "device"}


def train_network(
    options: NetworkTraining, out_path: str | os.PathLike[str], resume: bool = False
) -> dict[str, float]:
    """Train a network, and save it with what is known about it.

    After every epoch the state is written beside ``out_path``; a training that was interrupted
    and resumed gives the same weights, on a CPU to the last bit, as one that was not. The random
    numbers of an epoch depend on nothing but seed and epoch.

    Args:
        options: what to train and how.
        out_path: the ``.safetensors`` file to write. Its metadata are strings: ``command``,
            ``network``, ``dataset``, ``num_classes``, ``seed``, ``options`` and the results (JSON).
        resume: go on from an interrupted training, or return the results of a finished one;
            start where there is neither.

    Returns:
        ``train_loss`` of the last epoch, ``search_accuracy``, ``test_accuracy`` (from 0 to 1; the
        test split is looked at once, at the end), ``epochs``, ``wall_seconds``.

    Raises:
        ValueError: an option is not allowed, or there is the state of another training, or of an
            interrupted one although ``resume`` is not set.
    """
    out = Path(out_path)
    if out.suffix != ".safetensors":
        raise ValueError(f"out_path must end in .safetensors, got {out}")
    if resume and out.is_file():
        return _finished_results(out, options)
    checkpoint = out.with_suffix(".checkpoint")
    state = read_checkpoint(checkpoint, _identity(options), resume)
    device = _device(options.device)
    splits = load_splits(options.dataset, options.data_root, options.seed, options.image_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        run = _Run(options, splits, device)
        if state is not None:
            run.load_state_dict(state)
        run.train(checkpoint)
    results = run.results()
    metadata = {
        "command": options.command(),
        "network": options.network,
        "dataset": options.dataset,
        "num_classes": str(splits.num_classes),
        "seed": str(options.seed),
        "options": json.dumps(asdict(options)),
        "results": json.dumps(results),
    }
    save_weights(run.network, out, metadata)
    checkpoint.unlink(missing_ok=True)
    return results


def ensure_digits_weights(network_name: str) -> Path:
    """The weights of a network on the digits: embedded, or trained at the first call.

    Training takes from seconds to a few minutes and happens once; the file is kept in the cache
    folder.

    Args:
        network_name: a key of ``NETWORKS``, made for small images.

    Raises:
        ValueError: it is not such a network.
    """
    embedded = default_weights(network_name, "digits")
    if embedded is not None:
        return embedded
    small = [name for name, spec in NETWORKS.items() if spec.image_size <= 32]
    if network_name not in small:
        raise ValueError(
            f"weights must name a file for network {network_name!r} on dataset 'digits'; they "
            f"can be left out for {', '.join(small)}"
        )
    options = NetworkTraining(network_name, "digits")
    recipe = hashlib.sha256(options.command().encode()).hexdigest()[:8]
    path = cache_folder() / "weights" / f"{network_name}-digits-{recipe}.safetensors"
    if not path.is_file():
        with locked(path.stem):
            print(f"Training {network_name} on the digits, once, into {path}", file=sys.stderr)
            train_network(options, path, resume=True)
    return path


@torch.no_grad()
def accuracy(network: nn.Module, images: ImageSet, splits: Splits) -> float:
    """Share of the images that a network gets right, from 0 to 1, on the network's device."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    right = 0
    for start in range(0, len(images), _EVALUATION_BATCH):
        chosen = slice(start, start + _EVALUATION_BATCH)
        batch = normalize(torch.from_numpy(np.array(images.images[chosen])).to(device), splits)
        guesses = logits_of(network(batch)).argmax(1).cpu().numpy()
        right += int((guesses == images.labels[chosen]).sum())
    network.train(training)
    return right / len(images)


class _Run:
    """One training: what it needs, and what it has reached."""

    def __init__(self, options: NetworkTraining, splits: Splits, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        network = build_network(options.network, splits.num_classes)
        self.options, self.splits, self.device = options, splits, device
        self.batch_size = options.batch_size_for(len(splits.train))
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.epoch = 0
        self.figures = {"train_loss": math.nan, "search_accuracy": 0.0, "wall_seconds": 0.0}

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the training goes on."""
        return {
            "options": asdict(self.options),
            "epoch": self.epoch,
            "figures": self.figures,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where ``state_dict`` was called."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.figures = state["epoch"], dict(state["figures"])

    def train(self, checkpoint: Path) -> None:
        """The epochs that are left, each followed by a look at the search split."""
        feed = Feed(self.splits.train, self.device)
        steps = len(self.splits.train) // self.batch_size
        with tqdm(
            total=self.options.epochs * steps,
            initial=self.epoch * steps,
            desc=f"Training {self.options.network}",
            unit="step",
        ) as bar:
            while self.epoch < self.options.epochs:
                started = time.perf_counter()
                loss = self._run_epoch(feed, steps, bar)
                if not math.isfinite(loss):
                    raise ValueError(
                        f"learning_rate {self.options.learning_rate} is too high: the loss is no "
                        f"number any more in epoch {self.epoch + 1}"
                    )
                reached = accuracy(self.network, self.splits.search, self.splits)
                seconds = self.figures["wall_seconds"] + time.perf_counter() - started
                self.figures = {
                    "train_loss": loss,
                    "search_accuracy": reached,
                    "wall_seconds": seconds,
                }
                self.epoch += 1
                bar.set_postfix(epoch=self.epoch, loss=f"{loss:.3f}", accuracy=f"{reached:.2%}")
                write_checkpoint(checkpoint, self.state_dict())

    def results(self) -> dict[str, float]:
        """The figures of the last epoch and the look at the test split."""
        tested = accuracy(self.network, self.splits.test, self.splits)
        return {**self.figures, "test_accuracy": tested, "epochs": float(self.epoch)}

    def _run_epoch(self, feed: Feed, steps: int, bar: Any) -> float:
        options, size = self.options, self.batch_size
        # Seeded anew in every epoch, so that there is no random state to carry along.
        seed = seed_of(options.seed, self.epoch)
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # for dropout
        order = torch.randperm(len(self.splits.train), generator=generator)
        total = torch.zeros((), device=self.device)
        self.network.train()
        for step in range(steps):
            progress = (self.epoch + step / steps) / options.epochs
            rate = options.learning_rate_at(progress, size)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            images, labels = feed.batch(order[step * size : (step + 1) * size])
            inputs = normalize(augment(images, self.splits.mirror, generator), self.splits)
            with torch.autocast(self.device.type, enabled=self.scaler.is_enabled()):
                logits = logits_of(self.network(inputs))
                loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
            bar.update()
        return float(total) / steps


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here; 'cpu' always is") from error


def _finished_results(path: Path, options: NetworkTraining) -> dict[str, float]:
    metadata = read_metadata(path)
    if "options" not in metadata or "results" not in metadata:
        raise ValueError(f"out_path {path} exists and does not come from a training")
    check_same(path, json.loads(metadata["options"]), _identity(options))
    return dict(json.loads(metadata["results"]))


def _identity(options: NetworkTraining) -> dict[str, Any]:
    """The options that an interrupted training and the one that goes on with it share."""
    return {name: value for name, value in asdict(options).items() if name not in _MOVABLE}
