"""Networks that return several outputs: the first are the logits, from the search to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from samples import mixed_plan
from small_networks import TinyClassifier
from torch import Tensor, nn

import compress_env
from compress_env.compression import compress
from compress_env.evaluation import evaluate_network, run_network
from compress_env.export import export_onnx, export_torch
from compress_env.finetune import finetune
from compress_env.finetune_options import FinetuneOptions
from compress_env.network_training import NetworkTraining, train_network
from compress_env.task import CompressionTask


class TwoHeads(TinyClassifier):
    """A classifier with a layer more, whose output goes beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.aside(x)


class Named(TinyClassifier):
    """A classifier that gives its logits a name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


def task_of(network: nn.Module, **options: object) -> CompressionTask:
    return CompressionTask(network, "digits", search_images=200, **options)


def test_they_learn_like_the_network_of_the_first_output(tmp_path: Path) -> None:
    options = FinetuneOptions(steps=6, mixed_precision=False)
    results, trained = [], []
    for network in (TinyClassifier(), TwoHeads()):
        task = task_of(network)
        folder = tmp_path / type(network).__name__
        results.append(finetune(task, mixed_plan(task.graph, [4]), options, folder))
        loaded = compress_env.load_compressed(folder, network)
        tested = evaluate_network(loaded, task.splits.test, task.splits)
        assert tested.accuracy == results[-1]["test_accuracy"]
        before_evaluation = task_of(network, finetune_steps=3)
        plan = mixed_plan(task.graph, [4])
        trained += [
            tested.logits,
            before_evaluation.engine.logits(plan, task.search.images),
            task.engine.logits(plan, task.search.images),
        ]
    for figure in ("search_accuracy_before", "search_accuracy", "train_loss", "test_accuracy"):
        assert results[0][figure] == results[1][figure]
    for alone, first in zip(trained[:3], trained[3:], strict=True):
        assert torch.equal(alone, first)


def test_channels_are_scored_by_the_loss_of_the_first_output() -> None:
    alone, both = (task_of(each, importance="taylor") for each in (TinyClassifier(), TwoHeads()))
    for name in ("second", "third"):
        atoms = [
            task.graph.layers[task.graph.layer_index[name]].out_atoms for task in (alone, both)
        ]
        assert np.array_equal(alone.ranks[atoms[0]], both.ranks[atoms[1]])


def test_files_of_them_give_the_logits(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    from compress_env.latency import ENGINES, open_session  # noqa: PLC0415

    task = task_of(TwoHeads())
    plan, images = mixed_plan(task.graph, [8]), task.search.images[:50]
    network = compress(task.graph, plan, task.calibration.images)
    expected = run_network(network, images)
    export_torch(network, images.shape[1:], tmp_path / "both.pt2")
    program = torch.export.load(tmp_path / "both.pt2").module()
    torch.testing.assert_close(run_network(program, images), expected)
    for name, ranges in (("exact", None), ("integer", task.calibration.images)):
        path = tmp_path / f"{name}.onnx"
        export_onnx(network, images.shape[1:], path, plan=plan, calibration_images=ranges)
        for engine in ENGINES:
            found = open_session(engine, path, len(images), threads=1).run(images.numpy())
            assert (found.argmax(1) == expected.argmax(1).numpy()).mean() >= 0.95, (name, engine)


def test_they_are_trained_by_the_first_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from test_several_outputs import TinyClassifier, TwoHeads\n"
        "def one_head(num_classes):\n    return TinyClassifier()\n"
        "def two_heads(num_classes):\n    return TwoHeads()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    alone, first = (
        train_network(
            NetworkTraining(f"own_networks:{name}", "digits", epochs=2, device="cpu"),
            tmp_path / f"{name}.safetensors",
        )
        for name in ("one_head", "two_heads")
    )
    for figure in ("train_loss", "search_accuracy", "test_accuracy"):
        assert alone[figure] == first[figure]


def test_other_outputs_are_refused_by_what_they_are(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    network = Named().eval()
    refusal = "network: it must return a tensor or a tuple of them, not"
    with pytest.raises(ValueError, match=refusal):
        task_of(network)
    with pytest.raises(ValueError, match=f"{refusal} dict"):
        run_network(network, torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="first output is no tensor cannot be written as ONNX"):
        export_onnx(network, (3, 8, 8), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
