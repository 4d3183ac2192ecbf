"""From a plan to the compressed network: prune, re-estimate, fold, quantize.

`compress` is the definition of what a plan means; the fast engine is checked against it.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from compress_env.calibration import calibrate
from compress_env.layer_graph import LayerGraph, trace
from compress_env.normalization import BatchNorm, norm_as_affine
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.pruning import prune
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
)


def compress(
    network: nn.Module | LayerGraph,
    plan: CompressionPlan,
    calibration_images: torch.Tensor,
    calibration_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build the compressed network that a plan describes.

    Channels are removed; where any went, the BatchNorm statistics are re-estimated on the
    calibration images; BatchNorm is folded into quantized layers; weights are quantized, and every
    layer quantizes its input with a scale chosen on the calibration images.

    Args:
        network: the dense network in evaluation mode, or its layer graph.
        plan: a plan for this network.
        calibration_images: float32 (images, channels, height, width), normalised as the network
            expects; at least one. The same images give the same network.
        calibration_dtype: in what the images walk through the network to be calibrated, float32
            or bfloat16; None takes `compress_env.calibration.fastest_dtype`.

    Returns:
        An ordinary, physically smaller `nn.Module` of its own. A plan that keeps everything at
        32 bits gives exactly the dense network's outputs.

    Raises:
        ValueError: the plan is for another network, or there are no calibration images.
    """
    if calibration_images.dim() != 4 or len(calibration_images) == 0:
        raise ValueError("calibration_images must be (images, channels, height, width), not empty")
    shape = tuple(calibration_images.shape[1:])
    graph = network if isinstance(network, LayerGraph) else trace(network, shape)
    plan = CompressionPlan.from_json(plan.to_json(), graph)
    kept = plan.kept_atoms(graph)
    small = prune(graph, kept)
    changed = not bool(kept.all())
    samples = calibrate(small, graph, calibration_images, changed, dtype=calibration_dtype)
    return _in_plain_order(quantize_network(small, graph, plan, samples))


def _in_plain_order(network: nn.Module) -> nn.Module:
    """Undo the channels-last order of calibration: it would choose other float kernels."""
    for parameter in network.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    return network


def quantize_network(
    small: fx.GraphModule,
    graph: LayerGraph,
    plan: CompressionPlan,
    samples: list[torch.Tensor],
) -> fx.GraphModule:
    """Fold and quantize a pruned, calibrated network in place, as a plan says."""
    weight_bits, activation_bits = plan.weight_bits.tolist(), plan.activation_bits.tolist()
    levels = [
        highest_level(bits, not layer.input_nonnegative) if bits < FLOAT_BITS else 1
        for bits, layer in zip(activation_bits, graph.layers, strict=True)
    ]
    scales = activation_scales(samples, levels)
    for index, layer in enumerate(graph.layers):
        if weight_bits[index] == activation_bits[index] == FLOAT_BITS:
            continue
        factor = offset = None
        norm_name = graph.folds.get(layer.name)
        if norm_name is not None:
            norm = small.get_submodule(norm_name)
            assert isinstance(norm, BatchNorm)
            factor, offset = norm_as_affine(norm)
            _replace(small, norm_name, nn.Identity())
        quantized = QuantizedLayer(
            small.get_submodule(layer.name),
            weight_bits[index],
            activation_bits[index],
            scales[index],
            layer.input_nonnegative,
            factor,
            offset,
        )
        _replace(small, layer.name, quantized)
    return small.eval()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
