"""A search from options to a run folder: what it writes, and that it can be killed anywhere."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3 import PPO

from compress_agents.config import TrainingConfig, from_json, to_json
from compress_agents.evaluation import evaluate_run
from compress_agents.records import COLUMNS, Record
from compress_agents.reporting import NoPlanError
from compress_agents.runs import RunFolder
from compress_agents.training import Training, open_run

TINY: dict[str, Any] = {
    "target_reduction": 0.984,
    "search_images": 64,
    "calibration_images": 64,
}
CONFIG = TrainingConfig(**TINY, total_timesteps=24, update_interval=8, update_epochs=2)
REPORT_KEYS = {
    *("network", "dataset", "metric", "target_reduction", "reduction", "macs", "bops", "params"),
    *("size_bits", "dense_macs", "dense_bops", "baseline_test_accuracy", "test_accuracy"),
    *("search_accuracy", "dense_search_accuracy", "num_test_images", "evaluations", "env_steps"),
    *("wall_seconds", "first_last_bits", "versions", "seed", "command"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "finished"
    Training(CONFIG, str(path)).run()
    return RunFolder(path)


def episodes(folder: RunFolder) -> list[dict[str, str]]:
    with folder.episodes.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k != "wall_seconds"} for row in csv.DictReader(file)
        ]


def assert_same_run(first: RunFolder, second: RunFolder) -> None:
    assert episodes(first) == episodes(second)
    assert first.best_plan.read_bytes() == second.best_plan.read_bytes()
    parameters = [PPO.load(folder.agent).policy.state_dict() for folder in (first, second)]
    for name, value in parameters[0].items():
        assert torch.equal(value, parameters[1][name]), name


class Killed(BaseException):
    """Stands for the end of the process: nobody catches it."""


def kill_after(number: int) -> Any:
    def show(record: Record) -> None:
        if record.episodes >= number:
            raise Killed

    return show


def test_a_run_writes_what_is_promised(finished: RunFolder) -> None:
    report = json.loads(finished.report.read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["versions"].keys() >= {"python", "torch", "dgl", "gymnasium", "numpy"}
    # The base plan comes first, the plan without noise last.
    assert report["evaluations"] == 1 + CONFIG.total_timesteps + 1
    assert report["env_steps"] == CONFIG.total_timesteps + 1
    assert report["reduction"] >= CONFIG.target_reduction
    assert report["command"] == CONFIG.command()
    rows = episodes(finished)
    assert [int(row["episode"]) for row in rows] == list(range(1, 27))
    assert float(rows[0]["accuracy"]) == report["uniform_search_accuracy"]
    assert {*rows[0], "wall_seconds"} == {*COLUMNS}
    rewards = [float(row["reward"]) for row in rows]
    best = json.loads(finished.best_plan.read_text())
    assert best["episode"] == 1 + int(np.argmax(rewards))  # the first of the highest
    assert best["search_accuracy"] == report["search_accuracy"]
    assert list(finished.tensorboard.glob("events.*"))
    for name in ("learning_curve", "plan"):
        with Image.open(finished.figures / f"{name}.png") as image:
            assert min(image.size) > 300
    assert from_json(json.loads(finished.config.read_text())) == CONFIG


def test_the_plan_gives_the_reported_figures_again(finished: RunFolder) -> None:
    measured, reported, problems = evaluate_run(finished.path)
    assert problems == []
    assert reported is not None and measured["test_accuracy"] == reported["test_accuracy"]


def test_training_moves_the_graph_network(tmp_path: Path) -> None:
    training = Training(replace(CONFIG, total_timesteps=8), str(tmp_path / "run"))
    before = {k: v.clone() for k, v in training.learner.policy.state_dict().items()}
    training.run()
    after = training.learner.policy.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("features_extractor.encoder") for name in moved)
    assert "log_std" in moved


# Killed in the second update's steps, and in the last ones: at least one checkpoint is there.
@pytest.mark.parametrize("moment", [13, 24])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    finished: RunFolder, tmp_path: Path, moment: int
) -> None:
    path = str(tmp_path / "run")
    with pytest.raises(Killed):
        Training(CONFIG, path).run(kill_after(moment))
    # What was written after the checkpoint, or only half, must not matter.
    with RunFolder(path).episodes.open("a") as file:
        file.write("99,99,99,0.")
    torch.manual_seed(1234)
    np.random.seed(1234)
    Training(CONFIG, path, resume=True).run()
    assert_same_run(finished, RunFolder(path))


def test_an_episode_of_many_steps_is_gone_on_with_in_its_middle(tmp_path: Path) -> None:
    # 20 steps to an episode and 15 to an update, so updates fall into episodes.
    config = replace(CONFIG, step_mode="layer", update_interval=15, total_timesteps=70)
    Training(config, str(tmp_path / "whole")).run()
    with pytest.raises(Killed):
        Training(config, str(tmp_path / "killed")).run(kill_after(2))
    Training(config, str(tmp_path / "killed"), resume=True).run()
    assert_same_run(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed"))
    assert len(episodes(RunFolder(tmp_path / "whole"))) == 3 + 1


@pytest.mark.slow
def test_a_process_killed_outright_loses_at_most_one_update(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    words = CONFIG.command().split()[1:]
    words[words.index("--total-timesteps") + 1] = "10000"
    process = subprocess.Popen(
        [sys.executable, "-m", "compress_agents.cli", *words, "--run-dir", str(folder.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 100
        while not folder.agent.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    written = len(episodes(folder))
    record = Training(replace(CONFIG, total_timesteps=10000), str(folder.path), resume=True).record
    assert written - CONFIG.update_interval <= record.episodes <= written
    assert record.episodes >= CONFIG.update_interval
    # The base plan comes first, before the episodes of the updates.
    assert (record.episodes - 1) % CONFIG.update_interval == 0


def test_a_finished_run_is_not_run_again_but_can_be_made_longer(
    finished: RunFolder, tmp_path: Path
) -> None:
    path = str(tmp_path / "run")
    short = replace(CONFIG, total_timesteps=8)
    first = Training(short, path).run()
    assert Training(short, path, resume=True).run() == first
    Training(CONFIG, path, resume=True).run()
    assert_same_run(finished, RunFolder(path))


@pytest.mark.parametrize("limit", [{"max_episodes": 5}, {"solve_reward": 0.5}])
def test_limits_end_a_training_early(tmp_path: Path, limit: dict[str, Any]) -> None:
    report = Training(replace(CONFIG, **limit), str(tmp_path / "run")).run()
    assert report["episodes"] <= 6


@pytest.mark.parametrize("agent", ["ppo", "ppo-node"])
def test_both_agents_decide_layer_by_layer(tmp_path: Path, agent: str) -> None:
    config = replace(CONFIG, agent=agent, step_mode="layer", total_timesteps=40)
    report = Training(config, str(tmp_path / "run")).run()
    assert report["evaluations"] == 2 + 1
    assert report["env_steps"] == 40 + 20


def test_a_target_that_no_episode_meets_is_said(tmp_path: Path) -> None:
    config = replace(CONFIG, target_reduction=0.9955, project=False, max_steps=1, total_timesteps=4)
    with pytest.raises(NoPlanError, match="max-steps"):
        Training(config, str(tmp_path / "run")).run()


@pytest.mark.slow
def test_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    config = replace(CONFIG, num_envs=2, update_interval=4)
    Training(config, str(tmp_path / "whole")).run()
    with pytest.raises(Killed):
        Training(config, str(tmp_path / "killed")).run(kill_after(12))
    Training(config, str(tmp_path / "killed"), resume=True).run()
    assert_same_run(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed"))
    # What the processes saw is what the report says.
    whole = RunFolder(tmp_path / "whole")
    report = json.loads(whole.report.read_text())
    assert report["search_accuracy"] == json.loads(whole.best_plan.read_text())["search_accuracy"]


# -- searches --------------------------------------------------------------------------------------


def test_a_search_writes_the_same_files_and_can_be_resumed(tmp_path: Path) -> None:
    config = TrainingConfig(**TINY, agent="random", evaluations=30)
    report = open_run(config, str(tmp_path / "whole")).run()
    assert report.keys() >= REPORT_KEYS and report["evaluations"] == 30
    with pytest.raises(Killed):
        open_run(config, str(tmp_path / "killed")).run(kill_after(27))
    open_run(config, str(tmp_path / "killed"), resume=True).run()
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    assert episodes(whole) == episodes(killed)
    assert whole.best_plan.read_bytes() == killed.best_plan.read_bytes()
    assert {path.name for path in whole.figures.iterdir()} == {"learning_curve.png", "plan.png"}


def test_uniform_bits_are_the_action_zero(tmp_path: Path) -> None:
    config = TrainingConfig(**TINY, agent="uniform")
    report = open_run(config, str(tmp_path / "run")).run()
    assert report["evaluations"] == 1
    assert report["search_accuracy"] == report["uniform_search_accuracy"]
    assert report["reduction"] == report["uniform_reduction"]


def test_options_survive_json() -> None:
    for config in (CONFIG, TrainingConfig(bits=(2, 4), first_last_bits=None, agent="gaussian")):
        assert from_json(json.loads(json.dumps(to_json(config)))) == config
