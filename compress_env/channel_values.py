"""What is known of a tensor, and of the whole network, while channels are followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx


@dataclass(frozen=True)
class Sources:
    """Layers whose output a tensor carries.

    Attributes:
        carried: all of them, as numbers that rise along the network.
        latest: those that a sum with this tensor carries: of a sum only the latest, so that the
            number of edges grows linearly along a chain of residual blocks.
    """

    carried: frozenset[int] = frozenset()
    latest: frozenset[int] = frozenset()

    @classmethod
    def layer(cls, index: int) -> Sources:
        """Those of a layer's output."""
        return cls(frozenset([index]), frozenset([index]))

    @classmethod
    def joined(cls, several: Iterable[Sources]) -> Sources:
        """Those of tensors side by side."""
        several = list(several)
        return cls(
            frozenset().union(*(each.carried for each in several)),
            frozenset().union(*(each.latest for each in several)),
        )

    @classmethod
    def added(cls, several: Iterable[Sources]) -> Sources:
        """Those of a sum."""
        carried: frozenset[int] = frozenset().union(*(each.latest for each in several))
        return cls(carried, frozenset([max(carried)]) if carried else carried)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor as the walk over the network sees it.

    Attributes:
        shape: its shape.
        dim: the dimension in which its channels lie.
        ids: int64 (channels,), the id of every channel; None where the channels lie in several
            dimensions (a view in the middle of a shuffle).
        origin: the node that it was only moved from.
        positions: shaped like the value: where each element lies in the origin, flattened.
        sources: layers whose output it carries.
        nonnegative: whether it is known to be at or above zero.
        parts: the elements of a tuple.
    """

    shape: tuple[int, ...]
    dim: int = 1
    ids: np.ndarray | None = None
    origin: fx.Node | None = None
    positions: torch.Tensor | None = None
    sources: Sources = Sources()
    nonnegative: bool = False
    parts: tuple[Value, ...] | None = None


def changed(value: Value, **changes: Any) -> Value:
    """The value with some attributes replaced."""
    return Value(**{**value.__dict__, **changes})


@dataclass(eq=False)
class FoundLayer:
    """A layer as the walk meets it; `compress_env.layer_graph.Layer` is what remains of it."""

    name: str
    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    has_bias: bool
    in_ids: np.ndarray
    out_ids: np.ndarray
    input_nonnegative: bool = True
    positions: int = 0


@dataclass
class ChannelFlow:
    """Everything the walk found out.

    Attributes:
        layers: by module name, in the order of the data flow.
        channels: ids of the channels of every other module that depends on them.
        same: pairs of ids, int64 (2, n), that are the same channel.
        frozen: ids that must stay.
        edges: (source layer, reading layer).
        unknown: operations whose effect on channels is not known, with the number of uses.
        ids: number of ids given out.
    """

    layers: dict[str, FoundLayer] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    same: list[np.ndarray] = field(default_factory=list)
    frozen: list[np.ndarray] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)
    ids: int = 0
