"""Operations in place, turned into ones that make a new value.

What changes a tensor in place is hard to follow: other names of the tensor change with it, and a
result that nobody reads looks dead. After this, every value of a traced network has one meaning.
"""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

import torch
from torch import fx, nn


def functionalize(module: fx.GraphModule) -> None:
    """Replace operations in place by plain ones; later readers see the result.

    Args:
        module: a traced network, changed; the modules of the network it was traced from are not.
    """
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    replaced: set[str] = set()
    for node in list(module.graph.nodes):
        if (
            not node.all_input_nodes
            or _is_harmless(module, node)
            or not _make_plain(module, node, replaced)
        ):
            continue
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node):
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_harmless(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the only reader of what a layer or BatchNorm has just made."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or not node.users:
        return False
    maker = module.get_submodule(str(source.target))
    makers = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
    return list(source.users) == [node] and isinstance(maker, makers)


def _make_plain(module: fx.GraphModule, node: fx.Node, replaced: set[str]) -> bool:
    """Turn one node into its plain form; whether it was in place."""
    if node.op == "call_module":
        return _plain_module(module, str(node.target), replaced)
    if node.op == "call_method":
        name = str(node.target)
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else ""
        if plain and hasattr(torch.Tensor, plain):
            node.target = plain
            return True
        return False
    return node.op == "call_function" and _plain_function(node)


def _plain_module(module: fx.GraphModule, name: str, replaced: set[str]) -> bool:
    found = module.get_submodule(name)
    if name in replaced:  # called before
        return True
    if not getattr(found, "inplace", False):
        return False
    twin = copy.copy(found)
    twin.inplace = False  # type: ignore[assignment]
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, twin)
    replaced.add(name)
    return True


def _plain_function(node: fx.Node) -> bool:
    target: Any = node.target
    name = str(getattr(target, "__name__", ""))
    if getattr(operator, name, None) is target and name.startswith("i") and name != "invert":
        plain = getattr(operator, "truediv" if name == "itruediv" else name[1:], None)
        if plain is not None and name not in ("is_", "is_not", "index", "indexOf", "inv"):
            node.target = plain
            return True
    if name.endswith("_") and not name.endswith("__") and hasattr(torch, name[:-1]):
        node.target = getattr(torch, name[:-1])
        return True
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def check_same(network: nn.Module, module: fx.GraphModule, shape: tuple[int, int, int]) -> None:
    """Compare a traced network with the one it came from, on one image of noise.

    Raises:
        ValueError: they differ: the trace missed something that the network does.
    """
    like = next(network.parameters(), torch.empty(0))
    if like.device.type == "meta":  # there are no values to compare
        return
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *shape, generator=generator).to(like)
    with torch.no_grad():
        expected, found = (_tensors(net(image.clone())) for net in (network, module))
    same = len(expected) == len(found) and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )
    if not same:
        raise ValueError(
            "network: what torch.fx traced does not give the network's outputs; random operations, "
            "hooks, out= arguments and views that are changed in place cannot be followed"
        )


def _tensors(output: object) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
