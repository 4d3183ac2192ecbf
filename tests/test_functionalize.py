"""Operations in place, shared layers and discarded results: one meaning for every value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.evaluation import FastEngine, ReferenceEngine
from compress_env.layer_graph import trace
from compress_env.plan import CompressionPlan

Forward = Callable[["Blocks", torch.Tensor], torch.Tensor]


class Blocks(nn.Module):
    """Convolutions put together by a function."""

    def __init__(self, body: Forward) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Sequential(nn.Conv2d(i, 8, 3, padding=1), nn.BatchNorm2d(8)) for i in (3, 8, 8)
        )
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout2d()
        self.head = nn.Linear(8, 10)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self, x).mean((2, 3)))


def discarded_module(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.b(n.a(x))
    n.relu(x)
    return n.c(x)


def discarded_method(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.b(n.a(x))
    x.relu_()
    x.mul_(2.0)
    return n.c(x)


def old_name(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.a(x)
    old = x
    x = x.add_(n.b(x))
    return n.c(old) + x


def alias_of_dropout(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.a(x)
    k = n.drop(x)
    return n.c(n.b(k) + k) + x


def late_source(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.a(x)
    y = n.b(x)
    x = n.relu(x)
    return n.c(y + x)


def shared_layer(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    return n.c(torch.relu(n.b(torch.relu(n.b[0](n.a(x))))))


def image_in_place(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    return n.b(n.a(x.sub_(0.5).div_(0.5)))


def unused_layer(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = n.a(x)
    n.c(x)
    return n.b(x)


def read_after_the_addition(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(n.a(x))
    y = x + n.b[0](x)
    return y * n.c(x)


def read_after_the_relu(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(n.a(x))
    y = torch.relu(x + n.b[0](x))
    return y * n.c(x)


def added_to_a_view(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(n.a(x))
    y = x.detach() + n.b(x)
    return y * n.c(x)


def viewed_before_the_addition(n: Blocks, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(n.a(x))
    view = x.detach()
    y = x + n.b(x)
    return y * n.c(view)


@pytest.mark.filterwarnings("ignore:channels are left whole")
@pytest.mark.parametrize(
    "body",
    [
        discarded_module,
        discarded_method,
        old_name,
        alias_of_dropout,
        late_source,
        shared_layer,
        image_in_place,
        unused_layer,
        read_after_the_addition,
        read_after_the_relu,
        added_to_a_view,
        viewed_before_the_addition,
    ],
)
def test_trace_and_both_engines_mean_what_the_network_does(body: Forward) -> None:
    torch.manual_seed(0)
    network = Blocks(body).eval()
    images, calibration = torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        expected = network(images.clone())
    graph = trace(network, (3, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(graph.module(images), expected)
    fast, reference = FastEngine(graph, calibration), ReferenceEngine(graph, calibration)
    whole = CompressionPlan.dense(graph)
    torch.testing.assert_close(fast.logits(whole, images), expected)
    low = CompressionPlan.dense(graph, bits=3)
    first, again = fast.logits(low, images), fast.logits(low, images)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, reference.logits(low, images))
    assert not np.allclose(first, expected, atol=1e-3)  # it was quantized at all


def test_what_cannot_be_followed_is_refused() -> None:
    def views(n: Blocks, x: torch.Tensor) -> torch.Tensor:
        x = n.a(x)
        part = x[:, :4]
        part.mul_(3.0)
        return n.b(x)

    with pytest.raises(ValueError, match="changed in place"):
        trace(Blocks(views).eval(), (3, 8, 8))
