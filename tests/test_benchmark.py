"""Agents compared: equal budgets, runs that fail or are interrupted, and what is made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress_agents.benchmarking.benchmark import Benchmark, Progress
from compress_agents.benchmarking.benchmark_options import (
    BENCHMARK_OPTIONS,
    Search,
    list_searches,
    parse_agents,
    split_label,
)
from compress_agents.benchmarking.entries import entry_of_plan, read_entry, verify_entry
from compress_agents.benchmarking.results import COLUMNS, CURVE_COLUMNS, best_so_far
from compress_agents.benchmarking.scores import read_scores
from compress_agents.cli import app
from compress_agents.environments import make_environment
from compress_agents.runs import RunFolder
from compress_agents.training import open_run

TINY: dict[str, Any] = {
    "env_ids": ("JointPruneQuant-v0",),
    "network": "small_networks:TinyClassifier",
    "dataset": "digits",
    "target_reductions": (0.97,),
    "first_last_bits": None,
    "search_images": 16,
    "calibration_images": 16,
}

FAULTY = """
import os

import numpy as np


class Faulty:
    def __init__(self, how="raise"):
        self.how = how

    def search(self, env, seed, evaluations):
        if os.path.exists("mended"):
            env.reset()
            env.step(np.zeros(env.action_space.shape, np.float32))
        elif self.how == "raise":
            raise RuntimeError("out of ideas")
        else:
            os._exit(7)
