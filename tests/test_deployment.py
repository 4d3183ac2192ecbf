"""From a run to a network that ships: the commands, without DGL, and latency as a metric."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import compress_env
from compress_agents.cli import app
from compress_agents.command_line.deployment import _FINETUNE_OPTIONS
from compress_agents.command_line.documented_options import attribute_texts, load_alone
from compress_agents.config import TrainingConfig, to_json
from compress_agents.runs import write_json
from compress_env.evaluation import evaluate_network
from compress_env.finetune_options import FinetuneOptions
from compress_env.latency import LatencyTable, layer_table
from compress_env.latency.single_layers import LayerCase
from compress_env.networks.weights import save_weights
from compress_env.quantized_training import QuantizedTraining
from compress_env.task import CompressionTask

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package)

runner = CliRunner()


def ran(*arguments: object) -> str:
    """What a command prints, which must succeed."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line that a refused command prints."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, digits_task: CompressionTask) -> Path:
    """A run folder as a search leaves it, not to be changed: the base plan at 99.06%."""
    run = tmp_path_factory.mktemp("runs") / "untrained"
    run.mkdir()
    config = TrainingConfig(target_reduction=0.9906)
    write_json(run / "config.json", to_json(config))
    decoder = digits_task.decoder(
        target_reduction=config.target_reduction,
        metric=config.metric,
        bits=config.bits,
        first_last_bits=config.first_last_bits,
        channel_multiple=config.channel_multiple,
    )
    decoder.plan(decoder.base).save(run / "best_plan.json")
    return run


WITHOUT_DGL = """
import sys
for name in ("dgl", "stable_baselines3", "tensorboard", "matplotlib"):
    sys.modules[name] = None  # importing it fails
from compress_agents.cli import main
main()
"""


@pytest.fixture(scope="module")
def trained(untrained: Path) -> tuple[Path, str]:
    """The same after `finetune`, not to be changed, and what that printed."""
    run = Path(shutil.copytree(untrained, untrained.with_name("trained")))
    words = ["finetune", str(run), "--steps", "12", "--lr", "0.02"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DGL, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return run, done.stdout


# -- finetune ------------------------------------------------------------------------------------


def test_finetune_needs_no_dgl_and_keeps_a_network(
    trained: tuple[Path, str], digits_task: CompressionTask
) -> None:
    run, output = trained
    record = json.loads((run / "finetuned" / "finetune.json").read_text())
    results, options = record["results"], record["options"]
    assert (options["steps"], options["learning_rate"]) == (12, 0.02)
    assert results["search_accuracy"] > results["search_accuracy_before"]
    splits = digits_task.splits
    dense = evaluate_network(digits_task.network, splits.test, splits).accuracy
    results["dense_test_accuracy"] = dense
    rows = [line for line in output.splitlines() if " accuracy (" in line]
    for row, split in zip(rows, ("search", "test"), strict=True):
        names = (f"dense_{split}_accuracy", f"{split}_accuracy_before", f"{split}_accuracy")
        cells = [cell.strip() for cell in row.split("│")[2:5]]
        assert cells == [f"{results[name]:.2%}" for name in names]
    file = run / "finetuned" / "compressed.safetensors"
    states = [compress_env.load_compressed(p).state_dict() for p in (run, file.parent, file)]
    for other in states[1:]:
        assert all(torch.equal(states[0][key], other[key]) for key in states[0])
    tested = evaluate_network(compress_env.load_compressed(run), splits.test, splits)
    assert tested.accuracy == results["test_accuracy"]


def test_interrupted_it_says_how_to_go_on(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(untrained, tmp_path / "my run"))
    step = QuantizedTraining.step

    def interrupt(training: QuantizedTraining) -> Any:
        if training.steps == 3:
            raise KeyboardInterrupt
        return step(training)

    words = ["finetune", run, "--steps", "4", "--checkpoint-steps", "2", "--plan", "uniform",
             "--no-mixed-precision", "--seed", "1"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedTraining, "step", interrupt)
        result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 130
    _, _, command = result.stderr.partition("Go on with: ")
    assert "holds an interrupted training; add --resume" in refused(*words)
    program, *again = shlex.split(command)
    assert program == "compress-agents"
    assert "Fine-tuning" in ran(*again)
    folder = run / "finetuned-uniform"
    assert json.loads((folder / "finetune.json").read_text())["options"]["seed"] == 1
    assert "holds a trained network" in refused(*words)
    assert "4 steps" in ran(*again)  # once finished, it shows what there is
    assert "seed is 1 there and 2 here" in refused(*words[:-1], "2", "--resume")


def test_divergence_ends_with_a_line_and_the_best_network(untrained: Path, tmp_path: Path) -> None:
    words = ["finetune", untrained, "--steps", "8", "--lr", "1e5", "--out", tmp_path / "out"]
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 1
    assert "Stopped early: learning_rate 100000.0 is too high" in result.stderr
    compress_env.load_compressed(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--lr", "nan"], "learning_rate must be positive"),
        (["--distill", "2"], "distill must be from 0 to 1"),
        (["--optimizer", "adam"], "optimizer must be one of sgd, adamw"),
        (["--plan", "worst"], "plan must be 'best', 'uniform' or a file, not 'worst'"),
        (["--plan", "."], "plan: . is a folder"),
        (["--device", "abacus"], "device: 'abacus'"),
        (["--data-root", "/no/such"], "data_root"),
        (["--out", __file__], "is no folder"),
    ],
)
def test_finetune_names_what_is_wrong(untrained: Path, words: list[str], named: str) -> None:
    assert named in refused("finetune", untrained, *words)
    assert not (untrained / "finetuned").exists()


