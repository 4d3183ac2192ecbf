"""Everything about a compression task that does not change while a search runs.

A task is a dense network with its data, traced and counted; it evaluates plans on the search split,
and on the test split when asked. Environments, baselines and reports all stand on it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress_env.actions import ActionDecoder
from compress_env.calibration import CALIBRATION_DTYPES, fastest_dtype
from compress_env.checks import check_choice, check_count, check_network, check_path
from compress_env.complexity import Complexity, ComplexityModel, reduction
from compress_env.data import ImageSet, Splits, load_splits, normalize
from compress_env.datasets.image_sets import stratified_order
from compress_env.evaluation import Engine, Evaluation, Evaluator, FastEngine, ReferenceEngine
from compress_env.evaluation.finetuned import FinetunedEngine
from compress_env.finetune_options import FinetuneOptions
from compress_env.importance import IMPORTANCES, Importance, rank_channels
from compress_env.latency.cost import LatencyTableFile, latency_cost
from compress_env.layer_graph import LayerGraph, trace
from compress_env.network_training import ensure_digits_weights
from compress_env.networks import NETWORKS, build_network
from compress_env.networks.weights import default_weights, load_weights
from compress_env.plan import CompressionPlan
from compress_env.quantized_training import TrainingImages

EngineFactory = Callable[[LayerGraph, torch.Tensor], Engine]
"""`(layer graph, calibration images) -> engine`."""

ENGINES: dict[str, Callable[..., Engine]] = {"fast": FastEngine, "reference": ReferenceEngine}
"""Evaluation engines by name."""

_TEST_BYTES = 1 << 28
"""Bytes of the test images that are normalised at a time."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images as a network takes them.

    Attributes:
        images: float32 (n, 3, H, W), normalised, on the task's device.
        labels: int64 (n,), on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor


