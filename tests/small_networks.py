"""Hand-made networks whose channels can be followed on paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EveryCoupling(nn.Module):
    """A residual add, a depthwise convolution, a concatenation, and a chunk with a shuffle.

    Channels: `stem` makes 4 (a b c d), `add` makes the same 4 once more; `depthwise` passes them
    on. `side` makes 2 (e f). After the concatenation: a b c d e f; the halves are (a b c) and
    (d e f). The second half goes through `filter`, which makes 3 (g h i). After the shuffle of
    (a b c g h i) in two groups: a g b h c i, which `head` reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.add = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.side = nn.Conv2d(3, 2, 1)
        self.filter = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = functional.relu(self.stem(x))
        main = self.depthwise(stem + self.add(stem))
        kept, filtered = torch.cat([main, self.side(x)], 1).chunk(2, 1)
        both = torch.cat([kept, self.filter(filtered)], 1)
        n, c, h, w = both.shape
        both = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(both).mean((2, 3))


class Between(nn.Module):
    """Two convolutions and whatever is to be tried between them; eight channels there."""

    def __init__(self, operation: object, channels_after: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(channels_after, 4, 3, padding=1)
        self.operation = operation
        self.third = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.operation(self.first(x))))  # type: ignore[operator]


class TinyClassifier(nn.Module):
    """For images of digits: three convolutions, two of them around an addition; untrained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(x + self.second(x))
        return self.last(functional.relu(self.third(x)).mean((2, 3)))