def test_what_is_no_run_is_refused(untrained: Path, tmp_path: Path) -> None:
    for command in ("finetune", "export", "latency"):
        assert "neither a run folder" in refused(command, tmp_path)
        assert "neither a run folder" in refused(command, tmp_path / "missing")
    shutil.copy(untrained / "config.json", tmp_path)
    for command in ("finetune", "export", "latency"):
        assert "has no best_plan.json yet" in refused(command, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "env_id": "NoSuch-v0"}))
    assert "env_id 'NoSuch-v0'" in refused("finetune", tmp_path)
    (tmp_path / "compressed.safetensors").write_bytes(b"not one")
    (tmp_path / "config.json").unlink()
    assert "compressed.safetensors is not a fine-tuned network" in refused("export", tmp_path)
    run = Path(shutil.copytree(untrained, tmp_path / "run"))
    save_weights(torch.nn.Linear(2, 2), run / "finetuned" / "compressed.safetensors", {})
    assert "does not hold a compressed network" in refused("export", run)
    plan = untrained / "best_plan.json"
    assert "run: " in refused("export", plan) and "best_plan.json is not" in refused("export", plan)


def test_options_are_those_of_the_library() -> None:
    alone = load_alone("finetune_options", "FinetuneOptions")
    for entry, here, shown in zip(
        fields(FinetuneOptions), fields(alone), fields(_FINETUNE_OPTIONS), strict=True
    ):
        assert entry.name == here.name == shown.name
        assert entry.default == here.default == shown.default
    texts = attribute_texts(FinetuneOptions)
    assert list(texts) == [entry.name for entry in fields(FinetuneOptions)]
    help_ = " ".join(runner.invoke(app, ["finetune", "--help"]).output.split())
    assert "--lr" in help_ and "It falls" not in help_ and "it falls along half a cosine" in help_
    assert "--mixed-precision / --no-mixed-precision" in help_ and "(on a GPU)" in help_


# -- export and latency --------------------------------------------------------------------------


