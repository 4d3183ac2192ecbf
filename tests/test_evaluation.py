"""Both engines give the same network, and the fast one runs it on integers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from samples import QUICK, liven, mixed_plan
from torch import nn

from benchmarks.network_list import LISTED
from compress_env.evaluation import (
    FastEngine,
    ReferenceEngine,
    devices,
    kernels,
    running,
)
from compress_env.evaluation.evaluator import Evaluation
from compress_env.importance import rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan
from compress_env.task import CompressionTask
from compress_env.workers import Workers


def keep_share(graph: LayerGraph, share: float) -> list[np.ndarray]:
    ranks = rank_channels(graph, np.random.default_rng(0).random(graph.atom_group.size))
    return [ranks[atoms] < max(1, round(share * atoms.size)) for atoms in graph.group_atoms]


PLANS = {
    "w8a8": ([8], None),
    "w4a4": ([4], None),
    "w2a2": ([2], None),
    "any bits": ([2, 3, 4, 5, 6, 7, 8], None),
    "any bits and floats": ([2, 4, 6, 8, 32], None),
    "pruned, any bits": ([3, 4, 5, 6, 7, 8], "evenly"),
    "pruned, floats among them": ([4, 8, 32], "evenly"),
    "pruned to one channel": ([4, 8], "one"),
    "float": ([32], None),
    "pruned float": ([32], "evenly"),
}


@pytest.mark.parametrize("kind", PLANS)
def test_fast_engine_equals_the_reference_to_the_bit(
    digits_task: CompressionTask, kind: str
) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    images = digits_task.search.images[:200]
    plan = mixed_plan(graph, *PLANS[kind], seed=len(kind))
    quick = FastEngine(graph, calibration).logits(plan, images)
    slow = ReferenceEngine(graph, calibration).logits(plan, images)
    if "float" not in kind:
        assert torch.equal(quick, slow)
    else:  # a float layer may sum in another order, and a later layer then round another way
        close = torch.isclose(quick, slow, atol=1e-4 * float(slow.abs().max())).all(1)
        assert float(close.double().mean()) >= 0.98
        assert torch.equal(quick.argmax(1), slow.argmax(1))


def lively(name: str) -> tuple[LayerGraph, torch.Tensor, torch.Tensor]:
    listed = LISTED[name]
    network = listed.build()
    size = max(32, listed.small_image_size)
    images = torch.randn(80, 3, size, size, generator=torch.Generator().manual_seed(1))
    liven(network, images[:16])
    return trace(network, (3, size, size)), images[:16], images[16:]


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("shufflenet_v1", "mobilenet_v3_small", "squeezenet1_1")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in QUICK
    ],
)
@pytest.mark.filterwarnings("ignore:channels are left whole")
def test_engines_agree_on_other_networks(name: str) -> None:
    graph, calibration, images = lively(name)
    quick, slow = FastEngine(graph, calibration), ReferenceEngine(graph, calibration)
    for seed, (widths, share) in enumerate([([8], 1.0), ([5, 6, 7, 8], 0.7), ([6, 32], 1.0)]):
        bits = np.random.default_rng(seed).choice(widths, (2, len(graph.layers)))
        plan = CompressionPlan.of(graph, keep_share(graph, share), *bits)
        mine, theirs = quick.logits(plan, images), slow.logits(plan, images)
        agreement = float((mine.argmax(1) == theirs.argmax(1)).double().mean())
        close = torch.isclose(mine, theirs, atol=1e-3 * float(theirs.abs().max())).all(1)
        # Where floats are summed in another order a value at the edge between two codes may fall
        # to the other side, which these random networks amplify.
        floats = 32 in widths
        assert agreement >= (0.97 if floats else 0.998)
        assert float(close.double().mean()) >= (0.4 if floats else 0.98)


@pytest.mark.parametrize("exact", ["nothing", "small codes"])
def test_machines_without_integer_kernels_get_the_same_figures(
    digits_task: CompressionTask, monkeypatch: pytest.MonkeyPatch, exact: str
) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    images = digits_task.search.images[:200]
    plan = mixed_plan(graph, [4, 6, 8], "evenly", seed=3)
    expected = FastEngine(graph, calibration).logits(plan, images)
    poor = kernels.IntegerKernels(
        available=exact != "nothing", exact_at_8_bits=False, quantize=kernels._quantize_plainly
    )
    for module in (kernels, running):
        monkeypatch.setattr(module, "integer_kernels", lambda: poor)
    engine = FastEngine(graph, calibration)
    layers = engine.prepare(plan).layers.values()
    floats = [not isinstance(layer, kernels.IntegerConv) for layer in layers]
    assert all(floats) if exact == "nothing" else 1 < sum(floats) < len(floats)
    assert torch.equal(engine.logits(plan, images), expected)


@pytest.mark.skipif(not kernels.integer_kernels().exact_at_8_bits, reason="no 8-bit integers here")
@pytest.mark.parametrize("style", [None, "evenly"])
def test_layers_run_on_integers_and_hand_on_codes(
    digits_task: CompressionTask, monkeypatch: pytest.MonkeyPatch, style: str | None
) -> None:
    engine = FastEngine(digits_task.graph, digits_task.calibration.images, batch_size=8)
    plan = mixed_plan(digits_task.graph, [8], style)
    layers = engine.prepare(plan).layers.values()
    others = [layer for layer in layers if not isinstance(layer, kernels.IntegerConv)]
    assert [type(layer.layer) for layer in others] == [nn.Linear]
    handed_on = []
    to_codes = kernels.IntegerConv.to_codes

    def noting(conv: kernels.IntegerConv, *given: Any) -> torch.Tensor:
        handed_on.append(to_codes(conv, *given))
        return handed_on[-1]

    monkeypatch.setattr(kernels.IntegerConv, "to_codes", noting)
    engine.logits(plan, digits_task.search.images[:8])
    assert len(handed_on) == 9  # from the first to the second convolution of every block
    assert {codes.dtype for codes in handed_on} == {torch.uint8}


def test_sums_that_do_not_fit_into_32_bits_are_left_to_floats() -> None:
    shape = kernels.CodeFormat(1.0, 0, 0, 255)
    for inputs, fits in ((66_000, True), (66_400, False)):  # 127 * 255 * 66,312 is above 2**31
        codes = torch.full((1, inputs, 1, 1), 127, dtype=torch.int8)
        assert kernels.sums_fit(codes, shape) == fits
    assert kernels.sums_fit(codes // 2, shape)


def test_threads_and_batches_do_not_matter(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    images = digits_task.search.images[:90]
    plan = mixed_plan(graph, [4, 6, 8])
    before = torch.get_num_threads()
    found = []
    try:
        for threads, batch in ((1, 90), (2, 40)):
            torch.set_num_threads(threads)
            found.append(FastEngine(graph, calibration, batch_size=batch).logits(plan, images))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_of_an_engine_give_the_same(duplicate: Callable[[FastEngine], FastEngine]) -> None:
    graph, calibration, images = lively("mobilenet_v3_small")
    engine = FastEngine(graph, calibration)
    engine.logits(mixed_plan(graph, [8]), images[:8])
    twin = duplicate(engine)
    plan = mixed_plan(graph, [6, 8], "evenly")
    assert torch.equal(twin.logits(plan, images[:8]), engine.logits(plan, images[:8]))
    assert len(twin.program.steps) == len(engine.program.steps)


def test_images_in_memory_seen_before_are_not_taken_for_the_same(
    digits_task: CompressionTask,
) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    engine, plan = FastEngine(graph, calibration), CompressionPlan.dense(graph, bits=6)
    memory = digits_task.search.images[:20].contiguous().numpy().copy()
    images = torch.from_numpy(memory)
    first = engine.logits(plan, images)
    turned = engine.logits(plan, images.transpose(2, 3))
    assert torch.equal(turned, engine.logits(plan, images.transpose(2, 3).clone()))
    assert not torch.equal(turned, first)
    memory[:] = memory[::-1].copy()  # without the tensor's knowledge
    assert torch.equal(engine.logits(plan, images), first.flip(0))


def test_outputs_may_take_part_in_training(digits_task: CompressionTask) -> None:
    scale = torch.ones(10, requires_grad=True)
    (digits_task.dense_evaluation.logits * scale).sum().backward()
    assert torch.equal(scale.grad, digits_task.dense_evaluation.logits.sum(0))


class NamedArguments(nn.Module):
    """Calls everything by the names of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(input=self.norm(input=self.first(input=x)))
        x = torch.add(input=self.second(input=x), other=x)
        return self.head(input=x.mean(dim=(2, 3)))