class CompressionTask:
    """A dense network, its data, and what plans for it cost and achieve.

    Args:
        network: name of a network, `"module.path:factory"`, or an `nn.Module` with its weights.
        dataset: name of a data set, or the splits themselves.
        data_root: folder of the data set, where it needs one.
        weights: file of the dense weights; None takes the published or embedded ones. Not to be
            given with an `nn.Module`.
        importance: criterion by name, or a callable.
        search_images: images of the search split that a plan is evaluated on (all, if fewer).
        calibration_images: images for BatchNorm and activation ranges. They come from what the
            search leaves of the search split or, where that is too little, from the train split.
        image_size: side of the images, for data sets that can be scaled.
        device: where the networks run: `"cpu"`, `"cuda"`, ...
        seed: of the splits and of the choice of images.
        engine: name of an engine of `ENGINES`, or a factory.
        finetune_steps: steps of training that a plan's network gets before it is evaluated, by
            `compress_env.evaluation.finetuned`; where there are any, `engine` is not used.
        calibration_dtype: in what plans are calibrated and, with `finetune_steps` on a CPU,
            trained, by name in `CALIBRATION_DTYPES`. An `engine` that is a factory decides for
            itself.

    Raises:
        ValueError: an argument is not allowed; the message names it.
    """

    def __init__(
        self,
        network: str | nn.Module = "resnet20",
        dataset: str | Splits = "digits",
        *,
        data_root: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        importance: str | Importance = "l1",
        search_images: int = 1000,
        calibration_images: int = 128,
        image_size: int | None = None,
        device: str = "cpu",
        seed: int = 0,
        engine: str | EngineFactory = "fast",
        finetune_steps: int = 0,
        calibration_dtype: str = "auto",
    ) -> None:
        check_count("search_images", search_images)
        check_count("calibration_images", calibration_images)
        check_count("seed", seed, least=0)
        check_count("finetune_steps", finetune_steps, least=0)
        check_choice("importance", importance, IMPORTANCES, own=True)
        check_choice("engine", engine, ENGINES, own=True)
        check_choice("calibration_dtype", calibration_dtype, CALIBRATION_DTYPES)
        check_path("data_root", data_root)
        check_path("weights", weights)
        if not isinstance(network, (str, nn.Module)):
            raise ValueError(f"network must be a name or an nn.Module, not {network!r}")
        if not isinstance(dataset, (str, Splits)):
            raise ValueError(f"dataset must be a name or Splits, not {dataset!r}")
        if isinstance(network, str) and ":" not in network and network not in NETWORKS:
            raise ValueError(
                f"network must be one of {', '.join(NETWORKS)} or 'module.path:factory', "
                f"not '{network}'"
            )
        self.device = _check_device(device)
        self.seed, self.finetune_steps = seed, finetune_steps
        self.splits = _load_splits(network, dataset, data_root, seed, image_size)
        self.network_name = network if isinstance(network, str) else type(network).__name__
        self.network = _load_network(network, self.splits, weights).to(self.device).eval()
        chosen = CALIBRATION_DTYPES[calibration_dtype]
        self.calibration_dtype = chosen or fastest_dtype(self.device)
        self._engine_factory: EngineFactory = (
            partial(ENGINES[engine], calibration_dtype=self.calibration_dtype)
            if isinstance(engine, str)
            else engine
        )
        search = self.splits.search.take(len(self.splits.search), seed)
        searched = search.take(search_images, seed)
        rest = len(search) - len(searched)
        if rest >= calibration_images:
            self._taken = len(searched) + calibration_images
            both = search.take(self._taken, seed)
            calibration = both.select(np.arange(len(searched), len(both)))
            searched = both.select(np.arange(len(searched)))
        else:
            self._taken = len(searched)
            calibration = self.splits.train.take(calibration_images, seed)
        # In the order that the engines want, which makes it the only copy.
        self.search = self._labelled(searched.images, searched.labels, torch.channels_last)
        self.calibration = self._labelled(calibration.images, calibration.labels)
        input_shape = tuple(self.search.images.shape[1:])
        self.graph = trace(self.network, input_shape)
        check_network(self.graph.module, self.calibration.images[:2])
        self.costs = ComplexityModel(self.graph)
        criterion = IMPORTANCES[importance] if isinstance(importance, str) else importance
        self.importance = criterion(
            self.graph, self.calibration.images, self.calibration.labels.to(self.device)
        )
        self.ranks = rank_channels(self.graph, self.importance)
        self.engine = self._engine()
        self.evaluator = Evaluator(self.engine, self.search.images, self.search.labels)

    def _engine(self) -> Engine:
        if self.finetune_steps == 0:
            return self._engine_factory(self.graph, self.calibration.images)
        # On a GPU the default is 16 bits; elsewhere the type that is fast for calibration is too.
        mixed = None if self.device.type == "cuda" else self.calibration_dtype == torch.bfloat16
        options = FinetuneOptions(steps=self.finetune_steps, mixed_precision=mixed, seed=self.seed)
        images = TrainingImages(self.splits, self.spare, self.device)
        return FinetunedEngine(
            self.graph,
            self.calibration.images,
            images,
            options,
            calibration_dtype=self.calibration_dtype,
        )

    def new_engine(self, calibration_images: torch.Tensor) -> Engine:
        """An engine like the task's, for other calibration images.

        Raises:
            ValueError: the task trains plans before it evaluates them.
        """
        if isinstance(self.engine, FinetunedEngine):
            raise ValueError("evaluate_every_step must be False where finetune_steps is not 0")
        return self._engine_factory(self.graph, calibration_images)

    def _labelled(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: torch.memory_format = torch.contiguous_format,
    ) -> LabelledImages:
        normalized = normalize(images, self.splits).to(self.device)
        return LabelledImages(
            normalized.contiguous(memory_format=order), torch.from_numpy(labels.copy())
        )

    @cached_property
    def spare(self) -> ImageSet:
        """What neither search nor calibration takes of the search split; may be empty."""
        order = stratified_order(self.splits.search.labels, self.seed)
        return self.splits.search.select(order[self._taken :])

    @cached_property
    def dense_plan(self) -> CompressionPlan:
        """The plan that changes nothing."""
        return CompressionPlan.dense(self.graph, self.network_name)

    @cached_property
    def dense_evaluation(self) -> Evaluation:
        """The dense network on the search split."""
        return self.evaluator.evaluate(self.dense_plan)

    def decoder(
        self,
        *,
        target_reduction: float,
        metric: str,
        bits: Sequence[int],
        first_last_bits: int | None,
        channel_multiple: int,
        latency_table: LatencyTableFile = None,
    ) -> ActionDecoder:
        """What turns actions into plans for this network, as `compress_env.env` describes them.

        Raises:
            ValueError: an argument is not allowed, or the target cannot be reached.
        """
        return ActionDecoder(
            self.graph,
            self.costs,
            self.ranks,
            bits=bits,
            metric=metric,
            target_reduction=target_reduction,
            first_last_bits=first_last_bits,
            channel_multiple=channel_multiple,
            network=self.network_name,
            cost=latency_cost(metric, latency_table, self.graph),
        )

    def complexity(self, plan: CompressionPlan) -> Complexity:
        """What a plan costs."""
        return self.costs.of_plan(self.graph, plan)

    def reduction(self, plan: CompressionPlan, metric: str = "bops") -> float:
        """Share of the dense cost that a plan saves."""
        return reduction(self.complexity(plan).of(metric), self.costs.dense.of(metric))

    def test(self, plan: CompressionPlan) -> Evaluation:
        """The plan's network on the test split. Look once, at the end."""
        test = self.splits.test
        images, labels, outputs = test.images, test.labels, []
        # All of ImageNet's at once would not fit into memory.
        count = max(1, _TEST_BYTES // (4 * images[0].size))
        for start in range(0, len(test), count):
            chosen = slice(start, start + count)
            part = self._labelled(images[chosen], labels[chosen], torch.channels_last)
            evaluator = Evaluator(self.engine, part.images, part.labels, cache_bytes=0)
            outputs.append(evaluator.evaluate(plan).logits)
        return Evaluation(torch.cat(outputs), torch.from_numpy(labels.copy()))


def _check_device(device: str | torch.device) -> torch.device:
    if not isinstance(device, (str, torch.device)):
        raise ValueError(f"device must be a name such as 'cpu' or 'cuda', not {device!r}")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device: '{device}' is not to be had here ({str(error).splitlines()[0]}); "
            "'cpu' always is"
        ) from error
    if found.type == "meta":
        raise ValueError("device: 'meta' holds no values; 'cpu' always is to be had")
    return found


