"""Which operations do what to channels, by name; no network is named here.

What stands in none of these tables, and is no layer, is unknown: it freezes the channels it reads.
"""

from __future__ import annotations

from torch import fx, nn


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
"""Modules that treat every channel alone and need no change when channels go."""

CHANNELWISE_FUNCTIONS = _names(
    """relu relu_ relu6 leaky_relu elu elu_ selu gelu silu mish tanh sigmoid hardsigmoid hardswish
    hardtanh softplus dropout dropout2d feature_dropout alpha_dropout max_pool2d avg_pool2d
    adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d interpolate upsample stochastic_depth abs
    neg exp sqrt square clamp clamp_ detach float half double to type"""
)
"""The same as functions and methods."""

ARITHMETIC = _names(
    """add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv itruediv maximum minimum"""
)
"""Operations that combine tensors channel by channel."""

GROWING = _names("add add_ iadd mul mul_ imul maximum")
"""Those of them whose result is not negative where their operands are not."""

CONCATENATIONS = _names("cat concat concatenate")

REDUCTIONS = _names("mean sum amax")

MOVES = _names(
    """view reshape flatten permute transpose chunk split tensor_split getitem unsqueeze squeeze
    narrow unflatten channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle
    index_select swapaxes movedim roll flip repeat_interleave contiguous clone"""
)
"""Operations that only move values: what they do is found by running them on positions."""

MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)

COUNT_FREE = _names(
    """flatten permute transpose swapaxes movedim squeeze unsqueeze getitem contiguous clone
    roll flip Flatten"""
)
"""Those of them that work for any number of channels, as long as all channels pass in order."""

NONNEGATIVE = _names("relu relu_ relu6 ReLU ReLU6 sigmoid Sigmoid hardsigmoid Hardsigmoid")
"""Operations whose output is at or above zero."""

KEEPS_SIGN = _names(
    """dropout dropout2d feature_dropout max_pool2d avg_pool2d adaptive_avg_pool2d
    adaptive_max_pool2d stochastic_depth detach float Identity Dropout Dropout2d MaxPool2d AvgPool2d
    AdaptiveAvgPool2d AdaptiveMaxPool2d ZeroPad2d ReflectionPad2d ReplicationPad2d"""
)
"""Operations whose output is at or above zero where their input is."""


def operation_name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The plain name of what a node does: of a function, a method, or a module's class."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.op == "call_method":
        return str(node.target)
    target = node.target
    return str(getattr(target, "__name__", target))
