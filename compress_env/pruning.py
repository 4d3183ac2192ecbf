"""Removing channels for real: a smaller network from a layer graph and the atoms that stay.

What is removed is gone: weights, normalisation entries, the slices of the layers that read it. The
result equals the dense network whose readers see zeros in the removed channels.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import fx, nn

from compress_env.channel_modules import PadChannels, SelectChannels, UnevenGroupedConv2d
from compress_env.layer_graph import Layer, LayerGraph

Module = TypeVar("Module", bound=nn.Module)


def prune(graph: LayerGraph, kept_atoms: np.ndarray) -> fx.GraphModule:
    """Build the network without the atoms that go.

    Args:
        graph: layer graph of the dense network.
        kept_atoms: bool (atoms,), as `CompressionPlan.kept_atoms` gives them.

    Returns:
        A network of its own: no parameter is shared with the dense one. Module names, and so the
        keys of its `state_dict`, are those of the dense network.
    """
    modules = pruned_modules(graph, kept_atoms)
    return fx.GraphModule(modules, graph.module.graph, type(graph.module).__name__).eval()


def pruned_modules(
    graph: LayerGraph, kept_atoms: np.ndarray
) -> dict[str, nn.Module | torch.Tensor]:
    """The modules and tensors of the network without the atoms that go, by name."""
    modules: dict[str, nn.Module | torch.Tensor] = {}
    for layer in graph.layers:
        dense = graph.module.get_submodule(layer.name)
        modules[layer.name] = _smaller_layer(layer, dense, kept_atoms)
    for name, atoms in graph.channels.items():
        modules[name] = _smaller_module(graph.module.get_submodule(name), kept_atoms[atoms])
    for node in graph.module.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name not in modules:
            modules[name] = copy.deepcopy(graph.module.get_submodule(name))
        elif node.op == "get_attr" and name not in modules:
            modules[name] = copy.deepcopy(_attribute(graph.module, name))
    return modules


def _attribute(module: nn.Module, name: str) -> torch.Tensor:
    value: object = module
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def _indices(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(mask))


def _picked(tensor: torch.Tensor, dim: int, indices: torch.Tensor) -> torch.Tensor:
    """A copy of some rows or columns, where the tensor is."""
    return tensor.detach().index_select(dim, indices.to(tensor.device))


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    """A parameter of values that were picked from those of another, and so are a copy."""
    return nn.Parameter(value.detach(), requires_grad=like.requires_grad)


def _smaller_layer(layer: Layer, dense: nn.Module, kept_atoms: np.ndarray) -> nn.Module:
    """A layer with only its kept inputs and outputs."""
    inputs, outputs = kept_atoms[layer.in_atoms], kept_atoms[layer.out_atoms]
    if isinstance(dense, nn.Linear):
        linear = _shallow(dense)
        weight = _picked(_picked(dense.weight, 0, _indices(outputs)), 1, _indices(inputs))
        bias = None if dense.bias is None else _picked(dense.bias, 0, _indices(outputs))
        _replace(linear, weight=weight, bias=bias)
        linear.in_features, linear.out_features = int(inputs.sum()), int(outputs.sum())
        return linear
    assert isinstance(dense, nn.Conv2d)
    if layer.groups == 1:
        return _smaller_conv(dense, _indices(outputs), _indices(inputs), 1)
    return _smaller_grouped(layer, dense, inputs, outputs)


def _smaller_conv(
    dense: nn.Conv2d, outputs: torch.Tensor, inputs: torch.Tensor | None, groups: int
) -> nn.Conv2d:
    """Keep these output rows and, unless None, these input columns of the weights."""
    conv = _shallow(dense)
    weight = _picked(dense.weight, 0, outputs)
    if inputs is not None:
        weight = _picked(weight, 1, inputs)
    _replace(
        conv, weight=weight, bias=None if dense.bias is None else _picked(dense.bias, 0, outputs)
    )
    sizes = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0]}
    conv.__dict__.update(sizes, groups=groups)
    return conv


def _smaller_grouped(
    layer: Layer, dense: nn.Conv2d, inputs: np.ndarray, outputs: np.ndarray
) -> nn.Module:
    """A grouped convolution keeps one group per group that still reads and makes channels.

    Groups of equal sizes stay one grouped convolution; else every group becomes its own.
    """
    reads = inputs.reshape(layer.groups, -1)
    makes = outputs.reshape(layer.groups, -1)
    in_sizes, out_sizes = reads.sum(1), makes.sum(1)
    alive = (in_sizes > 0) | (out_sizes > 0)
    kept = np.flatnonzero(alive)
    even = len({*in_sizes[kept].tolist()}) == 1 and len({*out_sizes[kept].tolist()}) == 1
    rows = torch.from_numpy(np.flatnonzero(outputs))
    if even:
        conv = _smaller_conv(dense, rows, None, len(kept))
        left = in_sizes[kept[0]]
        if left < reads.shape[1]:  # every group gives up as many of its inputs, each its own
            columns = np.nonzero(reads[kept])[1].reshape(len(kept), left)
            index = torch.from_numpy(columns.repeat(out_sizes[kept[0]], 0))[:, :, None, None]
            index = index.to(conv.weight.device)
            chosen = conv.weight.gather(1, index.expand(-1, -1, *dense.kernel_size))
            conv.weight = _parameter(chosen, dense.weight)
        conv.in_channels = int(in_sizes.sum())
        return conv
    width = makes.shape[1]
    parts: list[nn.Conv2d | None] = []
    biases: list[torch.Tensor | None] = []
    for group in kept:
        own = torch.from_numpy(np.flatnonzero(makes[group]) + group * width)
        whole = in_sizes[group] > 0 and out_sizes[group] > 0
        parts.append(_smaller_conv(dense, own, _indices(reads[group]), 1) if whole else None)
        if in_sizes[group] > 0:
            biases.append(None)
        elif dense.bias is None:
            biases.append(dense.weight.new_zeros(len(own)))
        else:
            biases.append(_parameter(_picked(dense.bias, 0, own), dense.bias))
    return UnevenGroupedConv2d(parts, in_sizes[kept].tolist(), biases, _geometry(dense))


def _replace(module: nn.Module, **values: torch.Tensor | None) -> None:
    """Give a module parameters of other values."""
    for name, value in values.items():
        old = module._parameters[name]
        if value is not None and old is not None:
            # Not by `setattr`, which takes ten times as long.
            module._parameters[name] = _parameter(value, old)


def _geometry(conv: nn.Conv2d) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation along both axes."""
    axes = []
    for axis in (0, 1):
        kernel, dilation = conv.kernel_size[axis], conv.dilation[axis]
        padding = conv.padding[axis] if isinstance(conv.padding, tuple) else 0
        if conv.padding == "same":
            kernel = 1  # the size stays
        axes.append((kernel, conv.stride[axis], padding, dilation))
    return axes