def _load_splits(
    network: str | nn.Module,
    dataset: str | Splits,
    data_root: str | os.PathLike[str] | None,
    seed: int,
    image_size: int | None,
) -> Splits:
    if isinstance(dataset, Splits):
        if data_root is not None or image_size is not None:
            raise ValueError("data_root and image_size have no meaning where dataset is Splits")
        return dataset
    return load_splits(dataset, data_root, seed, image_size)


def _load_network(
    network: str | nn.Module, splits: Splits, weights: str | os.PathLike[str] | None
) -> nn.Module:
    if isinstance(network, nn.Module):
        if weights is not None:
            raise ValueError(
                "weights: load them into the nn.Module first, or give a network's name"
            )
        return network
    built = build_network(network, splits.num_classes)
    if weights is None:
        path = default_weights(network, splits.name)
        if path is None and splits.name == "digits" and network in NETWORKS:
            path = ensure_digits_weights(network)
        if path is None and ":" in network:
            warnings.warn(
                f"no weights given: '{network}' is used as its factory returns it", stacklevel=3
            )
            return built
        if path is None:
            raise ValueError(
                f"weights: there are no default weights for network '{network}' on dataset "
                f"'{splits.name}'; name a file, or train some: compress-agents train-network "
                f"--network {network} --dataset {splits.name}"
            )
    else:
        path = Path(weights)
    load_weights(built, path)
    return built
