"""Refusing arguments of a wrong type or value, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, or a smaller one.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ValueError: names the argument.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def check_choice(name: str, value: object, known: Iterable[str], own: bool = False) -> None:
    """Refuse what is not among some names.

    Args:
        name: the argument.
        value: what was given for it.
        known: the names.
        own: whether a callable may be given instead.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    names = list(known)
    if isinstance(value, str) and value in names:
        return
    if own and not isinstance(value, str) and callable(value):
        return
    allowed = ", ".join(names) + (", or a callable" if own else "")
    raise ValueError(f"{name} must be one of {allowed}, not {value!r}")


def check_path(name: str, value: object) -> None:
    """Refuse what is neither a path nor None.

    Raises:
        ValueError: names the argument.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name} must be a path, not {value!r}")


def logits_of(output: object) -> torch.Tensor:
    """The outputs of a network for the classes: a tensor, or the first of several.

    Raises:
        ValueError: the network returns something else.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, torch.Tensor):
        raise ValueError(
            f"network: it must return a tensor or a tuple of them, not {type(output).__name__}"
        )
    return first


def check_network(network: nn.Module, images: torch.Tensor) -> None:
    """Refuse a network that cannot classify some images.

    Args:
        network: in evaluation mode.
        images: float32 (images, channels, height, width), on its device.

    Raises:
        ValueError: it is not in float32, has parameters that are no numbers, or its outputs are not
            (images, classes).
    """
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(
                f"network: it must be in float32 (network.float()), '{name}' is {parameter.dtype}"
            )
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"network: parameter '{name}' has values that are no numbers")
    with torch.no_grad():
        shape = tuple(logits_of(network(images)).shape)
    if len(shape) != 2 or shape[0] != len(images):
        raise ValueError(
            f"network: for {len(images)} images its outputs must be ({len(images)}, classes), "
            f"not {shape}"
        )
