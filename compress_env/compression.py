"""From a plan to the compressed network: prune, re-estimate, fold, quantize.

`compress` is the definition of what a plan means; the fast engine is checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import fx, nn

from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.pruning import prune
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
    sample_values,
)

CALIBRATION_BATCH = 64
"""Images that pass through the network at once while it is calibrated."""

BatchNorm = nn.modules.batchnorm._BatchNorm


def compress(
    network: nn.Module | LayerGraph, plan: CompressionPlan, calibration_images: torch.Tensor
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
    modules = dict(small.named_modules())
    samples = calibrate(small, modules, graph, calibration_images, not bool(kept.all()))
    return _in_plain_order(quantize_network(small, graph, plan, samples))


def _in_plain_order(network: nn.Module) -> nn.Module:
    """Undo the channels-last order of calibration: it would choose other float kernels."""
    for parameter in network.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    return network


def calibrate(
    network: Callable[[torch.Tensor], object],
    modules: Mapping[str, object],
    graph: LayerGraph,
    images: torch.Tensor,
    reestimate: bool,
) -> list[torch.Tensor]:
    """One pass over the calibration images: BatchNorm statistics and samples of layer inputs.

    Args:
        network: runs a pruned network.
        modules: its modules by name; their BatchNorm statistics are replaced if `reestimate`.
        graph: the layer graph it comes from.
        images: float32 (images, channels, height, width).
        reestimate: whether to re-estimate BatchNorm statistics (mean over batches of the batch
            statistics). Layers behind a BatchNorm then see its re-estimated output.

    Returns:
        For every layer, magnitudes of values of its input.
    """
    seen: list[list[torch.Tensor]] = [[] for _ in graph.layers]
    batches = images.split(CALIBRATION_BATCH)
    hooks = []
    for index, layer in enumerate(graph.layers):

        def note(
            module: nn.Module,
            inputs: tuple[torch.Tensor, ...],
            store: list[torch.Tensor] = seen[index],
        ) -> None:
            store.append(sample_values(inputs[0]))

        module = modules[layer.name]
        assert isinstance(module, nn.Module)
        module.to(memory_format=torch.channels_last)
        hooks.append(module.register_forward_pre_hook(note))
    norms = [m for m in modules.values() if isinstance(m, BatchNorm)] if reestimate else []
    try:
        with torch.no_grad(), _batch_statistics(norms):
            for batch in batches:
                network(batch.contiguous(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(store) for store in seen]


@contextmanager
def _batch_statistics(norms: list[BatchNorm]) -> Iterator[None]:
    """Let BatchNorm use and gather the statistics of the batches that pass through."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


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


def norm_as_affine(norm: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """What a BatchNorm in evaluation mode multiplies and adds: factor and offset, (channels,)."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    offset = -norm.running_mean * factor
    if norm.bias is not None:
        offset = offset + norm.bias.detach()
    return factor, offset


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