def _smaller_module(dense: nn.Module, kept: np.ndarray) -> nn.Module:
    """A normalisation, selection, padding or per-channel activation with the kept channels."""
    if isinstance(dense, SelectChannels):
        index = dense.index.cpu().numpy()
        place = np.cumsum(kept) - 1
        return SelectChannels(place[index[kept[index]]])
    if isinstance(dense, PadChannels):
        before = int(kept[: dense.before].sum())
        after = int(kept[kept.size - dense.after :].sum()) if dense.after else 0
        return PadChannels(before, after)
    module = _shallow(dense)
    indices = _indices(kept)
    picked = {
        name: None if parameter is None else _picked(parameter, 0, indices)
        for name, parameter in dense._parameters.items()
    }
    _replace(module, **picked)
    for name, buffer in dense._buffers.items():
        if buffer is not None:
            module._buffers[name] = _picked(buffer, 0, indices) if buffer.dim() else buffer.clone()
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.PReLU)):
        size = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
        setattr(module, size, int(kept.sum()))
    return module


def _shallow(module: Module) -> Module:
    """A copy whose parameters, buffers and hooks can change without touching the original's."""
    # Not by `copy.copy`, which takes ten times as long.
    twin = object.__new__(type(module))
    for name, value in module.__dict__.items():
        twin.__dict__[name] = value.copy() if isinstance(value, (dict, set)) else value
    return twin
