"""Exported files: the same predictions in other runtimes, at the plan's scales and bits."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress_env.compression import compress
from compress_env.data import ImageSet, Splits, load_splits, normalize
from compress_env.export import export_onnx, export_torch
from compress_env.importance import IMPORTANCES, rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.networks.weights import load_weights
from compress_env.plan import CompressionPlan
from compress_env.quantization import QuantizedLayer
from compress_env.task import CompressionTask
from tests.samples import outputs, random_masks, sample
from tests.small_networks import EveryCoupling

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from compress_env.export.codes import finest_factors, scales_for_bias  # noqa: E402
from compress_env.latency import ENGINES, open_session  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several engines in one process get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PLANS = {
    "W8A8": (8, 0.0),
    "W6A6, 30% gone": (6, 0.3),
    "W4A4, 50% gone": (4, 0.5),
    "mixed": (0, 0.2),
}


def make_plan(graph: LayerGraph, ranks: np.ndarray, bits: int, gone: float) -> CompressionPlan:
    """The same bits everywhere (0: random ones), the same share of every group."""
    kept = [ranks[atoms] < max(1, round(len(atoms) * (1 - gone))) for atoms in graph.group_atoms]
    rng = np.random.default_rng(0)
    layers = len(graph.layers)
    widths = rng.integers(3, 9, (2, layers)) if bits == 0 else np.full((2, layers), bits)
    widths[:, [*graph.first_layers, *graph.last_layers]] = 8
    return CompressionPlan.of(graph, kept, widths[0], widths[1], "resnet20")


def predictions(engine: str, path: Path, images: np.ndarray, batch: int = 120) -> np.ndarray:
    session = open_session(engine, path, batch, threads=1)
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([session.run(each) for each in batches]).argmax(1)


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    """ONNX Runtime as it comes, with any batch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(["logits"], {"images": images.numpy()})[0]


@pytest.mark.parametrize("kind", PLANS)
def test_predictions_on_digits(digits_task: CompressionTask, tmp_path: Path, kind: str) -> None:
    task = digits_task
    graph, calibration = task.graph, task.calibration.images
    plan = make_plan(graph, task.ranks, *PLANS[kind])
    network = compress(graph, plan, calibration)
    images = normalize(task.splits.test.images, task.splits)
    expected = outputs(network, images).argmax(1).numpy()
    path = tmp_path / "exact.onnx"
    export_onnx(network, images.shape[1:], path, plan=plan)
    for engine in ENGINES:
        assert (predictions(engine, path, images.numpy()) == expected).mean() >= 0.995, engine


@pytest.mark.skipif(
    not {"COMPRESS_TEST_WEIGHTS", "COMPRESS_TEST_DATA"} <= set(os.environ),
    reason="needs the checkpoints and CIFAR-10",
)
@pytest.mark.parametrize("kind", PLANS)
def test_predictions_on_cifar10(tmp_path: Path, kind: str) -> None:
    network = build_network("resnet20", 10)
    load_weights(network, Path(os.environ["COMPRESS_TEST_WEIGHTS"]) / "resnet20-12fca82f.th")
    splits = load_splits("imagefolder", os.environ["COMPRESS_TEST_DATA"])
    images, calibration = _take(splits.test, splits, 960), _take(splits.search, splits, 128)
    graph = trace(network.eval(), (3, 32, 32))
    ranks = rank_channels(graph, IMPORTANCES["l1"](graph, calibration, torch.empty(0)))
    plan = make_plan(graph, ranks, *PLANS[kind])
    small = compress(graph, plan, calibration)
    with torch.no_grad():
        expected = torch.cat([small(batch) for batch in images.split(120)]).argmax(1).numpy()
    export_onnx(small, (3, 32, 32), tmp_path / "exact.onnx", plan=plan)
    for engine in ENGINES:
        found = predictions(engine, tmp_path / "exact.onnx", images.numpy())
        assert (found == expected).mean() >= 0.995, engine