"""

runner = CliRunner()


def searches(*agents: str, seeds: int = 1, evaluations: int = 6, **options: Any) -> list[Search]:
    values = {**TINY, "agents": agents, "seeds": seeds, "evaluations": evaluations, **options}
    return list_searches(BENCHMARK_OPTIONS(**values))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k != "wall_seconds"} for row in csv.DictReader(file)
        ]


def test_agents_are_listed_with_settings_in_brackets() -> None:
    labels = parse_agents("ppo, ppo[encoder=gat,clip_range=0.2],my.module:Agent")
    assert labels == ("ppo", "ppo[encoder=gat,clip_range=0.2]", "my.module:Agent")
    assert split_label(labels[1]) == ("ppo", "encoder=gat,clip_range=0.2")
    for wrong in ("", "ppo,,a2c", "ppo[a", "ppo]", "[a=1]", "ppo[a=1]b"):
        with pytest.raises(ValueError, match="agents"):
            [split_label(label) for label in parse_agents(wrong)]


def test_searches_are_all_combinations_with_names_of_their_own() -> None:
    made = searches("uniform", "sac", "sac[reach=0.2]", seeds=2, target_reductions=(0.95, 0.97))
    assert len({search.name for search in made}) == len(made) == 12
    assert [search.config.seed for search in made] == [0] * 6 + [1] * 6
    assert {search.config.agent_options for search in made} == {"", "reach=0.2"}
    assert {search.config.evaluations for search in made} == {6}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--agents", "uniform,uniform"], "twice"),
        (["--agents", "james"], "agent"),
        (["--agents", "sac[speed=1]"], "speed"),
        (["--target-reductions", "much"], "target_reductions"),
        (["--target-reductions", "0.9,1.5"], "target_reductions must be above 0 and below 1"),
        (["--env-ids", "Nope-v0"], "env_ids: there is no environment 'Nope-v0'"),
        (["--weights", "a,b"], "weights"),
        (["--seeds", "0"], "seeds"),
        (["--jobs", "0"], "jobs"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, arguments: list[str], named: str) -> None:
    result = runner.invoke(app, ["benchmark", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1 and named in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_best_so_far_by_hand() -> None:
    episodes = [
        # evaluations, reward, reduction, best_accuracy
        (1, "0.9", "0.90", ""),  # costs too much
        (2, "0.5", "0.97", "0.6"),
        (3, "0.8", "0.96", "0.6"),  # likewise
        (4, "0.7", "0.98", "0.5"),  # the reward decides
        (5, "0.7", "0.98", "0.5"),
    ]
    names = ("evaluations", "reward", "reduction", "best_accuracy")
    rows = [dict(zip(names, map(str, row), strict=True)) for row in episodes]
    points = [tuple(point.values()) for point in best_so_far(rows, 0.97)]
    assert points == [(2, 0.6, 0.5), (4, 0.5, 0.7), (5, 0.5, 0.7)]


def test_a_search_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_agent.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    faulty = ("faulty_agent:Faulty", "faulty_agent:Faulty[how=exit]")
    made = Benchmark(searches(*faulty, "gaussian", "uniform"), tmp_path / "out")
    made.run(2)
    assert sorted(failure.message for failure in made.failures.values()) == [
        "RuntimeError: out of ideas",
        "its process ended with exit status 7",
    ]
    name = next(name for name, f in made.failures.items() if f.traceback)
    assert "out of ideas" in (tmp_path / "out" / "logs" / f"{name}.txt").read_text()
    rows = read(tmp_path / "out" / "results.csv")
    assert [row["agent"] for row in rows] == ["gaussian", "uniform"]
    assert [row["evaluations"] for row in rows] == ["6", "1"]
    assert list(rows[0]) == [name for name in COLUMNS if name != "wall_seconds"]
    assert all(rows[0].values())
    curves = read(tmp_path / "out" / "curves.csv")
    assert list(curves[0]) == list(CURVE_COLUMNS)
    assert curves[-2]["evaluations"] == "6"
    assert curves[-2]["search_accuracy"] == rows[0]["search_accuracy"]
    # Once more: the finished ones are read, the others begun again.
    finished = RunFolder(tmp_path / "out" / "runs" / rows[0]["run"]).report
    written = finished.stat().st_mtime_ns
    (tmp_path / "mended").touch()
    made.run(2)
    assert not made.failures and len(made.results) == 4
    assert finished.stat().st_mtime_ns == written
    # Other options do not get into the same run folders, and fewer agents lose no results.
    with pytest.raises(ValueError, match="search-images"):
        Benchmark(searches("uniform", search_images=8), tmp_path / "out")
    Benchmark(searches("uniform"), tmp_path / "out").run(1)
    assert len(read(tmp_path / "out" / "results.csv")) == 4


def test_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    todo = searches("ppo[update_interval=4]", evaluations=24)
    Benchmark(todo, tmp_path / "whole").run(1)
    interrupted = Benchmark(todo, tmp_path / "interrupted")

    def interrupt(progress: Progress) -> None:
        if progress.evaluations:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.run(1, interrupt)
    assert 0 < interrupted.progress.evaluations < 24
    Benchmark(todo, tmp_path / "interrupted").run(1)
    for name in ("results.csv", "curves.csv"):
        assert read(tmp_path / "whole" / name) == read(tmp_path / "interrupted" / name)


def tampered(path: Path, change: Callable[[Any], None]) -> str:
    """The file of an entry, changed."""
    data = json.loads(path.read_text())
    change(data)
    out = path.with_name("tampered.json")
    out.write_text(json.dumps(data))
    return str(out)


@pytest.mark.filterwarnings("ignore:no weights given")
def test_an_entry_can_be_checked_by_anybody(tmp_path: Path) -> None:
    # The tiny network is made at random, so everybody makes the same one.
    folder = tmp_path / "out"
    made = Benchmark(searches("gaussian"), folder)
    open_run(made.searches[0].config, str(folder / "runs" / made.searches[0].name)).run()
    made.run(1)
    (path,) = (folder / "entries").iterdir()
    # What the machine chose, not that it chose.
    assert json.loads(path.read_text())["task"]["calibration_dtype"] in ("float32", "bfloat16")
    result = runner.invoke(app, ["verify", str(path)])
    assert result.exit_code == 0, result.output

    def claim_more(data: Any) -> None:
        data["figures"]["test_accuracy"] += 0.1

    def use_more_bits(data: Any) -> None:
        for layer in data["plan"]["layers"].values():
            layer["weight_bits"] = 8

    for change, named in (
        (claim_more, ["test_accuracy"]),
        (use_more_bits, ["bops", "size_bits", "below the target"]),
    ):
        result = runner.invoke(app, ["verify", tampered(path, change)])
        assert result.exit_code == 1, result.output
        assert all(name in result.stderr for name in named)

    def leave_out(data: Any) -> None:
        del data["figures"]["reduction"]

    def misspell(data: Any) -> None:
        data["task"]["targt_reduction"] = 0.5

    def mistype(data: Any) -> None:
        data["task"]["target_reduction"] = "much"

    def forget_a_layer(data: Any) -> None:
        data["plan"]["layers"].popitem()

    for change, name in (
        (leave_out, "figures.reduction"),
        (misspell, "task.targt_reduction"),
        (mistype, "task.target_reduction"),
        (forget_a_layer, "layer"),
        (dict.clear, "format"),
    ):
        result = runner.invoke(app, ["verify", tampered(path, change)])
        assert result.exit_code == 2, result.output
        assert name in result.stderr and len(result.stderr.strip().splitlines()) == 1
    for source in (path, folder, folder / "runs" / made.searches[0].name):
        (row,) = read_scores([source]).rows
        assert row["search_accuracy"] == made.results[made.searches[0].name].row["search_accuracy"]


@pytest.mark.filterwarnings("ignore:no weights given")
def test_a_plan_from_elsewhere_becomes_an_entry(tmp_path: Path) -> None:
    (search,) = searches("uniform")
    env = make_environment(search.config)
    plan = env.decoder.plan(env.decoder.base)
    entry = entry_of_plan(plan, search.config, "by hand", "python mine.py", 3)
    path = tmp_path / "entry.json"
    path.write_text(json.dumps(entry.to_json()))
    read = read_entry(path)
    assert read.agent == "by hand" and read.config().target_reduction == 0.97
    measured, problems = verify_entry(read)
    assert problems == []
    assert measured["search_accuracy"] == measured["uniform_search_accuracy"]
    (row,) = read_scores([path]).rows
    assert row["agent"] == "by hand" and row["budget"] == 3
