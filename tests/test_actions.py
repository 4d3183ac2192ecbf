"""From actions to plans: the zero action, the projection onto the budget, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample

from compress_env.actions import ActionDecoder, Choice
from compress_env.batch_decoding import decode_batch
from compress_env.complexity import METRICS, ComplexityModel
from compress_env.importance import rank_channels
from compress_env.layer_actions import LayerActionDecoder

seeds = st.integers(0, 2**32 - 1)


def decoder(name: str = "resnet20", **options: object) -> ActionDecoder:
    graph = sample(name).graph
    scores = np.random.default_rng(0).random(graph.atom_group.size)
    return ActionDecoder(graph, ComplexityModel(graph), rank_channels(graph, scores), **options)


def zero(decode: ActionDecoder) -> Choice:
    return decode.decode(np.zeros(decode.network_action_size), decode.dense(), True)


def random_action(decode: ActionDecoder, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, decode.network_action_size) * rng.uniform(0, 1)
    groups = len(decode.sizes)
    if rng.random() < 0.5:
        action[:groups] = np.maximum(action[:groups], 0)
    return action


@pytest.mark.parametrize("target", [0.9, 0.9636, 0.984, 0.9945])
@pytest.mark.parametrize("first_last", [8, None])
def test_zero_is_uniform_bits_that_meet_the_target(target: float, first_last: int | None) -> None:
    decode = decoder(target_reduction=target, first_last_bits=first_last)
    choice = zero(decode)
    assert np.array_equal(choice.bits, decode.base.bits)
    assert np.array_equal(choice.counts, decode.sizes)  # nothing pruned
    assert decode.target_met(choice)
    free = choice.bits[~decode.fixed].reshape(-1)
    assert int(decode.fixed.sum()) == (2 if first_last else 0)
    assert np.all(choice.bits[decode.fixed] == 8)
    # One width, and one more for as many as the budget has left: the first in the data flow.
    assert np.all(np.diff(free) <= 0)
    assert free[0] - free[-1] <= 1
    plan = decode.plan(choice)
    assert all(mask.all() for mask in plan.kept)


def test_zero_without_projection_is_the_same_plan() -> None:
    decode = decoder(target_reduction=0.98)
    choice = decode.decode(np.zeros(decode.network_action_size), decode.dense(), False)
    assert np.array_equal(choice.bits, decode.base.bits)


def test_each_entry_reaches_every_width_and_every_share() -> None:
    decode = decoder(target_reduction=0.98)
    size = decode.network_action_size
    highest = decode.decode(np.ones(size), decode.dense(), False)
    lowest = decode.decode(-np.ones(size), decode.dense(), False)
    assert np.all(highest.bits[~decode.fixed] == 8)
    assert np.all(lowest.bits[~decode.fixed] == 2)
    assert np.array_equal(highest.counts, decode.sizes)
    assert np.array_equal(lowest.counts, decode.multiples)
    assert np.all(lowest.counts == 1)


def next_bit(decode: ActionDecoder, action: np.ndarray, choice: Choice) -> Choice | None:
    """The choice with the one bit more that the tie order gives next, or None."""
    wanted = decode.base.bits + action[len(decode.sizes) :].reshape(-1, 2) * decode.span
    entries = wanted.size
    wanted = wanted + 1e-3 * np.arange(entries, 0, -1).reshape(-1, 2) / entries
    above = np.searchsorted(decode.allowed, choice.bits, side="right")
    room = (above < decode.allowed.size) & ~decode.fixed[:, None]
    if not room.any():
        return None
    higher = decode.allowed[np.minimum(above, decode.allowed.size - 1)]
    distance = np.where(room, (higher + choice.bits) / 2 - wanted, np.inf)
    place = np.unravel_index(np.argmin(distance), distance.shape)
    bits = choice.bits.copy()
    bits[place] = higher[place]
    return Choice(choice.counts, bits)


@settings(max_examples=40)
@given(seed=seeds, target=st.sampled_from([0.95, 0.98, 0.99]))
def test_projection_uses_the_budget_and_never_exceeds_it(seed: int, target: float) -> None:
    decode = decoder(target_reduction=target)
    action = random_action(decode, seed)
    choice = decode.decode(action, decode.dense(), True)
    assert decode.target_met(choice)
    more = next_bit(decode, action, choice)
    assert more is None or not decode.target_met(more)


@pytest.mark.parametrize("name", ["shufflenet_v2", "regnet_y_400mf"])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=3)
@given(seed=seeds)
def test_budget_holds_in_every_metric(name: str, metric: str, seed: int) -> None:
    decode = decoder(name, metric=metric, target_reduction=0.7 if metric != "bops" else 0.97)
    assert decode.target_met(zero(decode))
    choice = decode.decode(random_action(decode, seed), decode.dense(), True)
    assert decode.target_met(choice)
    plan = decode.plan(choice)
    cost = decode.costs.of_plan(decode.graph, plan).of(metric)
    assert cost == decode.cost_of(choice) <= decode.budget


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2"])
@pytest.mark.parametrize(
    ("metric", "target", "bits"),
    [
        ("bops", 0.99, range(2, 9)),
        ("bops", 0.97, [2, 8]),
        ("size", 0.8, range(2, 9)),
        ("macs", 0.4, range(2, 9)),
        ("params", 0.4, [32]),
    ],
)
def test_many_actions_are_decoded_as_one_after_the_other(
    name: str, metric: str, target: float, bits: Sequence[int]
) -> None:
    decode = decoder(name, metric=metric, target_reduction=target, bits=list(bits))
    spreads = np.linspace(0, 2, 8)[:, None]  # from the base plan to the corners
    normal = np.random.default_rng(0).normal(0, 1, (8, decode.network_action_size))
    actions = np.clip(spreads * normal, -1, 1)
    plans = decode_batch(decode, actions)
    for index, action in enumerate(actions):
        expected = decode.decode(action, decode.dense(), True)
        assert np.array_equal(plans.choice(index).counts, expected.counts)
        assert np.array_equal(plans.choice(index).bits, expected.bits)
        weights = decode.costs.layer_weights(decode.kept_atoms(expected))
        assert np.array_equal(plans.weights[index], weights)
    with pytest.raises(ValueError, match="actions must be"):
        decode_batch(decode, actions[0])


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("bits", [[32], [2, 3, 4, 5, 6, 7, 8]])
def test_where_bits_cost_nothing_a_uniform_share_is_kept(metric: str, bits: list[int]) -> None:
    decode = decoder(metric=metric, bits=bits, target_reduction=0.5)
    choice = zero(decode)
    assert np.all(choice.bits == bits[-1])  # no bit is given up for nothing
    share = choice.counts / decode.sizes
    assert np.ptp(share) <= 1 / decode.sizes.min()
    assert 0.45 <= decode.cost_of(choice) / decode.dense_cost <= 0.5
    assert np.array_equal(choice.counts, decode.base.counts)


def test_bits_of_size_are_those_of_weights() -> None:
    decode = decoder(metric="size", target_reduction=0.85)
    choice = zero(decode)
    assert np.array_equal(choice.counts, decode.sizes)
    assert decode.target_met(choice)
    # 15% of 32 * 269,722 bits are 1,294,665; 52,928 of them go to all but the 267,264 weights of
    # the inner layers, which leaves 4.6 bits for each of these.
    weights = np.array([layer.weights for layer in decode.graph.layers])[~decode.fixed]
    mean = (choice.bits[~decode.fixed, 0] * weights).sum() / weights.sum()
    assert 4.5 < mean <= (1_294_665 - 52_928) / 267_264
    assert np.ptp(choice.bits[~decode.fixed, 0]) <= 2


@pytest.mark.parametrize("target", [0.85, 0.95])
def test_bits_of_activations_are_not_given_up_for_size(target: float) -> None:
    decode = decoder(metric="size", target_reduction=target)
    assert np.all(zero(decode).bits[:, 1] == 8)
    groups = len(decode.sizes)
    action = np.zeros(decode.network_action_size)
    action[:groups] = -0.5
    action[groups::2] = np.random.default_rng(0).uniform(-1, 1, len(decode.fixed))  # of weights
    choice = decode.decode(action, decode.dense(), True)
    assert decode.target_met(choice) and np.all(choice.bits[:, 1] == 8)
    # Those that the agent gives up itself go.
    action[groups + 1 :: 2] = -1
    assert np.all(decode.decode(action, decode.dense(), True).bits[~decode.fixed, 1] == 2)
    choice = decode.dense()
    for index in range(len(decode.fixed)):
        choice = LayerActionDecoder(decode).decode(np.array([-0.5, 1.0, 0.0]), index, choice)
    assert decode.target_met(choice) and np.all(choice.bits[:, 1] == 8)


def test_channels_come_in_multiples() -> None:
    decode = decoder(channel_multiple=8, target_reduction=0.98)
    for seed in range(5):
        action = random_action(decode, seed)
        counts = decode.decode(-np.abs(action), decode.dense(), True).counts
        assert np.all((counts % 8 == 0) & (counts >= 8))
    # A group that is no multiple in size may stay whole.
    inner = decoder("mobilenet_v3_small", channel_multiple=16, target_reduction=0.97)
    assert any(inner.sizes % 16)
    assert np.array_equal(zero(inner).counts, inner.sizes)
    kept = inner.decode(-np.full(inner.network_action_size, 0.6), inner.dense(), True).counts
    assert np.all((kept % 16 == 0) | (kept == inner.sizes))


@settings(max_examples=25)
@given(seed=seeds, target=st.sampled_from([0.9, 0.98, 0.9945]))
def test_layer_by_layer_ends_at_the_target(seed: int, target: float) -> None:
    decode = decoder(target_reduction=target)
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1, 1)
    choice = decode.dense()
    for index in range(len(decode.fixed)):
        before = choice
        choice = LayerActionDecoder(decode).decode(rng.uniform(low, 1, 3), index, choice)
        assert np.array_equal(np.delete(choice.bits, index, 0), np.delete(before.bits, index, 0))
    assert decode.target_met(choice)
    assert np.all(np.isin(choice.bits[~decode.fixed], decode.allowed))
    assert np.all((choice.counts >= 1) & (choice.counts <= decode.sizes))


def test_layer_by_layer_zero_is_the_base_plan() -> None:
    decode = decoder(target_reduction=0.98)
    choice = decode.dense()
    for index in range(len(decode.fixed)):
        choice = LayerActionDecoder(decode).decode(np.zeros(3), index, choice)
    assert np.array_equal(choice.bits, decode.base.bits)
    assert np.array_equal(choice.counts, decode.base.counts)


def test_kept_channels_are_those_that_rank_first() -> None:
    decode = decoder(target_reduction=0.98)
    choice = Choice(np.maximum(decode.sizes // 3, 1), decode.base.bits)
    plan = decode.plan(choice)
    for mask, atoms, count in zip(plan.kept, decode.graph.group_atoms, choice.counts, strict=True):
        assert int(mask.sum()) == count
        assert set(decode.ranks[atoms[mask]]) == set(range(count))
    assert np.array_equal(plan.kept_atoms(decode.graph), decode.kept_atoms(choice))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"target_reduction": 0.999999},
            r"target_reduction 0\.999999 cannot be reached: with bits 2, .* is 0\.99",
        ),
        ({"target_reduction": 1.0}, "target_reduction must be above 0 and below 1, not 1.0"),
        ({"target_reduction": float("nan")}, "target_reduction must be above 0 and below 1"),
        ({"bits": [4, 9]}, "bits must be whole numbers from 2 to 8, or only 32"),
        ({"bits": []}, "bits must be"),
        ({"bits": [4, 32]}, "bits must be"),
        ({"bits": [4.0]}, "bits must be"),
        ({"metric": "flops"}, "metric must be one of bops, macs, params, size, latency, not 'flo"),
        ({"metric": "latency"}, "cost must be given for metric 'latency'"),
        ({"first_last_bits": 1}, "first_last_bits must be None, 2 to 8 or 32, not 1"),
        ({"channel_multiple": 0}, "channel_multiple must be a whole number from 1, not 0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decoder(**options)