def _take(image_set: ImageSet, splits: Splits, count: int) -> torch.Tensor:
    return normalize(image_set.take(count, 0).images, splits)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "shufflenet_v1",
        "shufflenet_v2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "resnet20", "resnet56", "vgg16", "mobilenet_v1", "resnet18_imagenet", "googlenet",
                "resnet50_imagenet", "mobilenet_v2_imagenet", "densenet121", "regnet_y_400mf",
                "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "convnext_tiny",
            )
        ),
    ],
)  # fmt: skip
def test_other_networks(tmp_path: Path, name: str) -> None:
    some = sample(name)
    images = torch.randn(8, *some.images.shape[1:], generator=torch.Generator().manual_seed(1))
    layers = len(some.graph.layers)
    masks = random_masks(some.graph, "any share", 0)
    path = tmp_path / "network.onnx"
    for bits in (32, 8):
        widths = np.full(layers, bits)
        plan = CompressionPlan.of(some.graph, masks, widths, widths)
        network = compress(some.graph, plan, images)
        expected = outputs(network, images).numpy()
        export_onnx(network, images.shape[1:], path)
        for engine in ENGINES:
            found = open_session(engine, path, len(images), 1).run(images.numpy())
            errors = np.abs(found - expected).max(1) / np.abs(expected).max()
            if bits == 32:
                assert errors.max() < 1e-3, engine
            else:
                # A value between two codes may be rounded the other way, and in a network of noise
                # that is heard to the end; in ConvNeXt, of whose values each depends on many, for
                # most images. What is wrong in the file is wrong for every image.
                assert errors.min() < 1e-5 and np.median(errors) < 5e-2, engine


