"""An engine that trains a plan's network for some steps before it runs it."""

from __future__ import annotations

import torch

from compress_env.compression import compress
from compress_env.evaluation.cache import BoundedCache
from compress_env.evaluation.networks import run_network
from compress_env.finetune_options import FinetuneOptions
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan
from compress_env.quantized_training import QuantizedTraining, TrainingImages, folded_copy


class FinetunedEngine:
    """Runs a plan's network after a short fine-tuning, always the same one for the same plan.

    The plan that changes nothing is not trained. A training that ends in a loss that is no number
    leaves the network as it was.

    Args:
        graph: layer graph of the dense network.
        calibration_images: float32 (images, channels, height, width), normalised.
        images: what to train on.
        options: how; `options.steps` is the number of steps.
        batch_size: images per forward pass in the evaluation.
        calibration_dtype: in what plans are calibrated, as in `compress_env.compress`.
    """

    def __init__(
        self,
        graph: LayerGraph,
        calibration_images: torch.Tensor,
        images: TrainingImages,
        options: FinetuneOptions,
        batch_size: int = 100,
        calibration_dtype: torch.dtype | None = None,
    ) -> None:
        self.graph, self.calibration_images = graph, calibration_images
        self.images, self.options, self.batch_size = images, options, batch_size
        self.calibration_dtype = calibration_dtype
        self.teacher = folded_copy(graph)
        self._dense = CompressionPlan.dense(graph).key()
        # The network trained last, for whoever runs it on several portions of images.
        self._trained: BoundedCache[torch.nn.Module] = BoundedCache(1)

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs of the plan's network after fine-tuning: float32 (images, classes)."""
        with torch.inference_mode(False), torch.enable_grad():
            network = self._trained.get(plan.key(), lambda: self._network(plan))
        return run_network(network, images, self.batch_size)

    def _network(self, plan: CompressionPlan) -> torch.nn.Module:
        if plan.key() == self._dense:
            return compress(self.graph, plan, self.calibration_images, self.calibration_dtype)
        training = QuantizedTraining(
            self.graph,
            plan,
            self.calibration_images,
            self.teacher,
            self.images,
            self.options,
            self.calibration_dtype,
        )
        untrained = training.finished()
        losses = [training.step()[0] for _ in range(training.total_steps)]
        return training.finished() if torch.stack(losses).isfinite().all() else untrained
