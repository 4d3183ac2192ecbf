"""The DGL observation, its space, and the wrappers around it."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from fake_graph_env import FakeGraphEnv, chain
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from compress_env.dgl_import import dgl
from compress_env.observations.arrays import GraphArrays, pad, unpad
from compress_env.observations.schema import numbered_layer_schema
from compress_env.spaces import GraphSpace, to_arrays, to_dgl
from compress_env.wrappers import DiscreteActions, GraphInstanceObservation, PaddedGraph


@pytest.fixture(params=["fixed", "variable"])
def space(request: pytest.FixtureRequest) -> GraphSpace:
    if request.param == "fixed":
        return GraphSpace.like(chain(5), seed=0)
    return GraphSpace(numbered_layer_schema(4, 2), max_nodes=6, max_edges=9, seed=0)


def test_dgl_form_has_the_documented_types_and_comes_back_exactly() -> None:
    arrays = chain(5)
    graph = to_dgl(arrays)
    assert isinstance(graph, dgl.DGLGraph)
    assert set(graph.canonical_etypes) == {
        ("layer", "flow", "layer"),
        ("layer", "coupling", "layer"),
    }
    assert graph.idtype == torch.int64
    assert graph.num_edges("flow") == 4
    assert sorted(zip(*(e.tolist() for e in graph.edges(etype="coupling")), strict=True)) == [
        (0, 2),
        (0, 4),
        (2, 0),
        (4, 0),
    ]
    assert graph.nodes["network"].data["features"].shape == (1, 2)
    assert to_arrays(graph) == arrays


def test_graphs_compare_by_value() -> None:
    arrays = chain(5)
    graph = to_dgl(arrays)
    for same in (to_dgl(arrays), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert same == graph
        assert same is not graph
        assert hash(same) != hash(graph)
    features = arrays.node_features.copy()
    features[3, 1] += 1e-3
    edges = arrays.edges.copy()
    edges[0, 0] = 3
    for other in (
        replace(arrays, node_features=features),
        replace(arrays, globals=-arrays.globals),
        replace(arrays, edges=edges),
        replace(arrays, edge_types=1 - arrays.edge_types),
        chain(4),
    ):
        assert to_dgl(other) != graph
    assert graph != "graph"


def test_a_graph_does_not_change_with_the_arrays_or_other_graphs() -> None:
    arrays = chain(5)
    graph, twin = to_dgl(arrays), to_dgl(arrays)
    arrays.node_features[:] = 7
    graph.nodes["layer"].data["features"][0] = 5
    graph.add_edges([0], [1], etype="flow")
    assert twin == to_dgl(chain(5))


def test_space_contains_its_samples_and_nothing_else(space: GraphSpace) -> None:
    samples = [space.sample() for _ in range(20)]
    assert all(sample in space for sample in samples)
    assert len({sample.num_edges() for sample in samples}) == (
        1 if space.structure is not None else 9
    )
    space.seed(3)
    first = space.sample()
    space.seed(3)
    assert space.sample() == first
    for value in (np.nan, np.inf, 11.0):
        arrays = to_arrays(first)
        arrays.node_features[0, 0] = value
        assert to_dgl(arrays) not in space
    assert to_dgl(chain(7)) not in space
    assert np.zeros(3) not in space
    assert dgl.graph(([0], [1])) not in space
    with pytest.raises(ValueError, match="mask"):
        space.sample(mask=np.ones(3, np.int8))


def test_fixed_space_fixes_the_edges() -> None:
    arrays = chain(5)
    edges = arrays.edges.copy()
    edges[1, 0] = 4
    assert to_dgl(arrays) in GraphSpace.like(arrays)
    assert to_dgl(replace(arrays, edges=edges)) not in GraphSpace.like(arrays)


def test_space_round_trips(space: GraphSpace) -> None:
    assert pickle.loads(pickle.dumps(space)) == space
    assert copy.deepcopy(space) == space
    assert space != GraphSpace(numbered_layer_schema(4, 2), max_nodes=6, max_edges=10)
    samples = [space.sample() for _ in range(5)]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


def test_space_and_arrays_refuse_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="max_nodes and max_edges"):
        GraphSpace(numbered_layer_schema(4, 2), max_nodes=3)
    with pytest.raises(ValueError, match="edges must be in"):
        GraphSpace.like(replace(chain(2), edges=np.array([[0], [2]])))
    with pytest.raises(ValueError, match="edge_types"):
        replace(chain(5), edge_types=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="max_nodes must be at least 5"):
        pad(chain(5), 4, 20)


def test_padding_comes_off() -> None:
    for max_nodes, max_edges in ((5, 8), (9, 30)):
        assert unpad(pad(chain(5), max_nodes, max_edges)) == chain(5)
    one = GraphArrays(
        np.ones((1, 2), np.float32),
        np.zeros((2, 0), np.int64),
        np.zeros(0, np.int64),
        np.ones(1, np.float32),
    )
    assert unpad(pad(one, 3, 2)) == one == to_arrays(to_dgl(one))


def test_padded_layout_by_hand() -> None:
    observation, _ = PaddedGraph(FakeGraphEnv(3), max_nodes=4, max_edges=6, max_groups=3).reset()
    # Flow 0 -> 1 -> 2, coupling 0 <-> 2; groups {0, 2} and {1}.
    assert observation["edges"].tolist() == [0, 1, 1, 2, 0, 2, 2, 0, 0, 0, 0, 0]
    assert observation["edge_types"].tolist() == [0, 0, 1, 1, 0, 0]
    assert observation["edge_mask"].tolist() == [1, 1, 1, 1, 0, 0]
    assert observation["node_mask"].tolist() == [1, 1, 1, 0]
    assert observation["node_features"].reshape(4, -1)[3].tolist() == [0] * 4
    assert observation["group_layers"].reshape(3, 4).tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    assert observation["group_mask"].tolist() == [1, 1, 0]


def test_graph_instance_carries_the_globals_in_every_node() -> None:
    env = GraphInstanceObservation(FakeGraphEnv(3))
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation.nodes.shape == (3, 6)
    assert (observation.nodes[:, 4:] == chain(3).globals).all()
    assert observation.edge_links.tolist() == [[0, 1], [1, 2], [0, 2], [2, 0]]
    assert observation.edges.tolist() == [0, 0, 1, 1]


def test_discrete_actions_are_evenly_spaced_and_centred() -> None:
    env = DiscreteActions(FakeGraphEnv(3), levels=5)
    levels = np.array([0, 1, 2, 3, 4, 0, 2, 4])
    assert env.action(levels).tolist() == [-1, -0.5, 0, 0.5, 1, -1, 0, 1]
    with pytest.raises(ValueError, match="action must be in"):
        env.action(levels + 1)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        DiscreteActions(FakeGraphEnv(3), levels=1)
    with pytest.raises(ValueError, match="GraphSpace"):
        PaddedGraph(PaddedGraph(FakeGraphEnv(3)))
    with pytest.raises(ValueError, match="max_nodes must be at least 3"):
        PaddedGraph(FakeGraphEnv(3), max_nodes=2)


def test_environment_checkers_have_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("FakeGraph-v0").unwrapped)
        for env in (
            PaddedGraph(gym.make("FakeGraph-v0")),
            PaddedGraph(gym.make("FakeGraph-v0"), max_nodes=9, max_edges=20, max_groups=4),
            DiscreteActions(PaddedGraph(gym.make("FakeGraph-v0"))),
        ):
            sb3_check_env(env)


@pytest.mark.parametrize("wrappers", [(), (PaddedGraph,)], ids=["dgl", "padded"])
def test_vector_environments_agree(wrappers: tuple[type[gym.Wrapper], ...]) -> None:
    kinds = [("sync", {}), ("async", {}), ("async", {"shared_memory": False})]
    seen = []
    for mode, keywords in kinds:
        envs = gym.make_vec(
            "FakeGraph-v0", 2, mode, vector_kwargs=keywords, wrappers=wrappers, num_nodes=4
        )
        first, _ = envs.reset(seed=0)
        envs.action_space.seed(0)
        second, *_ = envs.step(envs.action_space.sample())
        assert first in envs.observation_space
        assert second in envs.observation_space
        seen.append((first, second))
        envs.close()
    batch = seen[0][0]
    if not wrappers:
        assert batch[0] != batch[1]
        assert seen[0][0] != seen[0][1]
        assert seen[0] == seen[1] == seen[2]
    else:
        for other in seen[1:]:
            for mine, theirs in zip(seen[0], other, strict=True):
                assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def _convolve() -> None:
    torch.nn.functional.conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))


def test_forked_processes_compute_after_the_parent_has() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    _convolve()
    child = multiprocessing.get_context("fork").Process(target=_convolve)
    child.start()
    child.join(30)
    finished = child.exitcode
    child.kill()
    torch.set_num_threads(threads)
    assert finished == 0


def test_shared_memory_without_copies_shows_the_present() -> None:
    envs = gym.make_vec("FakeGraph-v0", 2, "async", vector_kwargs={"copy": False})
    reference = gym.make_vec("FakeGraph-v0", 2, "sync")
    live, _ = envs.reset(seed=0)
    assert tuple(live) == reference.reset(seed=0)[0]
    envs.step(envs.action_space.sample())
    stepped = tuple(live)
    assert stepped == pickle.loads(pickle.dumps(live))
    assert stepped != reference.reset(seed=0)[0]
    envs.close()
