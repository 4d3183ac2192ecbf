"""The modules that steps call, in the type that their values have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from compress_env.normalization import BatchNorm, folded, norm_as_affine
from compress_env.program import LayerStep, PlainStep, run_plain


@dataclass(frozen=True)
class CalledModules:
    """What the steps of a walk call.

    Attributes:
        modules: modules and tensors by name, in the type of the walk.
        norms: by name, every BatchNorm that is not folded into a layer.
    """

    modules: dict[str, Any]
    norms: dict[str, BatchNorm]


def called_modules(
    steps: Sequence[LayerStep | PlainStep],
    find: Callable[[str], Any],
    dtype: torch.dtype,
    fold: bool,
) -> CalledModules:
    """What some steps call, in the type of their values.

    Args:
        steps: the steps.
        find: gives a module or tensor of the network by its name. Nothing of it is changed.
        dtype: float32 or bfloat16.
        fold: whether to fold every BatchNorm that can be into the convolution before it.
    """
    modules: dict[str, Any] = {}
    norms: dict[str, BatchNorm] = {}
    for step in steps:
        name = str(step.node.target) if isinstance(step, PlainStep) else step.name
        if name in modules or (isinstance(step, PlainStep) and not _has_module(step)):
            continue
        module = find(name)
        if isinstance(step, LayerStep) and step.norm is not None:
            norm = find(step.norm)
            if fold and isinstance(module, nn.Conv2d) and norm.running_mean is not None:
                module = folded(module, *norm_as_affine(norm))
            else:
                norms[step.norm] = norm
        if isinstance(module, BatchNorm):
            norms[name] = module
        else:
            modules[name] = _cast(module, dtype)
    return CalledModules(modules, norms)


def _has_module(step: PlainStep) -> bool:
    return step.node.op in ("call_module", "get_attr")


def _cast(module: nn.Module | Tensor, dtype: torch.dtype) -> nn.Module | Tensor:
    """A module or tensor with floats of another type, and weights of convolutions channels-last."""
    if isinstance(module, Tensor):
        return module.to(dtype) if module.is_floating_point() else module
    if isinstance(module, nn.Conv2d) and not is_parametrized(module):
        twin = copy.copy(module)
        weight = module.weight.detach().to(dtype=dtype, memory_format=torch.channels_last)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        twin._parameters = {"weight": weight, "bias": bias}  # type: ignore[dict-item]
        return twin
    if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        return module
    return copy.deepcopy(module).to(dtype)


def run_plain_as(
    dtype: torch.dtype, node: fx.Node, values: Mapping[fx.Node, Any], find: Callable[[str], Any]
) -> Any:
    """Run a node that is no layer; in float32, where its operation does not know the type.

    Args:
        dtype: of the values.
        node: the node.
        values: of the nodes that it reads.
        find: gives a module or tensor in this type by its name.
    """
    try:
        return run_plain(node, values, find)
    except NotImplementedError:  # local response normalisation, for one, has no bfloat16
        wide = {other: _to(values[other], torch.float32) for other in node.all_input_nodes}
        return _to(run_plain(node, wide, lambda name: _cast(find(name), torch.float32)), dtype)


def _to(value: Any, dtype: torch.dtype) -> Any:
    """A value with all floats in it of another type."""
    if type(value) in (tuple, list):
        return type(value)(_to(each, dtype) for each in value)
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
