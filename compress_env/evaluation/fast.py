"""The fast engine: the same integers as the reference, at the speed of integer convolutions.

`compress_env.evaluation.preparing` builds a plan's layers, `compress_env.evaluation.running` runs
them; here is what is remembered between plans, and how batches are spread over threads.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

import numpy as np
import torch

from compress_env.calibration import calibrate, check_dtype, fastest_dtype
from compress_env.checks import check_count
from compress_env.evaluation.cache import BoundedCache, state_of
from compress_env.evaluation.devices import convolution_precision
from compress_env.evaluation.preparing import Prepared, Preparer, Pruned
from compress_env.evaluation.running import result_of, run_steps
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan
from compress_env.program import Program
from compress_env.pruning import pruned_modules
from compress_env.workers import Workers, threads_for

BATCH_BYTES = 1 << 19
"""Bytes of one input batch per thread, so that the tensors of a layer stay in the cache."""

DEVICE_BATCH_BYTES = 1 << 28
"""Bytes of the largest value of a batch on a GPU, which wants much to do at once."""

_LEAST_BATCH = 8


class FastEngine:
    """Runs plans on integer kernels; falls back to exact float arithmetic layer by layer.

    It may be used from several threads, which then take turns. Where the dense network's weights
    change, what is known of plans is forgotten.

    Args:
        graph: layer graph of the dense network.
        calibration_images: float32 (images, channels, height, width), normalised.
        batch_size: images per batch and thread; chosen from the image size by default.
        cache_bytes: memory for weight codes, and again for pruned networks, seen before.
        calibration_dtype: in what plans are calibrated, float32 or bfloat16; None takes
            `compress_env.calibration.fastest_dtype`.

    Raises:
        ValueError: an argument is not allowed; the message names it.
    """

    def __init__(
        self,
        graph: LayerGraph,
        calibration_images: torch.Tensor,
        batch_size: int | None = None,
        cache_bytes: int = 1 << 27,
        calibration_dtype: torch.dtype | None = None,
    ) -> None:
        if calibration_images.dim() != 4 or len(calibration_images) == 0:
            raise ValueError(
                "calibration_images must be (images, channels, height, width), not empty"
            )
        if batch_size is not None:
            check_count("batch_size", batch_size)
        check_count("cache_bytes", cache_bytes, least=0)
        self.graph = graph
        self.calibration_images = calibration_images
        self.calibration_dtype = calibration_dtype or fastest_dtype(calibration_images.device)
        check_dtype(self.calibration_dtype)
        # As calibration wants them, so that no plan has to wait for that.
        self._calibration = calibration_images.to(
            dtype=self.calibration_dtype, memory_format=torch.channels_last
        )
        self.batch_size = batch_size or _batch_size(graph, calibration_images.device)
        self.program = Program(graph)
        self.preparer = Preparer(
            graph, self.program, self.batch_size, calibration_images.device, cache_bytes
        )
        self._networks: BoundedCache[Pruned] = BoundedCache(cache_bytes)
        self.workers = Workers()
        self.lock = RLock()
        self._state = state_of(graph.module)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "program": None, "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Its steps are nodes of the graph, and a copy of the graph has nodes of its own.
        self.program = Program(self.graph)
        self.lock = RLock()

    def forget(self) -> None:
        """Drop everything remembered about earlier plans."""
        with self.lock:
            for cache in (self.preparer.weights, self._networks):
                cache.clear()

    def current_state(self) -> int:
        """The state of the dense network's weights. What is known of earlier ones is forgotten."""
        with self.lock:
            state = state_of(self.graph.module)
            if state != self._state:
                self.forget()
                self._state = state
            return state

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs of the plan's network: float32 (images, classes).

        Images in channels-last order need not be copied.
        """
        with (
            self.lock,
            torch.inference_mode(),
            convolution_precision(images.device, tensor_cores=False),
        ):
            prepared = self.prepare(plan)

            def run(batch: torch.Tensor) -> torch.Tensor:
                with torch.inference_mode():
                    values = {self.program.input: batch}
                    return result_of(self.program, run_steps(prepared, self.program.steps, values))

            threads = threads_for(images.device)
            batches = split(images, self.batch_size, threads)
            outputs = self.workers.map(run, batches, threads)
            found = torch.cat(outputs)
        return found.clone()  # which, not made in inference mode, may take part in training

    def prepare(self, plan: CompressionPlan) -> Prepared:
        """Build, calibrate and quantize a plan's network."""
        with self.lock, torch.inference_mode():
            self.current_state()
            kept = plan.kept_atoms(self.graph)
            key = kept.tobytes()
            pruned: Pruned = self._networks.get(key, lambda: self._prune(kept))
            prepared = self.preparer.prepare(plan, pruned)
            self._networks.weigh(key)  # it now holds what was made for this plan
            return prepared

    def _prune(self, kept: np.ndarray) -> Pruned:
        modules = pruned_modules(self.graph, kept)
        changed = not bool(kept.all())
        samples = calibrate(
            modules,
            self.graph,
            self._calibration,
            changed,
            self.program,
            self.calibration_dtype,
        )
        return Pruned(kept, modules, samples)


def split(images: torch.Tensor, batch_size: int, threads: int) -> tuple[torch.Tensor, ...]:
    """Batches of about one size, in channels-last order, with work for every thread."""
    count = max(1, round(len(images) / batch_size))
    count = -(-count // threads) * threads
    size = max(-(-len(images) // count), min(_LEAST_BATCH, batch_size))
    batches: tuple[torch.Tensor, ...] = images.contiguous(memory_format=torch.channels_last).split(
        size
    )
    return batches


def _batch_size(graph: LayerGraph, device: torch.device) -> int:
    image_bytes = 4 * int(np.prod(graph.input_shape))
    if device.type == "cpu":
        return max(1, min(125, BATCH_BYTES * 3 // image_bytes))
    largest = max(
        (4 * int(np.prod(shape[1:])) for shape in map(_shape, graph.module.graph.nodes) if shape),
        default=image_bytes,
    )
    return max(1, DEVICE_BATCH_BYTES // max(image_bytes, largest))


def _shape(node: Any) -> tuple[int, ...] | None:
    shape = node.meta.get("shapes")
    return shape if isinstance(shape, tuple) else None
