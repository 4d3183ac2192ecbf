"""The command line: one clear line for what is wrong, before any long work."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compress_agents.cli import app, train_dense_network
from compress_agents.command_line.cli_options import build_config
from compress_agents.command_line.options import option_name, parse_bits
from compress_agents.config import TrainingConfig
from compress_env.networks import build_network
from compress_env.training_options import NetworkTraining

TINY = ["--target-reduction", "0.984", "--search-images", "64", "--calibration-images", "64"]
BASELINE = ["baseline", "--method", "uniform", *TINY]

runner = CliRunner()


def refused(arguments: list[str]) -> str:
    """The one line that a refused command prints."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("env-id", "NoSuch-v0", "env_id"),
        ("env-id", "CartPole-v1", "env_id"),
        ("env-id", "no_such_module:Thing-v0", "env_id"),
        ("network", "resnet19", "network"),
        ("network", "no_such_module:net", "network"),
        ("dataset", "mnist", "dataset"),
        ("metric", "flops", "metric"),
        ("bits", "9", "bits"),
        ("bits", "four", "bits"),
        ("bits", "8-2", "bits"),
        ("first-last-bits", "1", "first_last_bits"),
        ("first-last-bits", "most", "first_last_bits"),
        ("target-reduction", "1.5", "target_reduction"),
        ("target-reduction", "0.999999", "target_reduction"),
        ("weights", "no/such/file.th", "weights"),
        ("importance", "magic", "importance"),
        ("reward", "money", "reward"),
        ("step-mode", "sideways", "step_mode"),
        ("max-steps", "0", "max_steps"),
        ("search-images", "0", "search_images"),
        ("device", "abacus", "device"),
        ("seed", "-1", "seed"),
        ("update-interval", "1", "update_interval"),
        ("solve-reward", "nan", "solve_reward"),
        ("learning-rate", "0", "learning_rate"),
        ("agent", "james", "agent"),
        ("total-timesteps", "0", "total_timesteps"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, option: str, value: str, named: str) -> None:
    run = tmp_path / "run"
    line = refused(["train", f"--{option}", value, "--run-dir", str(run)])
    assert named in line
    assert not run.exists()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    folder = ["--dataset", "imagefolder", "--run-dir", str(tmp_path / "run"), "--data-root"]
    for root in (tmp_path / "missing", tmp_path):
        line = refused(["train", *folder, str(root)])
        assert "data_root" in line and str(root) in line


def test_weights_that_do_not_fit_or_need_pickle(tmp_path: Path) -> None:
    other, pickled = tmp_path / "other.pt", tmp_path / "pickled.pt"
    torch.save(build_network("resnet32", 10).state_dict(), other)
    pickled.write_bytes(pickle.dumps(print, protocol=2))
    run = ["--run-dir", str(tmp_path / "run")]
    line = refused(["train", "--weights", str(other), *run])
    assert "do not fit" in line and "layer1.3.conv1.weight" in line
    assert "pickle" in refused(["train", "--weights", str(pickled), *run])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, not to be changed, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "uniform"
    result = runner.invoke(app, [*BASELINE, "--run-dir", str(run)])
    assert result.exit_code == 0, result.output
    return run, result.output


def test_a_run_folder_belongs_to_one_run(done: tuple[Path, str], tmp_path: Path) -> None:
    run = ["--run-dir", str(done[0])]
    assert "--resume" in refused([*BASELINE, *run])
    assert "--seed is 0 there and 1 here" in refused([*BASELINE, *run, "--seed", "1", "--resume"])
    assert "--agent is uniform there and ppo here" in refused(["train", *TINY, *run])
    assert runner.invoke(app, [*BASELINE, *run, "--resume"]).exit_code == 0
    (tmp_path / "file").write_text("")
    assert "run_dir" in refused([*BASELINE, "--run-dir", str(tmp_path / "file")])
    assert "resume" in refused([*BASELINE, "--run-dir", str(tmp_path / "new"), "--resume"])


