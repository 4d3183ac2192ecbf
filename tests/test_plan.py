"""Plans as files: round trips, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import STYLES, random_masks, sample

from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.plan import ALLOWED_BITS, CompressionPlan


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return trace(build_network("resnet20", 10))


@settings(max_examples=10)
@given(style=st.sampled_from(STYLES), seed=st.integers(0, 2**32 - 1))
def test_json_gives_the_same_plan_back(style: str, seed: int) -> None:
    graph = sample("resnet20").graph
    bits = np.random.default_rng(seed).choice(ALLOWED_BITS, (2, len(graph.layers)))
    plan = CompressionPlan.of(graph, random_masks(graph, style, seed), *bits, "resnet20")
    again = CompressionPlan.from_json(json.loads(json.dumps(plan.to_json())), graph, "resnet20")
    assert again == plan
    assert hash(again) == hash(plan)
    for mine, theirs in zip(plan.kept, again.kept, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(again.weight_bits, bits[0])
    assert np.array_equal(again.activation_bits, bits[1])


def test_plans_differ_by_bits_channels_and_network(graph: LayerGraph) -> None:
    dense = CompressionPlan.dense(graph)
    bits = dense.weight_bits.copy()
    bits[3] = 7
    kept = [mask.copy() for mask in dense.kept]
    kept[2][5] = False
    others = [
        CompressionPlan.of(graph, dense.kept, bits, dense.activation_bits),
        CompressionPlan.of(graph, dense.kept, dense.weight_bits, bits),
        CompressionPlan.of(graph, kept, dense.weight_bits, dense.activation_bits),
    ]
    assert len({dense.key(), *(plan.key() for plan in others)}) == 4
    assert len({dense, *others, CompressionPlan.dense(graph, "resnet20")}) == 5


def test_file_is_written_whole_and_read_back(graph: LayerGraph, tmp_path: Path) -> None:
    plan = CompressionPlan.dense(graph, "resnet20", bits=4)
    plan.save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert CompressionPlan.load(tmp_path / "plan.json", graph, "resnet20") == plan
    (tmp_path / "broken.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        CompressionPlan.load(tmp_path / "broken.json", graph)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder"):
        CompressionPlan.load(tmp_path, graph)


def test_plans_for_other_networks_are_refused(graph: LayerGraph) -> None:
    plan = CompressionPlan.dense(graph, "resnet20").to_json()
    with pytest.raises(ValueError, match="for network 'resnet20', not 'vgg16'"):
        CompressionPlan.from_json(plan, graph, "vgg16")
    deeper = trace(build_network("resnet32", 10))
    with pytest.raises(ValueError, match=r"another network.*lacks 'layer1\.3\.conv1'"):
        CompressionPlan.from_json(plan, deeper)
    with pytest.raises(ValueError, match=r"another network.*has 'layer1\.3\.conv1'"):
        CompressionPlan.from_json(CompressionPlan.dense(deeper).to_json(), graph)
    plan["groups"]["conv1"]["channels"] = 12
    with pytest.raises(ValueError, match="group 'conv1' has 12 channels there and 16 here"):
        CompressionPlan.from_json(plan, graph)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), 2, '"format" must be 1'),
        (("format",), True, '"format" must be 1'),
        (("network",), None, '"network" must be a name, not None'),
        (("groups", "conv1", "kept"), [True, False], "group 'conv1' must be from 0 to 15"),
        (("groups", "conv1", "kept"), [], "group 'conv1' must keep at least one"),
        (("groups", "conv1", "kept"), [16], "group 'conv1' must be from 0 to 15"),
        (("groups", "conv1", "kept"), [0.5], "group 'conv1' must be from 0 to 15"),
        (("groups", "conv1", "kept"), "all", "group 'conv1' must be from 0 to 15"),
        (("groups", "conv1"), [1, 2], "missing or of the wrong type"),
        (("layers", "linear", "weight_bits"), 9, "'linear' has 9 weight bits; allowed are 2, 3"),
        (("layers", "linear", "weight_bits"), 4.5, "bit-widths must be whole numbers"),
        (("layers", "linear", "activation_bits"), True, "of layer 'linear' is True"),
        (("layers", "linear", "weight_bits"), "4", "bit-widths must be whole numbers"),
        (("layers", "linear"), {}, "missing or of the wrong type"),
        (("layers",), None, "missing or of the wrong type"),
    ],
)
def test_bad_entries_are_refused(
    graph: LayerGraph, path: tuple[str, ...], value: object, words: str
) -> None:
    data = CompressionPlan.dense(graph).to_json()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=words):
        CompressionPlan.from_json(data, graph)


@pytest.mark.parametrize("data", [None, [], "plan", {}])
def test_other_json_is_no_plan(graph: LayerGraph, data: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^plan: not a compression plan"):
        CompressionPlan.from_json(data, graph)
    file = tmp_path / "p.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"^plan: .*p\.json: not a compression plan"):
        CompressionPlan.load(file, graph)
