"""Latency: what is measured is what was asked for, and the table of layers predicts it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.actions import ActionDecoder
from compress_env.complexity import ComplexityModel
from compress_env.compression import compress
from compress_env.importance import rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from compress_env.export import export_onnx
from compress_env.latency import (
    ENGINES,
    LatencyTable,
    int8_sessions,
    latency_table,
    measure_latency,
    open_session,
)
from compress_env.latency.engines import Session, peak_memory
from compress_env.latency.interpolation import LayerInterpolation, monotone
from compress_env.latency.single_layers import (
    LayerCase,
    _operator_times,
    layer_calls,
    layer_milliseconds,
)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 3, stride=2, padding="valid"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return trace(small_network(), (3, 16, 16))


@pytest.fixture(scope="module")
def files(graph: LayerGraph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("latency")
    images = torch.randn(16, 3, 16, 16)
    export_onnx(graph.module, (3, 16, 16), folder / "dense.onnx")
    network = compress(graph, CompressionPlan.dense(graph, bits=8), images)
    export_onnx(network, (3, 16, 16), folder / "small.onnx", calibration_images=images)
    return {"dense": folder / "dense.onnx", "small": folder / "small.onnx"}


def test_report(files: dict[str, Path]) -> None:
    report = measure_latency(files, batch_sizes=(4,), repeats=3, threads=1)
    assert set(report.versions) == set(ENGINES) and report.repeats == 3
    places = [(row.engine, row.batch_size, row.file) for row in report.rows]
    assert places == [(e, b, f) for e in report.versions for b in (4,) for f in files]
    for row in report.rows:
        assert row.file_bytes == files[row.file].stat().st_size
        assert row.milliseconds > 0 and row.creation_seconds > 0
        assert 10e6 < row.peak_bytes < 1e9, "an engine and nothing else"
        assert row.file != "dense" or row.ratio == 1.0
    text = latency_table(report).splitlines()
    assert len(text) == len(report.rows) + 2
    assert "onnxruntime" in text[1] and "interleaved" in text[-1]


def test_sessions_give_outputs_and_say_what_is_wrong(
    files: dict[str, Path], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = small_network()(torch.from_numpy(images)).numpy()
    sessions = int8_sessions(files["dense"], batch=4, threads=1)
    assert set(sessions) == set(ENGINES)
    for seconds, run in sessions.values():
        assert seconds > 0
        np.testing.assert_allclose(run(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match="engine must be one of"):
        open_session("tensorrt", files["dense"], 1)
    with pytest.raises(ValueError, match="at least 1"):
        open_session("openvino", files["dense"], 0)
    with pytest.raises(FileNotFoundError):
        open_session("openvino", tmp_path / "none.onnx", 1)
    (tmp_path / "text.onnx").write_text("no network")
    for engine in ENGINES:
        with pytest.raises(ValueError, match=f"{engine} cannot load .*text.onnx"):
            open_session(engine, tmp_path / "text.onnx", 1)
        with pytest.raises(ChildProcessError, match=f"{engine} cannot run .*text.onnx"):
            peak_memory(engine, tmp_path / "text.onnx", 1, 1)
    with pytest.raises(ValueError, match="at least one file"):
        measure_latency({})
    with pytest.raises(ValueError, match="engines must be among"):
        measure_latency(files, engines=["tvm"])


@pytest.fixture(scope="module", params=ENGINES)
def table(graph: LayerGraph, request: pytest.FixtureRequest) -> LatencyTable:
    return LatencyTable.measure(graph, request.param, 1, 1, fractions=(0.5, 1.0), repeats=4)


def test_table_is_a_cost(table: LatencyTable, graph: LayerGraph, tmp_path: Path) -> None:
    everything = np.ones(graph.atom_group.size, dtype=bool)
    layers = len(graph.layers)
    dense = table.layer_milliseconds(everything, np.full((layers, 2), 32))
    np.testing.assert_allclose(dense, [entry.float32[-1, -1] for entry in table.layers])
    mixed = table.layer_milliseconds(everything, np.array([[8, 32], [2, 8], [32, 8], [4, 4]]))
    last = [(entry.float32[-1, -1], entry.int8[-1, -1]) for entry in table.layers]
    np.testing.assert_allclose(mixed, [pair[i] for pair, i in zip(last, [0, 1, 0, 1], strict=True)])
    rng = np.random.default_rng(0)
    for _ in range(20):  # taking channels away never costs more
        some = everything.copy()
        some[graph.atom_group >= 0] = rng.random(int((graph.atom_group >= 0).sum())) < 0.7
        fewer = some & (rng.random(some.size) < 0.7) | (graph.atom_group < 0)
        bits = np.full((layers, 2), 8)
        costs = [table(atoms, bits) for atoms in (fewer, some, everything)]
        assert np.all(np.diff(costs) >= -1e-12 * costs[-1])  # sums round
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json", graph)
    assert again.conditions == table.conditions
    assert again(some, bits) == pytest.approx(table(some, bits), rel=1e-3)


def test_table_bounds_a_search(graph: LayerGraph, tmp_path: Path) -> None:
    layers = {}
    for layer in graph.layers:  # a microsecond for every pair of channels, a quarter as integers
        inputs, outputs = np.array([1, layer.in_channels]), np.array([1, layer.out_channels])
        times = 1e-3 * inputs[:, None] * outputs
        grids = {"in_channels": inputs.tolist(), "out_channels": outputs.tolist()}
        layers[layer.name] = grids | {"float32": times.tolist(), "int8": (times / 4).tolist()}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 1, "unit": "milliseconds", "layers": layers}))
    table = LatencyTable.load(path, graph)
    ranks = rank_channels(graph, np.random.default_rng(0).random(graph.atom_group.size))
    dense = 1e-3 * sum(layer.in_channels * layer.out_channels for layer in graph.layers)
    for bits, reduction in (((32,), 0.5), ((4, 8), 0.9)):
        decoder = ActionDecoder(
            graph, ComplexityModel(graph), ranks, bits, "latency", reduction, None, cost=table
        )
        assert decoder.dense_cost == pytest.approx(dense)
        choice = decoder.decode(np.zeros(decoder.network_action_size), decoder.dense(), True)
        assert 0.5 * (1 - reduction) < decoder.cost_of(choice) / dense <= 1 - reduction
        assert (choice.counts < decoder.sizes).any()


def test_table_for_another_network_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    other = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)), (3, 16, 16))
    with pytest.raises(ValueError, match="for another network"):
        LatencyTable.load(path, other)
    path.write_text(json.dumps({"layers": {}}))
    with pytest.raises(ValueError, match="is not one"):
        LatencyTable.load(path, other)
    with pytest.raises(ValueError, match="fractions"):
        LatencyTable.measure(other, fractions=(0.5, 2.0))


def test_layers_that_are_called_twice_count_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(nn.functional.max_pool2d(self.conv(x), 2))

    (calls,) = layer_calls(trace(Twice(), (3, 8, 8)))
    assert [size for _, size in calls] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_of_more_work_takes_longer(engine: str) -> None:
    def milliseconds(channels: int, integer: bool) -> float:
        case = LayerCase(
            channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (32, 32), integer
        )
        return layer_milliseconds(case, engine, 1, 1, repeats=10)

    for integer in (False, True):
        assert milliseconds(128, integer) > 3 * milliseconds(16, integer) > 0


def test_a_layer_that_no_operator_stands_for_does_not_cost_nothing() -> None:
    def session(*runs: dict[str, float]) -> Session:
        return Session(0.0, np.asarray, (1,), np.dtype(np.float32), lambda: list(runs))

    known = session({"Reorder": 1.0, "QLinearConv": 2.0}, {"FullyConnected": 3.0})
    assert list(_operator_times(known, "openvino")) == [2.0, 3.0]
    with pytest.raises(ValueError, match="no operator of openvino is a layer among Reorder, Fused"):
        list(_operator_times(session({"Reorder": 1.0, "Fused": 2.0}), "openvino"))


def test_interpolation_by_hand() -> None:
    # One layer with 2 or 4 inputs and 1 or 3 outputs; another with one number of each.
    tables = [np.array([[[1.0, 3.0], [5.0, 11.0]]]), np.array([[[7.0]]])]
    grids = ([np.array([2, 4]), np.array([3])], [np.array([1, 3]), np.array([2])])
    atoms = (
        [np.array([0, 1, 2, 3]), np.array([4, 5, 6])],
        [np.array([4, 5, 6]), np.array([7, 8])],
    )
    interpolation = LayerInterpolation(grids, atoms, tables)
    kinds = np.zeros(2, dtype=np.int64)
    kept = np.ones(9, dtype=bool)
    assert interpolation.of(kept, kinds).tolist() == [11.0, 7.0]
    kept[[3, 6]] = False  # 3 inputs and 2 outputs: the middle of both
    assert interpolation.of(kept, kinds).tolist() == [5.0, 7.0]
    kept[:4] = [True, False, False, False]  # below the smallest: as the smallest
    assert interpolation.of(kept, kinds).tolist() == [2.0, 7.0]


def test_monotone() -> None:
    noisy = np.array([[[1.0, 2.0, 1.5], [3.0, 2.5, 4.0]]])
    smooth = monotone(noisy)
    assert (np.diff(smooth, axis=1) >= 0).all() and (np.diff(smooth, axis=2) >= 0).all()
    assert np.abs(smooth - noisy).max() <= 0.5
    np.testing.assert_array_equal(monotone(smooth), smooth)
