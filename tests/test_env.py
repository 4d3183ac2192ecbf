"""The environment as Gymnasium and an agent see it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from small_networks import EveryCoupling
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import nn

import compress_env
from compress_env import CompressionPlan, JointPruneQuantEnv
from compress_env.data import load_splits
from compress_env.registration import environment_id
from compress_env.spaces import to_arrays
from compress_env.wrappers import DiscreteActions, PaddedGraph

ID = "JointPruneQuant-ResNet20-v0"
SMALL = {"search_images": 60, "calibration_images": 16}


def make(**options: Any) -> JointPruneQuantEnv:
    """An environment that evaluates fast."""
    return JointPruneQuantEnv(**{**SMALL, **options})


@pytest.fixture(scope="module")
def env() -> JointPruneQuantEnv:
    return make(target_reduction=0.98)


def zeros(env: gym.Env[Any, Any]) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


def column(env: JointPruneQuantEnv, observation: Any, name: str) -> np.ndarray:
    return to_arrays(observation).node_features[:, env.node_columns.index(name)]


def global_value(env: JointPruneQuantEnv, observation: Any, name: str) -> float:
    return float(to_arrays(observation).globals[env.global_columns.index(name)])


@pytest.mark.parametrize("mode", ["network", "layer"])
@pytest.mark.parametrize("render", ["ansi", "rgb_array"])
def test_checkers_have_nothing_to_say(mode: str, render: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make(ID, step_mode=mode, render_mode=render, **SMALL)
        check_env(made.unwrapped)
        sb3_check_env(PaddedGraph(made))
        sb3_check_env(DiscreteActions(PaddedGraph(made)), skip_render_check=True)


def test_all_forms_of_the_id_make_the_same_environment() -> None:
    found = []
    for name, options in (
        (ID, {}),
        (f"compress_env:{ID}", {}),
        ("JointPruneQuant-v0", {"network": "resnet20"}),
    ):
        made = gym.make(name, **options, **SMALL)
        observation, _ = made.reset(seed=0)
        found.append((observation, made.unwrapped.task.network_name))
    assert found[0] == found[1] == found[2]


def test_every_network_has_an_id() -> None:
    for name in compress_env.networks.NETWORKS:
        spec = gym.spec(environment_id(name))
        assert spec.kwargs["network"] == name


def test_spec_with_all_arguments_is_json() -> None:
    options = {
        "network": "resnet20", "dataset": "digits", "data_root": None, "weights": None,
        "target_reduction": 0.97, "metric": "bops", "bits": [2, 4, 8], "step_mode": "layer",
        "max_steps": 3, "project_to_budget": False, "importance": "l2", "reward": "agreement",
        "search_images": 60, "calibration_images": 16, "first_last_bits": None,
        "channel_multiple": 2, "image_size": None, "device": "cpu", "seed": 1,
        "engine": "reference", "finetune_steps": 0, "calibration_dtype": "float32",
    }  # fmt: skip
    made = gym.make("JointPruneQuant-v0", render_mode="ansi", **options)
    spec = gym.envs.registration.EnvSpec.from_json(made.spec.to_json())
    assert json.loads(json.dumps(spec.kwargs)) == {**options, "render_mode": "ansi"}
    again = gym.make(spec)
    assert again.reset(seed=0)[0] == made.reset(seed=0)[0]


def test_zero_is_one_step_to_uniform_bits(env: JointPruneQuantEnv) -> None:
    observation, info = env.reset(seed=0)
    dense = env.task.costs.dense
    assert info == {
        "reduction": 0.0, "macs": dense.macs, "bops": dense.bops, "params": dense.params,
        "size_bits": dense.size_bits, "target_met": False,
    }  # fmt: skip
    assert np.all(column(env, observation, "weight_bits") == 1)
    assert np.all(column(env, observation, "kept_ratio") == 1)
    observation, reward, terminated, truncated, info = env.step(zeros(env))
    assert terminated
    assert not truncated
    assert info["target_met"]
    assert info["reduction"] >= 0.98
    assert info["macs"] == dense.macs
    plan = info["plan"]
    assert isinstance(plan, CompressionPlan)
    assert type(reward) is float
    assert reward == info["accuracy"] == env.task.evaluator.evaluate(plan).accuracy
    dense_accuracy = env.task.dense_evaluation.accuracy
    assert info["accuracy_drop"] == pytest.approx(dense_accuracy - reward)
    assert info["bops"] == env.task.complexity(plan).bops
    bits = column(env, observation, "weight_bits") * 3 + 5
    assert bits == pytest.approx(plan.weight_bits, abs=1e-5)
    assert global_value(env, observation, "remaining") == 0
    assert global_value(env, observation, "steps_left") == pytest.approx(0.9)


def test_plan_alone_gives_the_same_network_and_figures(env: JointPruneQuantEnv) -> None:
    env.reset()
    action = np.random.default_rng(1).uniform(-0.4, 0.4, env.action_space.shape)
    _, _, _, _, info = env.step(action)
    data = json.loads(json.dumps(info["plan"].to_json()))
    plan = CompressionPlan.from_json(data, env.task.graph, "resnet20")
    network = compress_env.compress(env.task.network, plan, env.task.calibration.images)
    with torch.no_grad():
        right = network(env.task.search.images).argmax(1) == env.task.search.labels
    assert float(right.double().mean()) == info["accuracy"]
    assert env.task.complexity(plan).bops == info["bops"]


def rollout(env: gym.Env[Any, Any], seed: int) -> list[Any]:
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    found: list[Any] = [observation, info]
    done = False
    while not done:
        action = rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        found += [observation, reward, terminated, truncated, info]
        done = terminated or truncated
    return found


@pytest.mark.parametrize("mode", ["network", "layer"])
def test_same_seed_and_actions_give_the_same_to_the_bit(mode: str) -> None:
    first, second = (make(step_mode=mode, target_reduction=0.98) for _ in range(2))
    assert rollout(first, 3) == rollout(second, 3) == rollout(first, 3)
    third = pickle.loads(pickle.dumps(first))
    assert rollout(third, 3) == rollout(first, 3)


def test_pickle_carries_the_middle_of_an_episode() -> None:
    env = make(project_to_budget=False, target_reduction=0.995)
    env.reset(seed=0)
    assert not env.step(np.full(env.action_space.shape, 0.3))[2]
    twin = pickle.loads(pickle.dumps(env))
    action = np.full(env.action_space.shape, -0.2)
    assert twin.step(action) == env.step(action)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda shape: np.full(shape, np.nan), "finite: it holds NaN"),
        (lambda shape: np.full(shape, np.inf), "finite: it holds NaN or inf"),
        (lambda shape: np.zeros(shape[0] - 1), r"shape \(52,\), not \(51,\)"),
        (lambda shape: np.zeros((1, *shape)), r"shape \(52,\), not \(1, 52\)"),
        (lambda shape: 0.0, r"shape \(52,\), not \(\)"),
        (lambda shape: np.zeros(shape, complex), "real numbers, not complex"),
        (lambda shape: ["a"] * shape[0], "real numbers, not <U1"),
    ],
)
def test_bad_actions_are_refused(env: JointPruneQuantEnv, action: Any, words: str) -> None:
    env.reset()
    with pytest.raises(ValueError, match=f"action must .*{words}"):
        env.step(action(env.action_space.shape))


def test_pruning_accumulates_until_time_is_up() -> None:
    env = make(project_to_budget=False, target_reduction=0.9999, max_steps=3)
    env.reset()
    groups = len(env.task.graph.groups)
    action = np.ones(env.action_space.shape)
    action[:groups] = -0.5  # keeps 1 - 0.25 of what is there
    kept, left = [], []
    for step in range(3):
        observation, reward, terminated, truncated, info = env.step(action)
        kept.append([int(mask.sum()) for mask in env.plan.kept])
        left.append(global_value(env, observation, "steps_left"))
        assert not terminated
        assert "accuracy" not in info
        assert (truncated, reward) == ((True, -1.0) if step == 2 else (False, 0.0))
    sizes = env.decoder.sizes
    assert kept[0] == np.rint(0.75 * sizes).tolist()
    assert kept[1] == np.rint(0.75 * np.rint(0.75 * sizes)).tolist()
    assert np.all(np.array(kept[2]) < np.array(kept[1]))
    assert info["plan"] == env.plan
    assert left == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-6)
    assert not np.any(np.diff([env.reset()[1]["macs"], env.task.costs.dense.macs]))


def test_without_projection_the_episode_ends_when_the_target_is_met() -> None:
    env = make(project_to_budget=False, target_reduction=0.98)
    env.reset()
    _, reward, terminated, _, _ = env.step(np.ones(env.action_space.shape))
    assert (reward, terminated) == (0.0, False)  # eight bits everywhere
    _, reward, terminated, _, info = env.step(zeros(env))
    assert terminated
    assert reward == info["accuracy"]


def test_layer_mode_shows_which_layer_is_next() -> None:
    env = make(step_mode="layer", target_reduction=0.98)
    observation, _ = env.reset()
    layers = len(env.task.graph.layers)
    for step in range(layers):
        assert np.flatnonzero(column(env, observation, "is_next")).tolist() == [step]
        assert np.flatnonzero(column(env, observation, "is_decided")).tolist() == [*range(step)]
        observation, reward, terminated, truncated, info = env.step(np.array([0, 1.0, 1.0]))
        assert terminated == (step == layers - 1)
        assert not truncated
        assert terminated or reward == 0.0
    assert not column(env, observation, "is_next").any()
    assert info["target_met"]
    assert reward == info["accuracy"]
    bits = info["plan"].weight_bits
    assert bits[1] == 8  # the first to choose got what they asked for
    assert bits[-2] == 2


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vector_environments(kind: str) -> None:
    vector = gym.make_vec(ID, num_envs=2, vectorization_mode=kind, **SMALL)
    try:
        observations, _ = vector.reset(seed=0)
        assert len(observations) == 2
        single = make()
        assert observations[1] == single.reset()[0]
        actions = np.stack([zeros(single), np.full(single.action_space.shape, 0.1)])
        observations, rewards, terminated, _, infos = vector.step(actions.astype(np.float32))
        expected = single.step(actions[1].astype(np.float32))
        assert rewards[1] == expected[1]
        assert terminated.all()
        assert infos["accuracy"][1] == expected[4]["accuracy"]
    finally:
        vector.close()


def test_padded_vector_environment_batches() -> None:
    vector = gym.make_vec(
        ID, num_envs=2, vectorization_mode="sync", wrappers=[PaddedGraph], **SMALL
    )
    observations, _ = vector.reset(seed=0)
    nodes = len(make().task.graph.layers)
    assert observations["node_mask"].shape == (2, nodes)
    assert observations["edges"].dtype == np.int32


def test_pictures(env: JointPruneQuantEnv) -> None:
    text = make(render_mode="ansi")
    text.reset()
    text.step(np.full(text.action_space.shape, -0.2))
    table = text.render()
    assert all(layer.name in table for layer in text.task.graph.layers)
    assert f"BOPs reduction {text.task.reduction(text.plan):.2%}" in table
    drawn = make(render_mode="rgb_array")
    drawn.reset()
    dense = drawn.render()
    assert dense.dtype == np.uint8
    assert dense.ndim == 3
    assert dense.shape[2] == 3
    drawn.step(np.full(drawn.action_space.shape, -0.2))
    assert drawn.render().shape == dense.shape
    assert (drawn.render() != dense).any()


@pytest.mark.filterwarnings("ignore:no weights given")
def test_networks_and_splits_of_ones_own() -> None:
    torch.manual_seed(0)
    splits = load_splits("digits")
    env = make(network=EveryCoupling(), dataset=splits, target_reduction=0.97)
    observation, _ = env.reset(seed=0)
    assert env.task.network_name == "EveryCoupling"
    kinds = [column(env, observation, f"is_{kind}") for kind in ("conv", "depthwise")]
    assert np.stack(kinds).sum(1).tolist() == [5, 1]
    assert env.step(zeros(env))[2]
    named = make(network="small_networks:EveryCoupling", target_reduction=0.97)
    named.reset(seed=0)
    assert named.step(zeros(named))[4]["bops"] == env.task.complexity(env.plan).bops


@pytest.mark.filterwarnings("ignore:channels are left whole")
def test_a_network_without_anything_to_prune_is_quantized() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(1, 4), torch.nn.Conv2d(4, 4, 3),
        torch.nn.GroupNorm(2, 4), torch.nn.Flatten(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    for some in ({}, {"step_mode": "layer"}, {"bits": [8], "target_reduction": 0.93}):
        options = {"target_reduction": 0.95, **some}
        env = make(network=network, dataset=load_splits("digits"), **options)
        assert not env.task.graph.groups
        PaddedGraph(env).reset()
        assert rollout(env, 0)[-1]["target_met"]


def test_observations_stay_in_their_range() -> None:
    env = make(target_reduction=0.99, project_to_budget=False, max_steps=100)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        observation, _, *over, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        if any(over):
            env.reset()
        arrays = to_arrays(observation)
        assert np.isfinite(arrays.node_features).all()
        assert np.abs(arrays.node_features).max() <= 1.5
        assert np.abs(arrays.globals).max() <= 1.5
        assert env.observation_space.contains(observation)
        assert {int(k) for k in arrays.edge_types} == {0, 1}


@pytest.mark.parametrize("name", ["agreement", "divergence", "accuracy_and_divergence"])
def test_other_rewards_are_best_for_the_dense_network(name: str) -> None:
    reward = compress_env.rewards.REWARDS[name]
    env = make(reward=name, target_reduction=0.99)
    env.reset()
    found = env.step(zeros(env))[1]
    dense = env.task.dense_evaluation
    assert type(found) is float
    assert found < reward(dense, dense)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "resnet21"}, "network must be one of resnet20"),
        ({"dataset": "mnist"}, "dataset must be one of digits"),
        ({"dataset": "imagefolder"}, "data_root"),
        ({"step_mode": "all"}, "step_mode must be one of network, layer, not 'all'"),
        ({"max_steps": 0}, "max_steps must be a whole number from 1, not 0"),
        ({"reward": "speed"}, "reward must be one of accuracy"),
        ({"importance": "l3"}, "importance must be one of l1"),
        ({"engine": "turbo"}, "engine must be one of fast, reference"),
        ({"render_mode": "human"}, "render_mode must be 'ansi' or 'rgb_array', not 'human'"),
        ({"search_images": 0}, "search_images must be a whole number from 1, not 0"),
        ({"seed": -1}, "seed must be a whole number from 0, not -1"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not to be had here"),
        ({"metric": "flops"}, "metric must be one of bops"),
        ({"metric": "latency"}, "latency_table must be given for metric 'latency'"),
        ({"latency_table": "x"}, "latency_table must be left out for metric 'bops'"),
        ({"bits": [1]}, "bits must be whole numbers"),
        ({"target_reduction": 2}, "target_reduction must be above 0 and below 1, not 2"),
        ({"target_reduction": "most"}, "target_reduction must be above 0 and below 1, not 'most'"),
        ({"first_last_bits": 8.0}, "first_last_bits must be None, 2 to 8 or 32, not 8.0"),
        ({"weights": "/no/such/file.safetensors"}, "weights"),
        ({"weights": 3}, "weights must be a path, not 3"),
        ({"data_root": 3}, "data_root must be a path, not 3"),
        ({"dataset": ["digits"]}, "dataset must be a name or Splits, not"),
        ({"network": 3}, "network must be a name or an nn.Module, not 3"),
        ({"device": None}, "device must be a name such as 'cpu' or 'cuda', not None"),
        ({"device": "meta"}, "device: 'meta' holds no values"),
        ({"engine": 3}, "engine must be one of fast, reference, or a callable, not 3"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_networks_that_cannot_classify_are_refused() -> None:
    wide, broken = nn.Conv2d(3, 10, 3).double(), nn.Conv2d(3, 10, 3)
    nn.init.constant_(broken.weight, float("nan"))
    for layer, words in (
        (wide, r"must be in float32 \(network.float\(\)\), '0.weight' is torch.float64"),
        (broken, "parameter '0.weight' has values that are no numbers"),
        (nn.Conv2d(3, 10, 3), r"its outputs must be \(2, classes\), not \(2, 10, 6, 6\)"),
    ):
        with pytest.raises(ValueError, match=words):
            JointPruneQuantEnv(nn.Sequential(layer, nn.ReLU()), "digits")


def test_make_and_reset_take_under_three_seconds() -> None:
    script = (
        "import time, gymnasium, torch, compress_env, compress_env.dgl_import, sklearn.datasets\n"
        "import torchvision\n"
        "started = time.process_time()\n"  # other tests may be running beside this one
        f"gymnasium.make({ID!r}).reset(seed=0)\n"
        "print(time.process_time() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 3