def test_export_says_how_faithful_and_how_small(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file alone says where it comes from.
    file = Path(shutil.copy(trained[0] / "finetuned" / "compressed.safetensors", tmp_path))
    accuracy = json.loads((trained[0] / "finetuned" / "finetune.json").read_text())["results"][
        "test_accuracy"
    ]
    output = ran("export", file)
    assert f"{accuracy:.2%}" in next(line for line in output.splitlines() if "PyTorch  " in line)
    for engine in ("onnxruntime", "openvino"):
        line = next(line for line in output.splitlines() if engine in line)
        assert re.fullmatch(rf"{engine} [\d.]+", line.split("│")[1].strip())
        agreement = float(line.split("│")[2].strip(" %"))
        assert agreement >= 99.5
    small = (tmp_path / "compressed.onnx").stat().st_size
    assert f"{small / 1024:.1f} KiB; dense in float32" in output
    assert "integer form" in ran("export", file, "--integer")
    assert (tmp_path / "compressed-integer.onnx").is_file()
    ran("export", file, "--no-low-bit-storage", "--out", tmp_path / "wide.onnx")
    assert (tmp_path / "wide.onnx").stat().st_size > 1.5 * small
    monkeypatch.setattr("compress_agents.deployment.exporting.GOAL", 1.1)
    unfaithful = runner.invoke(app, ["export", str(file)])
    assert unfaithful.exit_code == 1 and "Differs from PyTorch" in unfaithful.stderr


def test_export_of_a_program_and_of_a_plan_without_training(
    untrained: Path, tmp_path: Path
) -> None:
    output = ran("export", untrained, "--format", "torch", "--out", tmp_path / "small.pt2")
    assert "not fine-tuned" in output
    assert "100.00%" in next(line for line in output.splitlines() if "torch.export" in line)
    line = next(line for line in output.splitlines() if "dense in float32" in line)
    assert float(line.split("(")[1].split()[0]) > 1.5  # weights are bytes there


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["export", "--format", "tflite"], "format must be one of onnx, torch"),
        (["export", "--format", "torch", "--integer"], "integer is a form of onnx"),
        (
            ["export", "--format", "torch", "--no-low-bit-storage"],
            "--no-low-bit-storage is an option of --format onnx, not of torch",
        ),
        (["export", "--out", "x.pt2"], "out must end in .onnx"),
        (["latency", "--batch-sizes", "1,x"], "batch_sizes must be whole numbers"),
        (["latency", "--repeats", "0"], "repeats must be at least 1"),
        (["latency", "--engine", "tvm"], "engines must be among"),
        (["latency", "--threads", "0"], "threads must be at least 1"),
        (["latency", "--json", "no/such/folder/x.json"], "json: there is no folder"),
        (["latency", "--json", "."], "json must be a file"),
    ],
)
def test_export_and_latency_name_what_is_wrong(
    untrained: Path, words: list[str], named: str
) -> None:
    assert named in refused(words[0], untrained, *words[1:])


def test_a_missing_package_is_one_line(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "compress_env.export.onnx_writer", raising=False)
    line = refused("export", untrained, "--out", tmp_path / "x.onnx")
    assert "pip install" in line