def test_arguments_may_be_given_by_name() -> None:
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = NamedArguments()
    liven(network, images[:8])
    graph = trace(network, (3, 8, 8))
    assert graph.folds == {"first": "norm"}
    plan = mixed_plan(graph, [6], "evenly")
    quick, slow = (kind(graph, images[:8]) for kind in (FastEngine, ReferenceEngine))
    assert torch.equal(quick.logits(plan, images), slow.logits(plan, images))


def test_batches_are_computed_side_by_side() -> None:
    threads = torch.get_num_threads()
    together = Barrier(2)

    def meet(_: object) -> int:
        together.wait(60)
        return torch.get_num_threads()

    try:
        assert Workers().map(meet, [0, 1, 2, 3], 2) == [1, 1, 1, 1]
    finally:
        torch.set_num_threads(threads)


def test_evaluation_counts_correct_predictions() -> None:
    logits = torch.tensor([[1.0, 0, 0], [0, 0, 2], [3, 4, 0]])
    assert Evaluation(logits, torch.tensor([0, 2, 0])).accuracy == pytest.approx(2 / 3)


def test_threads_of_the_user_take_turns(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    engine = FastEngine(graph, calibration, cache_bytes=1 << 20)
    portions = digits_task.search.images[:96].split(32)
    plans = [mixed_plan(graph, [4, 8], "evenly", seed) for seed in range(3)]
    jobs = [(plan, images) for plan in plans for images in portions]
    expected = [FastEngine(graph, calibration).logits(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: engine.logits(*job), jobs))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_images_made_in_inference_mode_are_taken(digits_task: CompressionTask) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    engine, plan = FastEngine(graph, calibration), CompressionPlan.dense(graph, bits=6)
    with torch.inference_mode():
        images = digits_task.search.images[:20].clone()
        first = engine.logits(plan, images)
        images.copy_(images.flip(0))
        assert torch.equal(engine.logits(plan, images), first.flip(0))


@pytest.mark.parametrize("kind", ["any bits", "any bits and floats", "pruned, any bits"])
def test_what_runs_on_a_gpu_gives_the_same_integers(
    digits_task: CompressionTask, kind: str
) -> None:
    graph, calibration = digits_task.graph, digits_task.calibration.images
    images, plan = digits_task.search.images[:60], mixed_plan(graph, *PLANS[kind])
    engine = FastEngine(graph, calibration)
    expected = engine.logits(plan, images)
    engine.preparer.integers = False
    layers = list(engine.prepare(plan).layers.values())
    codes = sum(isinstance(layer, devices.CodeConv) for layer in layers)
    assert codes == (19 if "float" not in kind else codes)
    assert codes > 0
    assert torch.equal(engine.logits(plan, images), expected)


def test_tensor_cores_are_tried_before_use() -> None:
    assert devices.tensor_cores_are_exact(torch.device("cpu"))
    with devices.convolution_precision(torch.device("cuda"), tensor_cores=False):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
