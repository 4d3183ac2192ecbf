"""From a plan to layers that are ready to run: the half of the fast engine that builds.

Nothing is traced or compiled per plan: layers are cut from the dense weights, and their codes come
from a cache.
"""

from __future__ import annotations

import copy
from bisect import bisect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from compress_env.evaluation.cache import BoundedCache
from compress_env.evaluation.devices import CodeConv, tensor_cores_are_exact
from compress_env.evaluation.kernels import (
    SIGNED_ZERO_POINT,
    CodeFormat,
    IntegerConv,
    is_exact,
    is_supported,
    pack,
)
from compress_env.layer_graph import LayerGraph
from compress_env.normalization import BatchNorm, folded, norm_as_affine
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.program import LayerStep, Program
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
    quantize_weights,
)

Codes = tuple[torch.Tensor, torch.Tensor]
"""Weight codes, int8, shaped like the weights, and their scales, float32 (out,)."""

_VALUES_AT_ONCE = 1 << 16
"""Weights that are quantized together, as long as they fit the cache with all that is tried."""


@dataclass(eq=False)
class Prepared:
    """A plan's network, ready to run.

    Attributes:
        layers: by index, an integer convolution, or a module on floats.
        modules: gives everything else by name.
    """

    layers: dict[int, IntegerConv | nn.Module]
    modules: Callable[[str], Any]


@dataclass(eq=False)
class Pruned:
    """What depends on the kept channels alone: the calibrated network in float32.

    Attributes:
        kept: bool (atoms,).
        modules: its modules and tensors by name.
        samples: by layer, magnitudes of values of its input.
        scales: activation scales that were chosen so far, by layer and bits.
        floats: layers that a plan leaves in float, with their BatchNorm folded in, by index.
    """

    kept: np.ndarray
    modules: dict[str, Any]
    samples: list[torch.Tensor]
    scales: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    floats: dict[int, nn.Module] = field(default_factory=dict)