def test_latency_compares_three_files(trained: tuple[Path, str], tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    output = ran(
        "latency", trained[0], "--batch-sizes", "2", "--repeats", "2", "--threads", "1",
        "--no-memory", "--engine", "onnxruntime", "--json", file,
    )  # fmt: skip
    written = json.loads(file.read_text())
    assert written["command"] == (
        f"compress-agents latency {trained[0]} --batch-sizes 2 --repeats 2 --threads 1 "
        f"--engine onnxruntime --no-memory --json {file}"
    )
    rows = written["rows"]
    assert [row["file"] for row in rows] == [
        "dense float32", "compressed, exact form", "compressed, integer form",
    ]  # fmt: skip
    assert all(row["batch_size"] == 2 and row["milliseconds"] > 0 for row in rows)
    assert all(row["file_bytes"] < rows[0]["file_bytes"] / 6 for row in rows[1:])
    assert "medians of 2 interleaved runs" in output and str(file) in output


# -- latency as a metric -------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[LayerCase]:
    """Layers take a microsecond for every pair of channels, a quarter as integers; the calls."""
    calls: list[LayerCase] = []

    def milliseconds(case: LayerCase, *_: object) -> float:
        calls.append(case)
        return 1e-3 * case.in_channels * case.out_channels / (4 if case.integer else 1)

    monkeypatch.setattr("compress_env.latency.layer_table.layer_milliseconds", milliseconds)
    return calls


def test_a_table_is_measured_once_and_searched_with(
    clock: list[LayerCase], tmp_path: Path, digits_task: CompressionTask
) -> None:
    table = tmp_path / "table.json"
    ran("latency-table", "--out", table, "--threads", "1")
    arguments = {"metric": "latency", "latency_table": table, "target_reduction": 0.9}
    env = gymnasium.make("JointPruneQuant-ResNet20-v0", **arguments)
    graph = digits_task.graph
    dense = 1e-3 * sum(layer.in_channels * layer.out_channels for layer in graph.layers)
    _, info = env.reset()
    assert info["reduction"] == 0.0 and info["latency_ms"] == pytest.approx(dense, rel=1e-4)
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    _, _, terminated, _, info = env.step(action)
    assert terminated and info["target_met"]
    assert 1 - info["latency_ms"] / dense == pytest.approx(info["reduction"], rel=1e-4)
    assert 0.9 <= info["reduction"] < 0.92
    # As integers three quarters go; for the rest channels do, and bits, which cost nothing, stay.
    assert (info["plan"].weight_bits == 8).all() and (info["plan"].activation_bits == 8).all()
    place = env.unwrapped.global_columns.index("reduction")
    state = env.unwrapped.observer.observe(env.unwrapped._state())
    assert state.globals[place] == pytest.approx(np.log10(1 - info["reduction"]) / 3)

    words = ["--metric", "latency", "--latency-table", table, "--target-reduction", "0.9"]
    run = tmp_path / "run"
    ran("train", "--agent", "uniform", *words, "--run-dir", run)
    report = json.loads((run / "report.json").read_text())
    assert report["metric"] == "latency"
    assert report["reduction"] == pytest.approx(info["reduction"])
    again = ran("evaluate", run)
    assert "latency reduction" in again
    line = next(line for line in again.splitlines() if "by the table" in line)
    assert f"{dense:.2f} ms" in line and f"{info['latency_ms']:.2f} ms" in line


def test_a_table_is_resumed_and_not_measured_twice(
    clock: list[LayerCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["latency-table", "--out", tmp_path / "t.json", "--threads", "1"]
    whole = layer_table.layer_milliseconds

    def interrupt(*arguments: object) -> float:
        if len(clock) == 7:
            raise KeyboardInterrupt
        return float(whole(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(layer_table, "layer_milliseconds", interrupt)
        result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 130 and "--resume" in result.stderr
    assert "resume must be set" in refused(*words)
    assert "another batch_size" in refused(*words, "--batch-size", "2", "--resume")
    measured = tmp_path / "t.json.measurements"
    measured.write_text(measured.read_text() + '["cut')  # a line that was not finished
    ran(*words, "--resume")
    assert set(Counter(clock).values()) == {2}  # two rounds, and nothing besides
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert "exists" in refused(*words)


def test_tables_that_do_not_fit_are_refused(
    clock: list[LayerCase], tmp_path: Path, digits_task: CompressionTask
) -> None:
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    ran("latency-table", "--out", good, "--threads", "1")

    def search(table: Path) -> str:
        return refused("train", "--metric", "latency", "--latency-table", table,
                       "--run-dir", tmp_path / "run")  # fmt: skip

    ran("latency-table", "--out", other, "--threads", "1", "--dataset", "cifar10")
    assert "was measured on images [3, 32, 32]" in search(other)
    other.unlink()
    ran("latency-table", "--out", other, "--threads", "1", "--network", "resnet32")
    assert "for another network" in search(other)
    entry = json.loads(good.read_text())["layers"]["conv1"]
    for changed, named in (
        ({k: v for k, v in entry.items() if k != "int8"}, "'conv1': there is no 'int8'"),
        ({**entry, "int8": [[1.0]]}, "there must be a time for every number"),
        ({**entry, "float32": "fast"}, "of the wrong type"),
        ({**entry, "in_channels": [3, 2]}, "must increase"),
    ):
        data = json.loads(good.read_text())
        data["layers"]["conv1"] = changed
        other.write_text(json.dumps(data))
        with pytest.raises(ValueError, match=named):
            LatencyTable.load(other, digits_task.graph)
    assert "there is no file" in search(tmp_path / "none.json")
    assert "must be given for metric 'latency'" in refused("train", "--metric", "latency")
    assert "must be left out" in refused("train", "--latency-table", good)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--network", "resnet19"], "network must be one of"),
        (["--dataset", "imagefolder"], "image_size and num_classes must be given"),
        (["--engine", "tvm"], "engines must be among"),
        (["--image-size", "0"], "image_size must be at least 1"),
        (["--batch-size", "0"], "batch_size and threads must be at least 1"),
        (["--repeats", "0"], "repeats must be at least 1"),
    ],
)
def test_latency_table_names_what_is_wrong(tmp_path: Path, words: list[str], named: str) -> None:
    assert named in refused("latency-table", "--out", tmp_path / "t.json", *words)
    assert not list(tmp_path.iterdir())
