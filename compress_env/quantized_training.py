"""Training of one plan's network: its state and its steps, without files or progress bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.exc import BackendCompilerFailed

from compress_env.calibration import calibrate
from compress_env.checks import logits_of
from compress_env.data import ImageSet, Splits, normalize
from compress_env.datasets.augmentation import augment
from compress_env.finetune_options import FinetuneOptions
from compress_env.layer_graph import LayerGraph
from compress_env.lsq import finished, keep_steps_positive, learnable
from compress_env.normalization import BatchNorm
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune
from compress_env.training_parts import Feed, seed_of

_MOMENTUM = 0.9
# How much more often than an image of the training split a spare image may be seen.
_MOST_REPEATS = 10


class TrainingImages:
    """Augmented batches of the training split, a share of each from spare images.

    Args:
        splits: the data set.
        spare: images of the search split that the search does not look at; may be empty.
        device: where batches are wanted.
    """

    def __init__(self, splits: Splits, spare: ImageSet, device: torch.device) -> None:
        self.splits, self.device = splits, device
        self.train = Feed(splits.train, device)
        self.spare = Feed(spare, device) if len(spare) else None
        self._latest_order: tuple[tuple[int, int], Tensor] | None = None

    def sizes(self, options: FinetuneOptions) -> tuple[int, int]:
        """How many images of a batch come from the training split and from the spare ones."""
        train, spare = len(self.train), len(self.spare or ())
        size = min(options.batch_size, train)
        most = _MOST_REPEATS * spare / (_MOST_REPEATS * spare + train)
        # At least one of the training split, or an epoch would have no end.
        spared = min(round(size * min(options.spare_fraction, most)), size - 1)
        return size - spared, spared

    def steps_per_epoch(self, options: FinetuneOptions) -> int:
        """Steps in which every image of the training split is seen once; the rest is left out."""
        return len(self.train) // self.sizes(options)[0]

    def batch(self, options: FinetuneOptions, step: int) -> tuple[Tensor, Tensor]:
        """The images of a step, which depend on nothing but the options and the step.

        Returns:
            float32 (B, 3, H, W), normalised, and labels int64 (B,), both on the device.
        """
        size, spared = self.sizes(options)
        epoch, position = divmod(step, self.steps_per_epoch(options))
        order = self._order(options.seed, epoch)
        generator = torch.Generator().manual_seed(seed_of(options.seed, step, 1))
        images, labels = self.train.batch(order[position * size : (position + 1) * size])
        if self.spare is not None and spared:
            chosen = torch.randint(len(self.spare), (spared,), generator=generator)
            more, their_labels = self.spare.batch(chosen)
            images, labels = torch.cat([images, more]), torch.cat([labels, their_labels])
        changed = augment(images, self.splits.mirror, generator)
        inputs = normalize(changed, self.splits).contiguous(memory_format=torch.channels_last)
        return inputs, labels

    def _order(self, seed: int, epoch: int) -> Tensor:
        """The order of the training split in an epoch; the latest one is remembered."""
        if self._latest_order is None or self._latest_order[0] != (seed, epoch):
            generator = torch.Generator().manual_seed(seed_of(seed, epoch, 0))
            order = torch.randperm(len(self.train), generator=generator)
            self._latest_order = (seed, epoch), order
        return self._latest_order[1]


class QuantizedTraining:
    """A plan's network while it learns, from the network that the plan means without training.

    BatchNorm stays unfolded and goes on gathering statistics; it is folded when the network is
    finished, which changes no code, because it is a factor on the scales. (ResNet-20 at 3 bits
    diverges at the default learning rate where the statistics are held, and reaches 97% of the
    search split in 150 steps so; estimating them anew afterwards on few images loses points.)

    Args:
        graph: layer graph of the dense network.
        plan: a plan for it.
        calibration_images: float32 (images, channels, height, width), normalised.
        teacher: what `folded_copy` gives for the graph.
        images: what it learns from.
        options: how.
        calibration_dtype: in what the plan is calibrated, as in `compress_env.compress`.

    Raises:
        ValueError: by the first step, if `options.compile` is set and there is no C++ compiler.
    """

    def __init__(
        self,
        graph: LayerGraph,
        plan: CompressionPlan,
        calibration_images: Tensor,
        teacher: nn.Module,
        images: TrainingImages,
        options: FinetuneOptions,
        calibration_dtype: torch.dtype | None = None,
    ) -> None:
        self.graph, self.teacher, self.images, self.options = graph, teacher, images, options
        kept = plan.kept_atoms(graph)
        small = prune(graph, kept)
        changed = not bool(kept.all())
        samples = calibrate(small, graph, calibration_images, changed, dtype=calibration_dtype)
        self.network = learnable(small, graph, plan, samples).requires_grad_(True)
        self.network.to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.network) if options.compile else self.network
        self.optimizer = _optimizer(self.network, options)
        device = images.device
        mixed = options.mixed_precision
        self.mixed = device.type == "cuda" if mixed is None else mixed
        self.precision = torch.float16 if device.type == "cuda" else torch.bfloat16
        scaled = self.mixed and self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.steps_per_epoch = images.steps_per_epoch(options)
        self.total_steps = options.steps or options.epochs * self.steps_per_epoch
        self.steps = 0

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step.

        Returns:
            The loss and the share of correct predictions, both () on the device. They are not
            looked at here: the loss may be infinite or no number.
        """
        options, device = self.options, self.images.device
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate_at(self.steps / self.total_steps)
        inputs, labels = self.images.batch(options, self.steps)
        self.network.train()
        own = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(own), torch.autocast(device.type, self.precision, self.mixed):
            torch.manual_seed(seed_of(options.seed, self.steps, 2))  # for dropout
            logits = self._logits(inputs)
            with torch.no_grad():
                wanted = logits_of(self.teacher(inputs)) if options.distill > 0 else None
        loss = finetuning_loss(logits.float(), labels, wanted, options)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        keep_steps_positive(self.network)
        self.steps += 1
        correct = (logits.detach().argmax(1) == labels).float().mean()
        return loss.detach(), correct

    def _logits(self, inputs: Tensor) -> Tensor:
        try:
            return logits_of(self.forward(inputs))
        except BackendCompilerFailed as error:
            raise ValueError(f"compile needs a working C++ compiler: {error}") from error

    def finished(self) -> fx.GraphModule:
        """The network on integer codes as of now: a copy of its own, ready to be evaluated."""
        network = finished(self.network, self.graph)
        network.to(memory_format=torch.channels_last)
        return network

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the training goes on."""
        return {
            "steps": self.steps,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.steps = int(state["steps"])


def finetuning_loss(
    logits: Tensor, labels: Tensor, wanted: Tensor | None, options: FinetuneOptions
) -> Tensor:
    """Cross-entropy with the labels, mixed with the divergence from the dense network's outputs.

    Args:
        logits: float32 (B, classes).
        labels: int64 (B,).
        wanted: outputs of the dense network, (B, classes); None where `options.distill` is 0.
        options: the shares, the temperature and the smoothing.
    """
    if wanted is None:
        return F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
    heat = options.temperature
    ours = F.log_softmax(logits / heat, 1)
    theirs = F.log_softmax(wanted.float() / heat, 1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * heat**2
    if options.distill == 1:
        return divergence
    entropy = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
    return options.distill * divergence + (1 - options.distill) * entropy


def folded_copy(graph: LayerGraph) -> fx.GraphModule:
    """The dense network with BatchNorm folded into its convolutions: faster, as a teacher."""
    everything = CompressionPlan.dense(graph).kept_atoms(graph)
    network = prune(graph, everything)
    for layer, norm in graph.folds.items():
        conv, batch_norm = network.get_submodule(layer), network.get_submodule(norm)
        if isinstance(conv, nn.Conv2d) and isinstance(batch_norm, BatchNorm):
            fused = nn.utils.fuse_conv_bn_eval(conv, batch_norm)
            network.set_submodule(layer, fused)
            network.set_submodule(norm, nn.Identity())
    network.to(memory_format=torch.channels_last)
    return network.requires_grad_(False).eval()


def _optimizer(network: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM, nesterov=True)