def test_evaluate_prints_the_figures_of_the_report(done: tuple[Path, str], tmp_path: Path) -> None:
    def accuracies(output: str) -> list[str]:
        return [line for line in output.splitlines() if " accuracy (" in line]

    run = shutil.copytree(done[0], tmp_path / "copy")
    again = runner.invoke(app, ["evaluate", str(run)])
    assert again.exit_code == 0 and "equal those of report.json" in again.output
    assert len(accuracies(done[1])) == 2
    assert accuracies(again.output) == accuracies(done[1])
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "test_accuracy": 1.0}))
    changed = runner.invoke(app, ["evaluate", str(run)])
    assert changed.exit_code == 1 and "test_accuracy is" in changed.stderr


def test_evaluate_refuses_what_is_no_run_or_another_networks_plan(
    done: tuple[Path, str], tmp_path: Path
) -> None:
    assert "no run" in refused(["evaluate", str(tmp_path)])
    run = shutil.copytree(done[0], tmp_path / "copy")
    plan = json.loads((run / "best_plan.json").read_text())
    (run / "best_plan.json").write_text(json.dumps({**plan, "network": "resnet56"}))
    assert "resnet56" in refused(["evaluate", str(run)])
    del plan["layers"]["linear"]
    (run / "best_plan.json").write_text(json.dumps(plan))
    assert "another network" in refused(["evaluate", str(run)])
    (run / "config.json").write_text("{}")
    assert "config.json" in refused(["evaluate", str(run)])


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress_agents.running.SearchRun._search", interrupt)
    result = runner.invoke(app, [*BASELINE, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert f"--run-dir {tmp_path / 'run'} --resume" in result.stderr


def test_help_is_quick_and_shows_every_default() -> None:
    code = (
        "import sys, compress_agents.cli as c; "
        "assert not {'torch', 'gymnasium', 'dgl'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    words = runner.invoke(app, ["train", "--help"], terminal_width=200).output
    for entry in fields(TrainingConfig):
        line = words[words.index(f"--{option_name(entry)}") :].split("\n  --")[0]
        assert "default:" in line, entry.name


def test_options_become_a_config() -> None:
    names = {entry.name for entry in fields(TrainingConfig)}
    options = {entry.name: entry.default for entry in fields(TrainingConfig)}
    given = {**options, "bits": "2,4-6", "first_last_bits": "none"}
    config = build_config(TrainingConfig, given)
    assert names == set(given)
    assert config.bits == (2, 4, 5, 6) and config.first_last_bits is None
    assert config.command() == "compress-agents train --bits 2,4,5,6 --first-last-bits none"
    assert parse_bits("32") == (32,)


def test_train_network_has_the_defaults_of_the_training() -> None:
    parameters = inspect.signature(train_dense_network).parameters
    for entry in fields(NetworkTraining):
        default = parameters[entry.name].default
        if entry.name not in ("network", "dataset"):
            assert default == entry.default, entry.name


def test_train_network_hands_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(options: NetworkTraining, path: Path, resume: bool) -> dict[str, float]:
        seen.append((options, path, resume))
        return {"search_accuracy": 0.9, "test_accuracy": 0.8, "wall_seconds": 1.0}

    monkeypatch.setattr("compress_env.network_training.train_network", train)
    out = tmp_path / "net.safetensors"
    words = ["train-network", "--epochs", "7", "--resume", "--out", str(out)]
    result = runner.invoke(app, words)
    assert "test accuracy 80.00%" in result.output
    assert seen == [(NetworkTraining("resnet20", "digits", epochs=7), out, True)]


def test_train_network_names_bad_options(tmp_path: Path) -> None:
    assert "network" in refused(["train-network", "--network", "resnet19"])
    assert "epochs" in refused(["train-network", "--epochs", "0"])
    assert "safetensors" in refused(["train-network", "--out", str(tmp_path / "net.pt")])