@pytest.mark.parametrize("seed", range(4))
def test_every_coupling_and_float_leftovers(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = EveryCoupling().eval()
    graph = trace(network, (3, 8, 8))
    rng = np.random.default_rng(seed)
    layers = len(graph.layers)
    plan = CompressionPlan.of(
        graph,
        random_masks(graph, "any share", seed),
        rng.choice([2, 4, 8, 32], layers),
        rng.choice([3, 8, 32], layers),
    )
    images = torch.randn(5, 3, 8, 8)
    small = compress(graph, plan, images)
    export_onnx(small, (3, 8, 8), tmp_path / "small.onnx")
    expected = outputs(small, images).numpy()
    np.testing.assert_allclose(run(tmp_path / "small.onnx", images), expected, atol=2e-5)
    # The batch is free.
    alone = run(tmp_path / "small.onnx", images[:1])
    np.testing.assert_allclose(alone, expected[:1], atol=2e-5)


def test_what_the_file_holds(tmp_path: Path) -> None:
    """Two layers that read one tensor, one of them behind a BatchNorm with a negative factor."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 3, 1, bias=False)
            self.norm = nn.BatchNorm2d(3)
            self.second = nn.Conv2d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(x)) + self.second(x)

    torch.manual_seed(0)
    network = Two().eval()
    with torch.no_grad():
        network.norm.weight.copy_(torch.tensor([-1.0, 0.0, 2.0]))
        network.norm.bias.fill_(0.5)
    graph = trace(network, (2, 4, 4))
    bits = np.array([4, 6])
    plan = CompressionPlan.of(graph, [], bits, np.array([5, 5]), "two")
    images = torch.randn(6, 2, 4, 4)
    small = compress(graph, plan, images)
    first = small.get_submodule("first")
    assert isinstance(first, QuantizedLayer) and first.weight_scale[0] < 0
    export_onnx(small, (2, 4, 4), tmp_path / "two.onnx", plan=plan)
    file = onnx.load(tmp_path / "two.onnx")
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert metadata["network"] == "two"
    assert CompressionPlan.from_json(json.loads(metadata["plan"]), graph) == plan
    counts = Counter(node.op_type for node in file.graph.node)
    assert counts["QuantizeLinear"] == 1, "both layers read the same codes"
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    types = Counter(tensor.data_type for tensor in file.graph.initializer if tensor.dims)
    assert types[onnx.TensorProto.INT4] == types[onnx.TensorProto.INT8] == 1
    clip = next(node for node in file.graph.node if node.op_type == "Clip")
    assert [int(values[name]) for name in clip.input[1:]] == [-15, 15]  # 5 bits, signed
    quantize = next(node for node in file.graph.node if node.op_type == "QuantizeLinear")
    assert values[quantize.input[1]] == pytest.approx(float(first.input_scale))
    scales = [
        values[node.input[1]]
        for node in file.graph.node
        if node.op_type == "DequantizeLinear" and values[node.input[1]].ndim
    ]
    assert all((scale > 0).all() for scale in scales)
    np.testing.assert_allclose(scales[0][[0, 2]], first.weight_scale.abs()[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(
        run(tmp_path / "two.onnx", images), outputs(small, images), atol=1e-5
    )
    export_onnx(small, (2, 4, 4), tmp_path / "wide.onnx", low_bit_storage=False)
    wide = onnx.load(tmp_path / "wide.onnx")
    assert all(t.data_type != onnx.TensorProto.INT4 for t in wide.graph.initializer)
    np.testing.assert_array_equal(
        run(tmp_path / "wide.onnx", images), run(tmp_path / "two.onnx", images)
    )


def test_integer_form_fuses_everything_and_stays_accurate(
    digits_task: CompressionTask, tmp_path: Path
) -> None:
    task = digits_task
    plan = make_plan(task.graph, task.ranks, 6, 0.0)
    network = compress(task.graph, plan, task.calibration.images)
    images = normalize(task.splits.test.images, task.splits)
    path, optimized = tmp_path / "integer.onnx", tmp_path / "optimized.onnx"
    export_onnx(network, images.shape[1:], path, calibration_images=task.calibration.images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options)
    counts = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    convolutions = sum(layer.kind == "conv" for layer in task.graph.layers)
    assert counts["QLinearConv"] == convolutions and counts["Conv"] == 0
    labels = task.splits.test.labels
    accuracy = (outputs(network, images).argmax(1).numpy() == labels).mean()
    for engine in ENGINES:
        found = (predictions(engine, path, images.numpy()) == labels).mean()
        assert found >= accuracy - 0.02, engine


def test_small_file(digits_task: CompressionTask, tmp_path: Path) -> None:
    task = digits_task
    shape = tuple(task.search.images.shape[1:])
    export_onnx(task.network, shape, tmp_path / "dense.onnx")
    plan = make_plan(task.graph, task.ranks, 4, 0.2)
    network = compress(task.graph, plan, task.calibration.images)
    export_onnx(network, shape, tmp_path / "small.onnx", plan=plan)
    dense, small = ((tmp_path / f"{n}.onnx").stat().st_size for n in ("dense", "small"))
    assert small <= dense / 8
    found = run(tmp_path / "dense.onnx", task.search.images[:50])
    np.testing.assert_allclose(found, outputs(task.network, task.search.images[:50]), atol=1e-3)


class Sorts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.conv(x), 1)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="operation 'cumsum' cannot be written as ONNX"):
        export_onnx(Sorts(), (3, 4, 4), tmp_path / "x.onnx")
    bilinear = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2))
    with pytest.raises(ValueError, match=r"module '1' \(Upsample\)"):
        export_onnx(bilinear, (3, 4, 4), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="padding mode 'reflect'"):
        reflecting = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        export_onnx(nn.Sequential(reflecting), (3, 4, 4), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"\.pt2"):
        export_torch(Sorts(), (3, 4, 4), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_torch_program_gives_the_same_outputs(digits_task: CompressionTask, tmp_path: Path) -> None:
    task = digits_task
    network = compress(
        task.graph, make_plan(task.graph, task.ranks, 0, 0.3), task.calibration.images
    )
    images = task.search.images[:7]
    export_torch(network, images.shape[1:], tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    for count in (7, 1):
        torch.testing.assert_close(program(images[:count]), outputs(network, images[:count]))


@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), activation_bits=st.integers(2, 8))
def test_finest_factors(seed: int, bits: int, activation_bits: int) -> None:
    rng = np.random.default_rng(seed)
    high, highest_input = 2 ** (bits - 1) - 1, 2**activation_bits - 1
    codes = rng.integers(-high, high + 1, (6, 3, 3, 3)).astype(float)
    bias = rng.normal(size=6) * 10.0 ** rng.integers(-2, 6)
    factors = finest_factors(codes, bias, highest_input)
    assert (factors >= 1).all()
    scaled = np.abs(codes).reshape(6, -1).max(1) * factors
    assert (scaled <= 127).all()
    # Two products at a time fit 16 bits, unless they did not to begin with.
    assert ((factors == 1) | (2 * highest_input * scaled <= 32767)).all()
    error = np.abs(np.rint(bias * factors) / factors - bias)
    assert (error <= np.abs(np.rint(bias) - bias) + 1e-12).all()


def test_a_channel_that_is_almost_off_keeps_its_bias() -> None:
    codes = np.array([[100.0, -50.0], [3.0, 2.0]])
    scale, bias, input_scale = np.array([1e-12, 0.1]), np.array([0.7, 0.3]), 0.02
    coarser, larger = scales_for_bias(codes, scale, bias, input_scale)
    integers = np.rint(bias / (larger * input_scale))
    assert (np.abs(integers) < 2**31 - 2**27).all()
    np.testing.assert_allclose(integers * larger * input_scale, bias, rtol=1e-2)
    np.testing.assert_array_equal(coarser[1], codes[1])
    assert np.abs(coarser[0] * larger[0] - codes[0] * scale[0]).max() <= 0.5 * larger[0]
