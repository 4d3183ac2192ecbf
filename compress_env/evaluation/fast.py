"""The fast engine: the same integers as the reference, at the speed of integer convolutions.

Per plan nothing is traced or compiled: layers are cut from the dense weights, their codes come from
a cache, and the steps of `compress_env.program` run on 8-bit codes wherever a layer
feeds only quantized layers. The residual stream stays float32, as in the reference. Batches are
spread over threads, each of which runs its operations alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress_env.calibration import BatchNorm, calibrate
from compress_env.compression import norm_as_affine
from compress_env.evaluation.cache import BoundedCache
from compress_env.evaluation.evaluator import logits_of
from compress_env.evaluation.kernels import (
    SIGNED_ZERO_POINT,
    CodeFormat,
    IntegerConv,
    integer_kernels,
    is_exact,
    is_supported,
    pack,
)
from compress_env.layer_graph import LayerGraph
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.program import LayerStep, Program, run_plain
from compress_env.pruning import pruned_modules
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
    quantize_weights,
)

BATCH_BYTES = 1 << 19
"""Bytes of one input batch per thread, so that the tensors of a layer stay in the cache."""


@dataclass(eq=False)
class Prepared:
    """A plan's network, ready to run.

    Attributes:
        layers: for every layer an integer convolution, or a module on floats.
        modules: everything else by name.
    """

    layers: list[IntegerConv | nn.Module]
    modules: Callable[[str], Any]


@dataclass(eq=False)
class _Pruned:
    """What depends on the kept channels alone: the calibrated network in float32."""

    modules: dict[str, Any]
    samples: list[torch.Tensor]
    scales: dict[tuple[int, int], torch.Tensor]


class FastEngine:
    """Runs plans on integer kernels; falls back to exact float arithmetic layer by layer.

    Args:
        graph: layer graph of the dense network.
        calibration_images: float32 (images, channels, height, width), normalised.
        batch_size: images per batch and thread; chosen from the image size by default.
        cache_bytes: memory for weight codes, and again for pruned networks, seen before.
    """

    def __init__(
        self,
        graph: LayerGraph,
        calibration_images: torch.Tensor,
        batch_size: int | None = None,
        cache_bytes: int = 1 << 27,
    ) -> None:
        self.graph = graph
        self.calibration_images = calibration_images
        image_bytes = 4 * int(np.prod(graph.input_shape))
        self.batch_size = batch_size or max(1, min(125, BATCH_BYTES * 3 // image_bytes))
        self.program = Program(graph)
        self._input_sizes = _input_sizes(graph)
        self._fused = {s.layer for s in self.program.steps if isinstance(s, LayerStep)}
        self._weights: BoundedCache[Any] = BoundedCache(cache_bytes)
        self._networks: BoundedCache[_Pruned] = BoundedCache(cache_bytes)
        # The images that were seen last, of whatever size.
        self._images: BoundedCache[Any] = BoundedCache(1)
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "program": None, "_pool": None, "_threads": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Its steps are nodes of the graph, and a copy of the graph has nodes of its own.
        self.program = Program(self.graph)

    def forget(self) -> None:
        """Drop everything remembered about earlier plans and images."""
        for cache in (self._weights, self._networks, self._images):
            cache.clear()

    # -- running -----------------------------------------------------------------------------

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs of the plan's network: float32 (images, classes)."""
        with torch.inference_mode():
            prepared = self.prepare(plan)
            batches = self._batches(images)

            def run(batch: torch.Tensor) -> torch.Tensor:
                with torch.inference_mode():
                    return self._run(prepared, batch)

            threads = torch.get_num_threads() if images.device.type == "cpu" else 1
            if threads == 1 or len(batches) == 1:
                outputs = [run(batch) for batch in batches]
            else:
                outputs = list(self._workers(threads).map(run, batches))
            return torch.cat(outputs).clone()

    def _batches(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Equal batches in channels-last order; remembered for the images seen last."""
        key = (images.data_ptr(), tuple(images.shape), images._version)

        def make() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            count = max(1, round(len(images) / self.batch_size))
            size = -(-len(images) // count)
            parts = images.contiguous(memory_format=torch.channels_last).split(size)
            return images, parts  # the images are held so that their address stays theirs

        batches: tuple[torch.Tensor, ...] = self._images.get(key, make)[1]
        return batches

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        """Threads that run their operations alone."""
        if self._pool is None or self._threads != threads:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool, self._threads = ThreadPoolExecutor(threads), threads
            started = Barrier(threads)

            def alone() -> None:
                torch.set_num_threads(1)
                started.wait()

            for job in [self._pool.submit(alone) for _ in range(threads)]:
                job.result()
            torch.set_num_threads(threads)  # the setting of threads started later
        return self._pool

    def _run(self, prepared: Prepared, batch: torch.Tensor) -> torch.Tensor:
        values: dict[fx.Node, Any] = {self.program.input: batch}
        for step in self.program.steps:
            if isinstance(step, LayerStep):
                values[step.target] = _run_layer(prepared.layers, step, values)
            else:
                values[step.node] = run_plain(step.node, values, prepared.modules)
            for node in step.dead:
                del values[node]
        result = fx.node.map_arg(self.program.result, lambda node: values[node])
        return logits_of(result)

    # -- preparing ---------------------------------------------------------------------------

    def prepare(self, plan: CompressionPlan) -> Prepared:
        """Build, calibrate and quantize a plan's network."""
        kept = plan.kept_atoms(self.graph)
        pruned: _Pruned = self._networks.get(kept.tobytes(), lambda: self._prune(kept))
        self._fill_scales(pruned, plan)
        layers = [self._layer(index, plan, pruned, kept) for index in range(len(self.graph.layers))]
        # A layer that is used twice is in no fused step: it is called by its name.
        shared = {
            self.graph.layers[index].name: layer
            for index, layer in enumerate(layers)
            if index not in self._fused
        }
        return Prepared(layers, {**pruned.modules, **shared}.__getitem__)

    def _prune(self, kept: np.ndarray) -> _Pruned:
        modules = pruned_modules(self.graph, kept)
        changed = not bool(kept.all())
        samples = calibrate(modules, self.graph, self.calibration_images, changed, self.program)
        return _Pruned(modules, samples, {})

    def _fill_scales(self, pruned: _Pruned, plan: CompressionPlan) -> None:
        """Choose the activation scales that are still missing, all at once."""
        wanted = [
            (index, int(bits))
            for index, bits in enumerate(plan.activation_bits)
            if bits < FLOAT_BITS and (index, int(bits)) not in pruned.scales
        ]
        if not wanted:
            return
        layers = self.graph.layers
        levels = [highest_level(bits, not layers[i].input_nonnegative) for i, bits in wanted]
        scales = activation_scales([pruned.samples[index] for index, _ in wanted], levels)
        pruned.scales.update(zip(wanted, scales, strict=True))

    def _layer(
        self, index: int, plan: CompressionPlan, pruned: _Pruned, kept: np.ndarray
    ) -> IntegerConv | nn.Module:
        layer = self.graph.layers[index]
        weight_bits = int(plan.weight_bits[index])
        activation_bits = int(plan.activation_bits[index])
        module = pruned.modules[layer.name]
        factor = offset = None
        if layer.name in self.graph.folds:
            norm = pruned.modules[self.graph.folds[layer.name]]
            assert isinstance(norm, BatchNorm)
            factor, offset = norm_as_affine(norm)
        scale = pruned.scales.get((index, activation_bits), torch.ones(()))
        if (
            isinstance(module, nn.Conv2d)
            and index in self._fused
            and is_supported(module)
            and max(weight_bits, activation_bits) < FLOAT_BITS
            and module.weight.device.type == "cpu"
        ):
            channels = kept[layer.in_atoms].tobytes() + kept[layer.out_atoms].tobytes()
            key = (index, weight_bits, channels)
            codes, weight_scale = self._weights.get(
                key, lambda: _integer_codes(module.weight, weight_bits)
            )
            if factor is not None and offset is not None:
                weight_scale = weight_scale * factor
                bias = offset if module.bias is None else module.bias * factor + offset
            else:
                bias = torch.zeros_like(weight_scale) if module.bias is None else module.bias
            shape = _code_format(float(scale), activation_bits, layer.input_nonnegative)
            if is_exact(codes, shape):
                inputs = [self.batch_size, module.in_channels, *self._input_sizes[index]]
                return pack(module, codes, weight_scale, bias.detach().float(), shape, inputs)
        return QuantizedLayer(
            copy.deepcopy(module),
            weight_bits,
            activation_bits,
            scale,
            layer.input_nonnegative,
            factor,
            offset,
        )


def _run_layer(
    layers: list[IntegerConv | nn.Module], step: LayerStep, values: dict[fx.Node, Any]
) -> torch.Tensor:
    layer, x = layers[step.layer], values[step.source]
    if not isinstance(layer, IntegerConv):
        y = layer(x)
        if step.residual is not None:
            y = y + values[step.residual]
        return torch.relu_(y) if step.relu else y
    codes = x if x.dtype == torch.uint8 else _codes(x, layer.input)
    if step.residual is not None:
        return layer.add_to(_dense_residual(values[step.residual]), codes, step.relu)
    output = _common_format(layers, step.readers)
    # oneDNN adds a zero point before it rounds, which is not what the definition says.
    if output is None or output.zero_point != 0:
        return layer.to_float(codes, step.relu)
    return layer.to_codes(codes, step.relu, output)


def _codes(x: torch.Tensor, shape: CodeFormat) -> torch.Tensor:
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    return integer_kernels().quantize(x, shape)


def _dense_residual(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _common_format(
    layers: list[IntegerConv | nn.Module], readers: tuple[int, ...] | None
) -> CodeFormat | None:
    """The code format that all readers want, if they are integer layers and want the same."""
    formats = set()
    for reader in readers or ():
        layer = layers[reader]
        formats.add(layer.input if isinstance(layer, IntegerConv) else None)
    return formats.pop() if len(formats) == 1 else None


def _integer_codes(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = quantize_weights(weight.contiguous(), bits)
    return codes.to(torch.int8), scale


def _code_format(scale: float, bits: int, nonnegative: bool) -> CodeFormat:
    high = highest_level(bits, signed=not nonnegative)
    if nonnegative:
        return CodeFormat(scale, 0, 0, high)
    return CodeFormat(scale, SIGNED_ZERO_POINT, SIGNED_ZERO_POINT - high, SIGNED_ZERO_POINT + high)


def _input_sizes(graph: LayerGraph) -> dict[int, tuple[int, ...]]:
    """Height and width of the inputs of convolutions, from the trace."""
    sizes = {}
    for node in graph.module.graph.nodes:
        index = graph.layer_index.get(str(node.target)) if node.op == "call_module" else None
        if index is not None:
            sizes[index] = tuple(node.args[0].meta["shapes"][2:])
    return sizes