class Preparer:
    """Builds the layers of plans for one network.

    Args:
        graph: layer graph of the dense network.
        program: its steps.
        batch_size: images that the layers are to run on at once.
        device: where they are to run.
        cache_bytes: memory for weight codes seen before.

    Attributes:
        integers: whether to use the integer kernels, which are for CPUs.
    """

    def __init__(
        self,
        graph: LayerGraph,
        program: Program,
        batch_size: int,
        device: torch.device,
        cache_bytes: int,
    ) -> None:
        self.graph, self.batch_size, self.device = graph, batch_size, device
        self.integers = device.type == "cpu"
        self.weights: BoundedCache[Any] = BoundedCache(cache_bytes)
        self._input_sizes = _input_sizes(graph)
        self._fused = {s.layer for s in program.steps if isinstance(s, LayerStep)}

    def prepare(
        self, plan: CompressionPlan, pruned: Pruned, layers: Iterable[int] | None = None
    ) -> Prepared:
        """Quantize a calibrated network.

        Args:
            plan: the plan.
            pruned: the network with the plan's channels.
            layers: those that are needed; all by default.
        """
        wanted = range(len(self.graph.layers)) if layers is None else sorted(layers)
        self._fill_scales(pruned, plan, wanted)
        codes = self._codes(pruned, plan, wanted)
        built = {index: self._layer(index, plan, pruned, codes.get(index)) for index in wanted}
        # A layer that is used twice is in no fused step: it is called by its name.
        shared = {
            self.graph.layers[index].name: layer
            for index, layer in built.items()
            if index not in self._fused
        }
        return Prepared(built, {**pruned.modules, **shared}.__getitem__)

    def _fill_scales(self, pruned: Pruned, plan: CompressionPlan, layers: Iterable[int]) -> None:
        """Choose the activation scales that are still missing, all at once."""
        wanted = [
            (index, int(plan.activation_bits[index]))
            for index in layers
            if plan.activation_bits[index] < FLOAT_BITS
            and (index, int(plan.activation_bits[index])) not in pruned.scales
        ]
        if not wanted:
            return
        nonnegative = [self.graph.layers[index].input_nonnegative for index, _ in wanted]
        levels = [
            highest_level(bits, not positive)
            for (_, bits), positive in zip(wanted, nonnegative, strict=True)
        ]
        scales = activation_scales([pruned.samples[index] for index, _ in wanted], levels)
        pruned.scales.update(zip(wanted, scales, strict=True))

    def _codes(
        self, pruned: Pruned, plan: CompressionPlan, layers: Iterable[int]
    ) -> dict[int, Codes]:
        """Weight codes and scales of the layers that integer kernels are for, by index."""
        found: dict[int, Codes] = {}
        missing: dict[tuple[int, int], list[tuple[int, Hashable]]] = {}
        for index in layers:
            layer, bits = self.graph.layers[index], int(plan.weight_bits[index])
            module = pruned.modules[layer.name]
            if self._runs_on_integers(index, module, plan):
                atoms = pruned.kept[layer.in_atoms], pruned.kept[layer.out_atoms]
                key: Hashable = (index, bits, *(some.tobytes() for some in atoms))
                if key in self.weights:
                    found[index] = self.weights.get(key, dict)
                else:
                    inputs = module.weight[0].numel()
                    missing.setdefault((bits, inputs), []).append((index, key))
        for (bits, _), wanted in missing.items():
            weights = [pruned.modules[self.graph.layers[index].name].weight for index, _ in wanted]
            for (index, known_as), codes in zip(wanted, _integer_codes(weights, bits), strict=True):
                found[index] = self.weights.get(known_as, partial(_itself, codes))
        return found

    def _runs_on_integers(self, index: int, module: Any, plan: CompressionPlan) -> bool:
        return (
            self.integers
            and isinstance(module, nn.Conv2d)
            and index in self._fused
            and is_supported(module)
            and max(plan.weight_bits[index], plan.activation_bits[index]) < FLOAT_BITS
        )

    def _layer(
        self, index: int, plan: CompressionPlan, pruned: Pruned, found: Codes | None
    ) -> IntegerConv | nn.Module:
        layer = self.graph.layers[index]
        weight_bits = int(plan.weight_bits[index])
        activation_bits = int(plan.activation_bits[index])
        module = pruned.modules[layer.name]
        factor, offset = self._norm(layer.name, pruned)
        if weight_bits == activation_bits == FLOAT_BITS and isinstance(
            module, (nn.Conv2d, nn.Linear)
        ):
            if index not in pruned.floats:
                pruned.floats[index] = (
                    module if factor is None or offset is None else folded(module, factor, offset)
                )
            return pruned.floats[index]
        scale = pruned.scales.get((index, activation_bits), torch.ones(()))
        if found is not None:
            codes, weight_scale = found
            if factor is not None and offset is not None:
                weight_scale = weight_scale * factor
                bias = offset if module.bias is None else module.bias * factor + offset
            else:
                bias = torch.zeros_like(weight_scale) if module.bias is None else module.bias
            shape = _code_format(float(scale), activation_bits, layer.input_nonnegative)
            if is_exact(codes, shape):
                inputs = [self.batch_size, module.in_channels, *self._input_sizes[index]]
                return pack(module, codes, weight_scale, bias.detach().float(), shape, inputs)
        quantized = QuantizedLayer(
            copy.deepcopy(module),
            weight_bits,
            activation_bits,
            scale,
            layer.input_nonnegative,
            factor,
            offset,
        )
        if self.integers or not _is_conv_of_codes(quantized):
            return quantized
        return CodeConv(quantized, tensor_cores_are_exact(self.device))

    def _norm(
        self, layer: str, pruned: Pruned
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Factor and offset of the BatchNorm that is folded into a layer, if one is."""
        if layer not in self.graph.folds:
            return None, None
        norm = pruned.modules[self.graph.folds[layer]]
        assert isinstance(norm, BatchNorm)
        return norm_as_affine(norm)


def _is_conv_of_codes(layer: QuantizedLayer) -> bool:
    quantized = max(layer.weight_bits, layer.activation_bits) < FLOAT_BITS
    return quantized and isinstance(layer.layer, nn.Conv2d) and not layer.needs_double


def _integer_codes(weights: list[torch.Tensor], bits: int) -> list[Codes]:
    """Codes and scales of weights with equally many inputs, a few layers at a time."""
    found: list[Codes] = []
    while len(found) < len(weights):
        some = weights[len(found) :]
        sizes = list(accumulate(weight.numel() for weight in some))
        some = some[: max(1, bisect(sizes, _VALUES_AT_ONCE))]
        codes, scales = quantize_weights(torch.cat([weight.flatten(1) for weight in some]), bits)
        counts = [len(weight) for weight in some]
        for weight, own, scale in zip(
            some, codes.to(torch.int8).split(counts), scales.split(counts), strict=True
        ):
            found.append((own.view(weight.shape), scale))
    return found


def _itself(codes: Codes) -> Codes:
    return codes


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
