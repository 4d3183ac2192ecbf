"""Actions that name the channels that stay."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample

from compress_env.actions import ActionDecoder, Choice
from compress_env.complexity import ComplexityModel
from compress_env.env import JointPruneQuantEnv
from compress_env.importance import rank_channels
from compress_env.layer_actions import LayerActionDecoder

ID = "JointPruneQuant-ResNet20-v0"
SMALL = {"search_images": 60, "calibration_images": 16}
PRUNING = {"metric": "macs", "bits": [32]}


def decoder(name: str = "resnet20", **options: Any) -> ActionDecoder:
    graph = sample(name).graph
    scores = np.random.default_rng(0).random(graph.atom_group.size)
    return ActionDecoder(graph, ComplexityModel(graph), rank_channels(graph, scores), **options)


def decode_all(decode: ActionDecoder, actions: np.ndarray) -> Choice:
    choice, by_layer = decode.dense(), LayerActionDecoder(decode)
    for layer, action in enumerate(actions):
        choice = by_layer.decode_choice(action, layer, choice)
    return choice


def shape(decode: ActionDecoder) -> tuple[int, int]:
    return len(decode.fixed), LayerActionDecoder(decode).choice_size


@pytest.mark.parametrize("options", [{**PRUNING, "target_reduction": 0.5}, {}])
def test_zero_is_the_base_plan(options: dict[str, Any]) -> None:
    decode = decoder(**options)
    assert decode.plan(decode_all(decode, np.zeros(shape(decode)))) == decode.plan(decode.base)


def test_signs_say_which_channels_stay() -> None:
    decode = decoder(**PRUNING, target_reduction=0.01)
    actions = np.random.default_rng(0).uniform(-1, 1, shape(decode))
    actions[:, 0] = 1.0  # no group is left empty
    choice = decode_all(decode, actions)
    kept = decode.plan(choice).kept_atoms(decode.graph)
    decided = 0
    for layer, action in enumerate(actions):
        atoms = LayerActionDecoder(decode).own_atoms(layer)
        assert np.array_equal(kept[atoms], action[: atoms.size] > 0)
        decided += atoms.size
    assert decided == (decode.graph.atom_group >= 0).sum()
    # A layer with fewer channels does not look at the rest.
    for layer in range(len(actions)):
        actions[layer, LayerActionDecoder(decode).own_atoms(layer).size : -2] *= -1
    assert decode.plan(decode_all(decode, actions)) == decode.plan(choice)


def test_all_negative_leaves_the_highest() -> None:
    decode = decoder(**PRUNING, target_reduction=0.01)
    actions = np.random.default_rng(0).uniform(-1, -0.5, shape(decode))
    kept = decode.plan(decode_all(decode, actions)).kept_atoms(decode.graph)
    for layer, action in enumerate(actions):
        for group in LayerActionDecoder(decode).own_groups(layer):
            atoms = decode.graph.group_atoms[group]
            start = int(np.flatnonzero(LayerActionDecoder(decode).own_atoms(layer) == atoms[0])[0])
            numbers = action[start : start + atoms.size]
            assert np.flatnonzero(kept[atoms]).tolist() == [int(numbers.argmax())]


def test_the_budget_takes_the_lowest_first() -> None:
    decode = decoder(**PRUNING, target_reduction=0.6)
    actions = np.random.default_rng(0).uniform(0.1, 1, shape(decode))
    choice = decode_all(decode, actions)
    assert decode.target_met(choice)
    kept = decode.plan(choice).kept_atoms(decode.graph)
    lowered = 0
    for layer, action in enumerate(actions):
        for group in LayerActionDecoder(decode).own_groups(layer):
            atoms = decode.graph.group_atoms[group]
            start = int(np.flatnonzero(LayerActionDecoder(decode).own_atoms(layer) == atoms[0])[0])
            numbers, stays = action[start : start + atoms.size], kept[atoms]
            if not stays.all():
                lowered += 1
                assert numbers[~stays].max() < numbers[stays].min()
    assert lowered


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v1"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_choice_meets_the_target(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = [{**PRUNING, "target_reduction": 0.5}, {"target_reduction": 0.98}]
    decode = decoder(name, **options[seed % 2])
    choice = decode_all(decode, rng.uniform(-1, 1, shape(decode)).clip(-rng.random(), 1))
    assert decode.target_met(choice)
    whole = choice.counts == decode.sizes
    assert np.all(whole | (choice.counts % decode.multiples == 0))
    # The groups of a grouped convolution stay equal, whatever was chosen.
    kept = decode.plan(choice).kept_atoms(decode.graph)
    for atoms, multiple in zip(decode.graph.group_atoms, decode.multiples, strict=True):
        if multiple > 1:
            counts = np.bincount(decode.graph.atom_cell[atoms], weights=kept[atoms])
            assert np.ptp(counts[np.unique(decode.graph.atom_cell[atoms])]) == 0


def test_in_the_environment() -> None:
    options = {**PRUNING, "target_reduction": 0.2, "step_mode": "layer", **SMALL}
    env = gym.make(ID, channel_action="choice", **options)
    assert env.action_space.shape == (66,)  # 64 channels and two bits
    env.reset()
    rng, done, wanted = np.random.default_rng(0), False, []
    decode = env.unwrapped.decoder
    while not done:
        # Only odd channels go, a quarter of them.
        action = np.where(rng.random(66) < 0.25, -1.0, 1.0).astype(np.float32)
        action[::2] = 1
        wanted.append(action[: LayerActionDecoder(decode).own_atoms(len(wanted)).size] > 0)
        _, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    assert terminated and info["reduction"] >= 0.2 and 0 <= reward <= 1
    kept = np.concatenate(info["plan"].kept)
    # What was to go is gone; of the rest the budget may have taken more.
    assert not kept[~np.concatenate(wanted)].any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="channel_action must be one of count, choice, not 'all'"):
        JointPruneQuantEnv(channel_action="all")
    with pytest.raises(ValueError, match="'count' unless step_mode is 'layer'"):
        JointPruneQuantEnv(channel_action="choice")
