"""What is remembered between evaluations: not too much, and only while it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from samples import liven, mixed_plan
from small_networks import TinyClassifier

from compress_env.evaluation import (
    Evaluator,
    FastEngine,
    ReferenceEngine,
    StepwiseEngine,
    preparing,
)
from compress_env.evaluation.cache import tensor_bytes
from compress_env.evaluation.kernels import integer_kernels
from compress_env.layer_graph import trace
from compress_env.plan import CompressionPlan
from compress_env.task import CompressionTask


class CountingEngine:
    def __init__(self) -> None:
        self.runs = 0

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return torch.eye(4)[: len(images)] * float(plan.weight_bits[0])


def test_evaluator_remembers_the_latest_plans_only(digits_task: CompressionTask) -> None:
    engine, labels = CountingEngine(), torch.tensor([0, 1, 0, 0])
    # An evaluation holds 4 * 4 floats and 4 labels: 96 bytes. Three of them fit.
    evaluator = Evaluator(engine, torch.zeros(4, 3, 8, 8), labels, cache_bytes=3 * 96)
    plans = {bits: CompressionPlan.dense(digits_task.graph, bits=bits) for bits in (2, 3, 4, 5)}
    first = evaluator.evaluate(plans[2])
    assert first.accuracy == 0.5
    assert first.predictions.tolist() == [0, 1, 2, 3]
    assert evaluator.evaluate(plans[2]) is first
    for bits in (3, 4, 2, 5):  # 2 is used again, so 3 is the one that is forgotten
        evaluator.evaluate(plans[bits])
    assert engine.runs == 4
    assert evaluator.evaluate(plans[2]) is first
    assert engine.runs == 4
    evaluator.evaluate(plans[3])
    assert engine.runs == 5
    none = Evaluator(engine, torch.zeros(4, 3, 8, 8), labels, cache_bytes=0)
    assert none.evaluate(plans[2]) is not none.evaluate(plans[2])


def test_caches_of_the_fast_engine_are_bounded_in_bytes(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    limit = 1_500_000  # a pruned network with its samples is about as large
    engine = FastEngine(graph, calibration, cache_bytes=limit)
    caches = (engine.preparer.weights, engine._networks)
    for seed in range(6):
        images = torch.randn(4, 3, 8, 8)
        engine.logits(mixed_plan(graph, [3, 5, 8], "evenly", seed), images)
        assert engine.preparer.weights.bytes <= limit
        assert engine._networks.bytes <= limit or len(engine._networks) == 1
    assert len(engine.preparer.weights) > 20
    engine.forget()
    assert not any(map(len, caches))


def test_what_a_plan_adds_to_a_cached_network_is_counted(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    engine = FastEngine(graph, calibration)
    for widths in ([32], [4], [8, 32]):  # folded float layers and scales are kept with the network
        engine.prepare(mixed_plan(graph, widths, "evenly"))
    (pruned,) = [value for value, _ in engine._networks._entries.values()]
    assert len(pruned.floats) == len(graph.layers)
    assert engine._networks.bytes == tensor_bytes(pruned)


def test_channels_are_told_apart_not_counted(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    images, bits = digits_task.search.images[:20], np.full(len(graph.layers), 6)
    half = [np.arange(group.size) % 2 == 0 for group in graph.groups]
    plans = [CompressionPlan.of(graph, kept, bits, bits) for kept in (half, [~m for m in half])]
    engine = FastEngine(graph, calibration)
    found = [engine.logits(plan, images) for plan in plans]
    expected = [ReferenceEngine(graph, calibration).logits(plan, images) for plan in plans]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.skipif(not integer_kernels().available, reason="no integer convolution here")
def test_weights_are_quantized_once(
    digits_task: CompressionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = digits_task.graph
    engine = FastEngine(graph, digits_task.calibration.images)
    engine.prepare(mixed_plan(graph, [8], "evenly"))
    quantized = []

    def counting(weights: list[torch.Tensor], bits: int) -> list[preparing.Codes]:
        quantized.extend(weights)
        return integer_codes(weights, bits)

    integer_codes = preparing._integer_codes
    monkeypatch.setattr(preparing, "_integer_codes", counting)
    plan = mixed_plan(graph, [8], "evenly")
    plan.weight_bits[[3, 5]] = 4
    plan.activation_bits[:] = 6
    engine.prepare(plan)
    assert len(quantized) == 2


def changed_in_place(network: TinyClassifier) -> None:
    with torch.no_grad():
        network.second.weight.mul_(-1)


def replaced(network: TinyClassifier) -> None:
    network.second.weight = torch.nn.Parameter(-network.second.weight.detach())


@pytest.mark.parametrize("change", [changed_in_place, replaced])
def test_new_weights_are_noticed(change: Callable[[TinyClassifier], None]) -> None:
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = TinyClassifier()
    liven(network, images)
    graph, labels = trace(network, (3, 8, 8)), torch.zeros(24, dtype=torch.int64)
    fast = FastEngine(graph, images)
    stepwise = StepwiseEngine(fast, images, images)
    evaluator = Evaluator(fast, images, labels)
    plans = [mixed_plan(graph, [8], style, 1) for style in (None, "evenly")]

    def outputs() -> list[torch.Tensor]:
        """Of the evaluator last, so that it is not the first to notice."""
        return [
            logits
            for plan in plans
            for logits in (
                stepwise.logits(plan, 2), fast.logits(plan, images),
                evaluator.evaluate(plan).logits,
            )
        ]  # fmt: skip

    before = outputs()
    change(graph.module)
    expected = [
        each for plan in plans for each in 3 * [ReferenceEngine(graph, images).logits(plan, images)]
    ]
    after = outputs()
    assert all(torch.equal(*pair) for pair in zip(after, expected, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(after, before, strict=True))


def test_new_images_are_noticed(digits_task: CompressionTask) -> None:
    graph, plan = digits_task.graph, CompressionPlan.dense(digits_task.graph, bits=6)
    images = digits_task.search.images[:20].clone()
    engine = FastEngine(graph, digits_task.calibration.images)
    evaluator = Evaluator(engine, images, digits_task.search.labels[:20])
    before = evaluator.evaluate(plan).logits
    images.copy_(images.flip(0))
    assert torch.equal(evaluator.evaluate(plan).logits, before.flip(0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1, not 0"),
        ({"cache_bytes": -1}, "cache_bytes must be a whole number from 0, not -1"),
        ({"calibration_dtype": torch.float16}, "must be torch.float32 or torch.bfloat16, not"),
        ({"calibration_dtype": "float32"}, "must be torch.float32 or torch.bfloat16, not"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    digits_task: CompressionTask, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        FastEngine(digits_task.graph, digits_task.calibration.images, **options)
    with pytest.raises(ValueError, match=r"calibration_images must be .* not empty"):
        FastEngine(digits_task.graph, digits_task.calibration.images[:0])
