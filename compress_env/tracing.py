"""A network as a `torch.fx` graph, with the shape of every value in it."""

from __future__ import annotations

import inspect
import linecache
import traceback
from typing import Any

import torch
from torch import fx, nn

from compress_env.channel_modules import ChannelModule


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a Conv2d or Linear that does with its weights what these do.

    A subclass that computes otherwise (say, with standardized weights), or whose weights are
    computed from other parameters, cannot be cut like one.
    """
    kind: Any = type(module)
    if module._parameters.get("weight") is None:  # where torch.fx does not look on
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Conv2d):
        own = (kind.forward, kind._conv_forward)
        return own == (nn.Conv2d.forward, nn.Conv2d._conv_forward)
    return isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_layer(m) or isinstance(m, ChannelModule):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def symbolic_trace(network: nn.Module) -> fx.GraphModule:
    """Trace a network with `torch.fx`.

    Raises:
        ValueError: the network's control flow depends on data; names the line.
    """
    try:
        module = fx.GraphModule(network, _Tracer().trace(network))
        _call_by_position(module)
        return module
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        outside = [
            frame
            for frame in frames
            if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
        ]
        frame = (outside or list(frames))[-1]
        line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
        raise ValueError(
            f"network: torch.fx cannot trace it at {frame.filename}:{frame.lineno} ('{line}'): "
            f"{error}"
        ) from error


def _call_by_position(module: fx.GraphModule) -> None:
    """Give modules by position what they are given by name, so that `args[0]` is their input."""
    for node in module.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            signature = inspect.signature(module.get_submodule(str(node.target)).forward)
            bound = signature.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = bound.args, bound.kwargs


def record_shapes(module: fx.GraphModule, input_shape: tuple[int, int, int]) -> None:
    """Run one empty image through a traced network and note what every node gives.

    Nodes get `meta["shapes"]`, the shape of their tensor or a list of those of their tuple, or
    `meta["number"]`, any other value. A squeeze of all dimensions is made to name them.

    Raises:
        ValueError: an image of this shape cannot pass through the network.
    """
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            _Recorder(module).run(image)
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ValueError(
            f"input_shape: an image of shape {tuple(input_shape)} does not pass through the "
            f"network: {reason}"
        ) from error


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        _name_squeezed_dimensions(n)
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shapes"] = tuple(result.shape)
        elif (
            isinstance(result, (tuple, list))
            and result
            and all(isinstance(each, torch.Tensor) for each in result)
        ):
            n.meta["shapes"] = [tuple(each.shape) for each in result]
        else:
            n.meta["number"] = result
        return result


def _name_squeezed_dimensions(node: fx.Node) -> None:
    """Let a squeeze of all dimensions of size one name them.

    Else it would also take away the batch of a single image, or the channels where one is left.
    """
    squeezes = node.op != "call_module" and node.target in ("squeeze", torch.squeeze)
    if squeezes and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node):
        shape = single_shape(node.args[0])
        node.args = (node.args[0], tuple(d for d, size in enumerate(shape) if d > 0 and size == 1))


def shapes_of(node: fx.Node) -> tuple[int, ...] | list[tuple[int, ...]] | None:
    """The shape of a node's tensor, the shapes of its tuple, or None for anything else."""
    shapes: tuple[int, ...] | list[tuple[int, ...]] | None = node.meta.get("shapes")
    return shapes


def single_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's only tensor."""
    shapes = shapes_of(node)
    assert isinstance(shapes, tuple)
    return shapes
