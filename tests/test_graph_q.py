"""The agent that learns values of plans: what it learns, and that it finds better plans by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress_agents.agents import Agent, build_agent
from compress_agents.agents.evolution import Evolution
from compress_agents.agents.graph_q import GraphQ, mutate, rank_scores
from compress_agents.graph_networks.plan_value import DECISION_COLUMNS, PlanGraphs, ValueEnsemble
from compress_agents.measuring import BudgetSpent, MeasuredEnv
from compress_agents.records import Record
from compress_agents.running import seed_everything
from compress_agents.runs import RunFolder
from compress_env.batch_decoding import PlanBatch, decode_batch
from compress_env.env import Appraisal, JointPruneQuantEnv
from compress_env.plan import CompressionPlan

EVALUATIONS = 100


@pytest.fixture(scope="module")
def env() -> Iterator[JointPruneQuantEnv]:
    """ResNet-20 with a reward that costs nothing to find: errors of rounding, weighted by layer.

    The weights grow with depth for weights and fall with it for activations; what is pruned is
    punished. So it is a sum over layers that is known by hand.
    """
    env = JointPruneQuantEnv(
        "resnet20", "digits", target_reduction=0.985, search_images=8, calibration_images=8
    )
    depth = np.linspace(0.0, 1.0, len(env.task.graph.layers))
    minds = np.exp(3.0 * np.stack([depth, 1.0 - depth]))

    def appraise(plan: CompressionPlan) -> Appraisal:
        noise = 4.0 ** -np.stack([plan.weight_bits, plan.activation_bits]).astype(float)
        pruned = np.mean([1.0 - mask.mean() for mask in plan.kept])
        return Appraisal(-float((minds * noise).sum() + 10 * pruned), 0.0)

    env.appraise = appraise
    yield env
    env.close()


def best_of(
    agent: Agent,
    env: JointPruneQuantEnv,
    seed: int,
    folder: Path,
    evaluations: int = EVALUATIONS,
) -> tuple[float, bytes]:
    """The best reward of a search, and which plan it is."""
    record = Record(RunFolder(folder))
    measured = MeasuredEnv(env, record, lambda: record.episodes >= evaluations)
    seed_everything(seed)
    try:
        with pytest.raises(BudgetSpent):
            agent.search(measured, seed, evaluations)
    finally:
        measured.close_measuring()
    assert record.best is not None
    return record.best.reward, record.best.plan.key()


def small() -> GraphQ:
    """The agent with less of everything, where it is not about how good it is."""
    return GraphQ(candidates=80, generations=3, hidden=16)


def test_it_finds_better_plans_than_evolution(env: JointPruneQuantEnv, tmp_path: Path) -> None:
    seeds = range(2)
    learned = [best_of(GraphQ(), env, seed, tmp_path / f"q{seed}")[0] for seed in seeds]
    evolved = [best_of(Evolution(), env, seed, tmp_path / f"e{seed}")[0] for seed in seeds]
    assert min(np.subtract(learned, evolved)) > 0


def test_a_seed_repeats(env: JointPruneQuantEnv, tmp_path: Path) -> None:
    runs = [
        best_of(small(), env, seed, tmp_path / name, evaluations=24)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_decisions_are_shown_at_their_layers(env: JointPruneQuantEnv) -> None:
    decoder, graphs = env.decoder, PlanGraphs(env)
    base = decode_batch(decoder, np.zeros((1, decoder.network_action_size)))
    counts, bits = base.counts.copy(), base.bits.copy()
    bits[0, 3] = decoder.base.bits[3] - 1
    group = next(g for g, each in enumerate(env.task.graph.groups) if each.layers == (3,))
    counts[0, group] -= counts[0, group] // 4
    changed = graphs.features(PlanBatch(counts, bits, base.weights)) - graphs.features(base)
    decided = dict(zip(DECISION_COLUMNS, changed[0, :, -len(DECISION_COLUMNS) :].T, strict=True))
    of_layer = {
        name: values.nonzero().squeeze(1).tolist()
        for name, values in decided.items()
        if values.any()
    }
    assert of_layer.pop("inputs_removed") == [4]  # the layer that reads these channels
    assert set(map(tuple, of_layer.values())) == {(3,)}
    assert decided["weight_noise"][3] == 1.0  # one bit less doubles the step of rounding
    assert decided["weight_bits"][3] == pytest.approx(-1 / 3)
    assert decided["outputs_removed"][3] == 0.25
    assert not changed[0, :, : -len(DECISION_COLUMNS)].any()


def test_candidates_are_near_and_meet_the_target(env: JointPruneQuantEnv) -> None:
    decoder, generator = env.decoder, np.random.default_rng(0)
    first = np.clip(generator.normal(0, 0.3, (50, decoder.network_action_size)), -1, 1)
    plans = decode_batch(decoder, first)
    near = decode_batch(decoder, mutate(decoder, plans, 2.0, generator))
    assert all(decoder.target_met(near.choice(index)) for index in range(50))
    assert (near.bits != plans.bits).sum(axis=(1, 2)).mean() < 8
    assert len(set(near.keys()) - set(plans.keys())) > 25
    # Without a move of its own, nothing goes further than the projection moves it.
    still = decode_batch(decoder, mutate(decoder, plans, 1e-9, generator))
    assert np.array_equal(still.counts, plans.counts)
    assert np.abs(still.bits - plans.bits).max() <= 1


def test_scores_are_normal_quantiles_of_ranks() -> None:
    assert rank_scores([0.9, -1e6, 0.8]) == pytest.approx([0.967422, -0.967422, 0.0], abs=1e-6)
    assert rank_scores([1.0, 1.0]) == pytest.approx([0.0, 0.0])


def test_members_learn_and_differ(env: JointPruneQuantEnv) -> None:
    torch.manual_seed(0)
    generator, graphs = np.random.default_rng(0), PlanGraphs(env)
    shape = (120, env.decoder.network_action_size)
    plans = decode_batch(env.decoder, np.clip(generator.normal(0, 0.2, shape), -1, 1))
    rewards = [env.appraise(env.decoder.plan(plans.choice(i))).reward for i in range(120)]
    scores = rank_scores(rewards)
    targets = np.stack([scores, scores], axis=1).astype(np.float32)
    ensemble = ValueEnsemble(
        graphs, 2, encoder="typed", hidden=16, rounds=2, learning_rate=3e-3, weight_decay=0.01
    )
    known = plans.take(np.arange(80))
    ensemble.fit(graphs.features(known), targets[:80], generator, 200, 32)
    values = ensemble.values(plans.take(np.arange(80, 120)))
    for of_member in values:
        assert np.corrcoef(of_member, scores[80:])[0, 1] > 0.6  # on plans it has not seen
    assert not np.allclose(values[0], values[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"members": 1}, "members must be at least 2"),
        ({"encoder": "flat"}, "encoder must be one of gat, gcn, typed"),
        ({"moves": 0.0}, "moves must be above 0"),
        ({"warm_up": 0}, "warm_up must be at least 1"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_agent("graph-q", settings)
