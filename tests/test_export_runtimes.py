"""Exported files: forms that a runtime would else compute in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.compression import compress
from compress_env.export import export_onnx
from compress_env.layer_graph import trace
from compress_env.plan import CompressionPlan
from tests.samples import liven, outputs

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")


def run(path: Path, images: torch.Tensor, engine: str = "onnxruntime") -> np.ndarray:
    """The logits of all images, from an engine that does not know the batch beforehand."""
    given = images.numpy()
    if engine == "openvino":
        # Where a processor has them, floats of 16 bits would be taken.
        wanted = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        found: np.ndarray = openvino.Core().compile_model(path, "CPU", wanted)(given)[0]
        return found
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(str(path), options).run(["logits"], {"images": given})[0]
    return found


def run_in_8_bits(
    network: nn.Module, images: torch.Tensor, path: Path, engine: str = "onnxruntime"
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a whole network at 8 bits: of its exported file, and of itself."""
    shape = tuple(images.shape[1:])
    graph = trace(network, shape)
    small = compress(graph, CompressionPlan.dense(graph, bits=8), images)
    export_onnx(small, shape, path)
    return run(path, images, engine), outputs(small, images).numpy()


def test_float_weights_stay_floats(tmp_path: Path) -> None:
    # ONNX Runtime makes integers of float weights between codes and codes, where it sees them.
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    images = torch.randn(60, 3, 8, 8)
    graph = trace(network, (3, 8, 8))
    kept = CompressionPlan.dense(graph).kept
    plan = CompressionPlan.of(graph, kept, np.array([32, 4, 4]), np.array([6, 7, 6]))
    small = compress(graph, plan, images)
    expected = outputs(small, images)
    for calibration in (None, images):
        export_onnx(small, (3, 8, 8), tmp_path / "x.onnx", calibration_images=calibration)
        assert (run(tmp_path / "x.onnx", images).argmax(1) == expected.argmax(1).numpy()).all()
        if calibration is None:
            found = torch.from_numpy(run(tmp_path / "x.onnx", images))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 32])
def test_grouped_convolution_without_any_connection_left(tmp_path: Path, bits: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.Conv2d(4, 2, 1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    graph = trace(network, (3, 5, 5))
    groups, layers = graph.group_atoms, graph.layers
    gone = {*layers[1].in_atoms[:2], *layers[1].out_atoms[2:]}
    kept = [np.array([atom not in gone for atom in atoms]) for atoms in groups]
    widths = np.full(len(layers), bits)
    images = torch.randn(5, 3, 5, 5)
    small = compress(graph, CompressionPlan.of(graph, kept, widths, widths), images)
    expected = outputs(small, images).numpy()
    export_onnx(small, (3, 5, 5), tmp_path / "x.onnx")
    np.testing.assert_allclose(run(tmp_path / "x.onnx", images), expected, rtol=0, atol=1e-5)


class UsedTwice(nn.Module):
    """A convolution that is used twice; "same" padding with a dilation and an even kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(1, 2))
        self.twice, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.stem, self.twice, self.twice):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_layer_that_is_used_twice_and_same_padding(tmp_path: Path, engine: str) -> None:
    torch.manual_seed(0)
    network, images = UsedTwice(), torch.randn(5, 3, 8, 8)
    found, expected = run_in_8_bits(network, images, tmp_path / "x.onnx", engine)
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Moving(nn.Module):
    """Codes that are moved by sizes, and by arguments with names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last, self.head = nn.Conv2d(8, 4, 3), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat(tensors=[self.stem(x), self.other(x)], dim=1)
        x = torch.relu(self.last(torch.relu(x.reshape(x.size(0), x.shape[1], -1).reshape(x.shape))))
        return self.head(x.view(x.size(0), x.shape[1], -1).view(x.size(0), -1))


@pytest.mark.filterwarnings("ignore:channels are left whole")
def test_moved_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = Moving(), torch.randn(5, 3, 8, 8)
    found, expected = run_in_8_bits(network, images, tmp_path / "x.onnx")
    np.testing.assert_allclose(found, expected, atol=1e-4)


class ReadTwice(nn.Module):
    """A convolution without bias whose result another one reads, and an addition."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, bias=False)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.between, self.head = between, nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.read(torch.relu(self.stem(x)))
        y = self.second(torch.sigmoid(self.first(self.between(x))))
        return self.head(torch.relu(x + y).mean((2, 3)))


@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU()])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_layer_without_bias_that_is_read_twice(
    tmp_path: Path, engine: str, between: nn.Module
) -> None:
    # Without its bias, OpenVINO scales the sums twice: an error of a tenth.
    torch.manual_seed(0)
    network, images = ReadTwice(between), torch.randn(40, 3, 8, 8)
    liven(network, images)
    found, expected = run_in_8_bits(network, images, tmp_path / "x.onnx", engine)
    errors = np.abs(found - expected).max(1) / np.abs(expected).max()
    assert np.median(errors) < 1e-5
