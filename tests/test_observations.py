"""Observations as objects: one's own, several node and edge types, and their pages."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import compress_env.observations
from benchmarks import observation_pages
from compress_agents.graph_networks.batching import batch_graphs
from compress_env.dgl_import import dgl
from compress_env.env import JointPruneQuantEnv
from compress_env.observations import OBSERVATIONS, EdgeType, GraphArrays, GraphSchema, NodeType
from compress_env.observations.arrays import pad, unpad
from compress_env.spaces import GraphSpace, to_arrays, to_dgl
from compress_env.wrappers import GraphInstanceObservation, PaddedGraph

SCHEMA = GraphSchema(
    nodes=(NodeType("wide", ("a", "b", "c")), NodeType("narrow", ("d",))),
    edges=(
        EdgeType("wide", "to", "narrow", ("weight",)),
        EdgeType("narrow", "to", "narrow"),
        EdgeType("narrow", "back", "wide", ("x", "y")),
    ),
    globals=("g",),
)


def small() -> GraphArrays:
    """Two wide nodes (rows 0 and 1), two narrow ones (2 and 3), four edges."""
    return GraphArrays(
        np.array([[1, 2, 3], [4, 5, 6], [7, 0, 0], [8, 0, 0]], np.float32),
        np.array([[0, 1, 2, 3], [2, 2, 3, 1]]),
        np.array([0, 0, 1, 2]),
        np.array([0.5], np.float32),
        np.array([0, 0, 1, 1]),
        np.array([[0.1, 0], [0.2, 0], [0, 0], [0.3, 0.4]], np.float32),
    )


def test_dgl_form_of_several_types_by_hand() -> None:
    graph = to_dgl(small(), SCHEMA)
    assert graph.nodes["wide"].data["features"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert graph.nodes["narrow"].data["features"].tolist() == [[7], [8]]
    assert [ends.tolist() for ends in graph.edges(etype=("wide", "to", "narrow"))] == [
        [0, 1],
        [0, 0],
    ]
    assert [ends.tolist() for ends in graph.edges(etype="back")] == [[1], [1]]
    features = graph.edges["wide", "to", "narrow"].data["features"]
    assert features.numpy() == pytest.approx(np.array([[0.1], [0.2]]))
    assert to_arrays(graph, SCHEMA) == small()
    assert unpad(pad(small(), 6, 7, SCHEMA)) == small()


def test_batching_several_types_equals_dgls_own() -> None:
    space = GraphSpace(SCHEMA, max_nodes=7, max_edges=9, seed=0)
    graphs = [space.sample() for _ in range(10)]
    assert all(graph in space for graph in graphs)
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(graphs)))) == graphs
    padded = [pad(to_arrays(graph, SCHEMA), 8, 9, SCHEMA) for graph in graphs]
    stacked = {key: torch.tensor(np.stack([one[key] for one in padded])) for key in padded[0]}
    mine, expected = batch_graphs(stacked, SCHEMA), dgl.batch(graphs)
    for name in expected.ntypes:
        assert torch.equal(mine.batch_num_nodes(name), expected.batch_num_nodes(name))
        assert torch.equal(mine.nodes[name].data["features"], expected.nodes[name].data["features"])
    for name in expected.canonical_etypes:
        assert torch.equal(mine.batch_num_edges(name), expected.batch_num_edges(name))
        for ours, theirs in zip(mine.edges(etype=name), expected.edges(etype=name), strict=True):
            assert torch.equal(ours, theirs)
        if "features" in expected.edges[name].data:
            theirs = expected.edges[name].data["features"]
            assert torch.equal(mine.edges[name].data["features"], theirs)


def test_what_does_not_fit_the_schema_is_named() -> None:
    arrays = small()
    arrays.edges[0, 0] = 3
    with pytest.raises(ValueError, match=r"number 0, of type \('wide', 'to', 'narrow'\)"):
        to_dgl(arrays, SCHEMA)
    with pytest.raises(ValueError, match="as many columns"):
        to_dgl(small())
    with pytest.raises(ValueError, match="must join two of the node types"):
        GraphSchema(SCHEMA.nodes, (EdgeType("wide", "to", "other"),), ("g",))
    with pytest.raises(ValueError, match="names of their own"):
        GraphSchema((NodeType("network", ("a",)),), SCHEMA.edges, ("g",))
    for observation in ("hierarchy", 3):
        with pytest.raises(ValueError, match="observation must be one of layer, hierarchical"):
            JointPruneQuantEnv(observation=observation)  # type: ignore[arg-type]


def test_the_example_of_ones_own_observation_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", compress_env.observations.__doc__ or "", re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    graph, _ = names["env"].reset()
    assert graph.ntypes == ["layer", "network"]
    assert graph.nodes["layer"].data["features"].tolist() == [[1, 1]] * 20
    padded, _ = PaddedGraph(names["env"]).reset()
    assert padded["group_mask"].sum() == 12


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_observation_passes_the_checkers_in_every_form(name: str) -> None:
    env = JointPruneQuantEnv(observation=name, search_images=20, calibration_images=10, max_steps=1)
    graph, _ = env.reset(seed=0)
    assert graph in env.observation_space
    assert pickle.loads(pickle.dumps(env.observation_space)) == env.observation_space
    check_env(env, skip_render_check=True)
    sb3_check_env(PaddedGraph(env))
    instance, _ = GraphInstanceObservation(env).reset()
    assert instance in GraphInstanceObservation(env).observation_space
    assert isinstance(gym.make("JointPruneQuant-ResNet20-v0").unwrapped, JointPruneQuantEnv)


def test_pages_explain_the_columns_that_there_are() -> None:
    pages = {path.stem for path in observation_pages.FOLDER.glob("*.md")}
    assert pages == set(OBSERVATIONS) == set(observation_pages.TABLES)
    command = "run: python -m benchmarks.observation_pages"
    for name, tables in observation_pages.TABLES.items():
        text = (observation_pages.FOLDER / f"{name}.md").read_text()
        assert observation_pages.page(name, text) == text, f"{name}.md is out of date; {command}"
        for table in tables:
            rows = observation_pages.explained(table)
            explained = set(re.findall(r"`(\w+)`", rows))
            missing = set(getattr(table.module, table.constant)) - explained
            if name != "channel":  # its table says `layer_...` and `from` to `to`
                assert not missing, (table.constant, missing)
