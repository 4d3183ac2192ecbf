"""Every step of a layer-by-layer episode is evaluated as if it were the only one."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from samples import liven

from benchmarks.network_list import LISTED
from compress_env import JointPruneQuantEnv
from compress_env.calibration import Walk, walk
from compress_env.evaluation import FastEngine, ReferenceEngine, StepwiseEngine, stepwise
from compress_env.evaluation.running import run_steps
from compress_env.importance import rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan
from compress_env.program import Program


def episode(graph: LayerGraph, seed: int, prune: float, floats: bool) -> list[CompressionPlan]:
    """Plans that decide one more layer each: its bits, and the channels it is the first to make."""
    rng = np.random.default_rng(seed)
    ranks = rank_channels(graph, rng.random(graph.atom_group.size))
    kept = [np.ones(group.size, dtype=bool) for group in graph.groups]
    bits = np.full((2, len(graph.layers)), 32)
    plans = []
    for index in range(len(graph.layers)):
        bits[:, index] = rng.choice([4, 5, 6, 7, 8, *([32] * floats)], 2)
        for number, group in enumerate(graph.groups):
            if group.layers[0] == index and rng.random() < prune:
                multiple = graph.group_multiples[number]
                count = multiple * rng.integers(1, group.size // multiple + 1)
                kept[number] = ranks[graph.group_atoms[number]] < count
        plans.append(CompressionPlan.of(graph, kept, *bits.copy()))
    return plans


def lively(name: str) -> tuple[LayerGraph, torch.Tensor, torch.Tensor]:
    listed = LISTED[name]
    network = listed.build()
    size = max(32, listed.small_image_size)
    images = torch.randn(28, 3, size, size, generator=torch.Generator().manual_seed(1))
    liven(network, images[:12])
    return trace(network, (3, size, size)), images[:12], images[12:]


def agreement(found: torch.Tensor, expected: torch.Tensor) -> float:
    close = torch.isclose(found, expected, atol=1e-3 * float(expected.abs().max()))
    return float(close.all(1).double().mean())


# Residual additions cross the prefix everywhere; a shortcut may be computed after what it is added
# to; concatenations read what was made long before; groups, shuffles and pads stand in between.
NETWORKS = ("resnet20", "mobilenet_v2", "shufflenet_v1", "densenet121", "googlenet")


@pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[1:])]
)
@pytest.mark.filterwarnings("ignore:channels are left whole")
def test_steps_are_what_the_engines_give(name: str) -> None:
    graph, calibration, images = lively(name)
    engine = StepwiseEngine(FastEngine(graph, calibration[:4]), calibration, images)
    fast, slow = FastEngine(graph, calibration), ReferenceEngine(graph, calibration)
    shares = []
    every = max(1, len(graph.layers) // 7)
    for seed, prune, floats in ((0, 0.5, False), (1, 0.0, False), (2, 0.3, True)):
        plans = episode(graph, seed, prune, floats)
        for decided, plan in list(enumerate(plans, 1))[::every]:
            found = engine.logits(plan, decided)
            assert agreement(found, fast.logits(plan, images)) >= 0.9
            if seed == 0:
                shares.append(agreement(found, slow.logits(plan, images)))
    assert np.mean(shares) >= 0.98


@pytest.mark.parametrize("prune", [0.0, 1.0])
def test_only_the_rest_of_the_network_is_computed_again(
    monkeypatch: pytest.MonkeyPatch, prune: float
) -> None:
    graph, calibration, images = lively("resnet20")
    engine = StepwiseEngine(FastEngine(graph, calibration), calibration, images)
    plans = episode(graph, 0, prune, False)
    engine.logits(plans[10], 11)
    prefix, steps = engine._prefix, len(engine.engine.program.steps)
    assert prefix is not None
    assert prefix.place > steps // 3
    assert prefix.walk.place == (prefix.place if prune else 0)
    walked, ran = [], []

    def counting_walk(program: Program, find: Any, start: Walk, stop: int, again: bool) -> Walk:
        walked.append(stop - start.place)
        return walk(program, find, start, stop, again)

    def counting_run(prepared: Any, some: list[Any], values: Any) -> Any:
        ran.append(len(some))
        return run_steps(prepared, some, values)

    monkeypatch.setattr(stepwise, "walk", counting_walk)
    monkeypatch.setattr(stepwise, "run_steps", counting_run)
    engine.logits(plans[11], 12)  # the first layer of a block, which prunes a group of its own
    assert sum(ran) == (steps - prefix.place) * len(prefix.batches)
    assert sum(walked) == (steps - prefix.place if prune else 0)
    # What it keeps is of the images alone: a few values at one place of the network.
    assert sum(map(len, engine._prefix.batches)) <= 3 * len(engine._prefix.batches)


def test_plans_need_not_be_those_of_an_episode() -> None:
    graph, calibration, images = lively("resnet20")
    engine = StepwiseEngine(FastEngine(graph, calibration), calibration, images)
    fast = FastEngine(graph, calibration)
    plans = [plan for seed in (3, 4) for plan in episode(graph, seed, 0.5, False)]
    rng = np.random.default_rng(0)
    for place in rng.choice(len(plans), 8):
        found = engine.logits(plans[place], int(rng.integers(0, 21)))
        assert agreement(found, fast.logits(plans[place], images)) == 1
    twin = pickle.loads(pickle.dumps(engine))
    assert torch.equal(twin.logits(plans[5], 3), engine.logits(plans[5], 7))


def test_bits_of_the_first_layer_after_the_prefix_may_change() -> None:
    graph, calibration, images = lively("resnet20")
    engine = StepwiseEngine(FastEngine(graph, calibration), calibration, images)
    decided = 2  # what the prefix ends with is read by one layer alone
    for bits in (8, 3, 5):
        widths = np.full((2, len(graph.layers)), 8)
        widths[1, decided] = bits
        plan = CompressionPlan.of(graph, CompressionPlan.dense(graph).kept, *widths)
        expected = FastEngine(graph, calibration).logits(plan, images)
        assert torch.equal(engine.logits(plan, decided), expected)


LAYERS = {
    "step_mode": "layer", "target_reduction": 0.98, "search_images": 40, "calibration_images": 16,
}  # fmt: skip


def rewards_of(env: JointPruneQuantEnv) -> tuple[list[float], list[dict[str, Any]]]:
    env.reset()
    rng, done, rewards, infos = np.random.default_rng(0), False, [], []
    while not done:
        _, reward, terminated, truncated, info = env.step(rng.uniform(-0.5, 0.5, 3))
        rewards.append(reward)
        infos.append({**info, "so_far": env.plan})
        done = terminated or truncated
    return rewards, infos


def test_every_step_of_an_environment_says_what_the_plan_so_far_achieves() -> None:
    env = JointPruneQuantEnv(evaluate_every_step=True, step_images=12, **LAYERS)
    rewards, infos = rewards_of(env)
    whole, _ = rewards_of(JointPruneQuantEnv(**LAYERS))
    assert rewards == whole
    task = env.task
    slow = ReferenceEngine(task.graph, task.calibration.images[:12])
    for info in infos[:-1:6]:
        right = slow.logits(info["so_far"], task.search.images[:12]).argmax(1)
        expected = float((right == task.search.labels[:12]).double().mean())
        assert info["accuracy"] == pytest.approx(expected)
    assert infos[-1]["accuracy"] == rewards[-1]
    paid, _ = rewards_of(JointPruneQuantEnv(evaluate_every_step=True, dense_reward=True, **LAYERS))
    assert sum(paid) == pytest.approx(sum(whole))
    assert paid[0] > 0.9
    other, infos = rewards_of(
        JointPruneQuantEnv(evaluate_every_step=True, step_images=12, engine="reference", **LAYERS)
    )
    assert other == rewards
    assert all("accuracy" in info for info in infos)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_mode": "network"}, "evaluate_every_step must be False unless step_mode is 'layer'"),
        ({"evaluate_every_step": 1}, "evaluate_every_step must be True or False, not 1"),
        ({"step_images": 0}, "step_images must be a whole number from 1, not 0"),
        ({"evaluate_every_step": False, "dense_reward": True}, "dense_reward must be False unless"),
        ({"finetune_steps": 1}, "evaluate_every_step must be False where finetune_steps"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JointPruneQuantEnv(**{**LAYERS, "evaluate_every_step": True, **options})


@pytest.mark.parametrize("mode", ["layer", "network"])
def test_steps_after_the_end_are_refused(mode: str) -> None:
    env = JointPruneQuantEnv(**{**LAYERS, "step_mode": mode})
    env.reset()
    action = np.zeros(env.action_space.shape)
    while not env.step(action)[2]:
        pass
    with pytest.raises(RuntimeError, match="the episode is over: call reset"):
        env.step(action)
    env.reset()
    env.step(action)


@pytest.mark.slow
def test_an_evaluated_episode_costs_less_than_three_evaluations() -> None:
    network = LISTED["resnet20"].build()
    images = torch.randn(1128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    liven(network, images[:16])
    graph, calibration = trace(network), images[1000:]
    fast = FastEngine(graph, calibration)
    engine = StepwiseEngine(fast, calibration[:32], images[:32].clone())
    plans = episode(graph, 0, 0.5, False)
    fast.logits(plans[0], images[:1000])

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    steps = sum(
        seconds(partial(engine.logits, plan, decided)) for decided, plan in enumerate(plans, 1)
    )
    whole = seconds(partial(fast.logits, plans[-1], images[:1000]))
    assert steps + whole < 3 * whole
