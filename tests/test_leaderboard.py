"""What is made of a benchmark's results: means, intervals, ratios, pictures, by hand and oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from compress_agents.benchmarking.aggregates import estimate, interquartile_mean
from compress_agents.benchmarking.leaderboard import leaderboard_tables
from compress_agents.benchmarking.leaderboard_figures import nondominated
from compress_agents.benchmarking.results import COLUMNS, CURVE_COLUMNS, write_csv
from compress_agents.benchmarking.scores import read_scores
from compress_agents.benchmarking.speedup import evaluations_to_reach, parse_pair, speedup
from compress_agents.cli import app

runner = CliRunner()


def test_interquartile_mean_by_hand() -> None:
    def iqm(*scores: float) -> float:
        return float(interquartile_mean(np.array(scores)[:, None])[0])

    assert iqm(8, 1, 7, 2, 6, 3, 5, 4) == 4.5  # of 3, 4, 5, 6
    assert iqm(100, 1, 2, 3, -50) == 2.0  # a quarter of five is one at each end
    assert iqm(1, 2, 9) == 4.0  # of three, nothing is cut off


def test_bootstrap_resamples_within_tasks() -> None:
    # Runs of one task that agree leave no doubt, however far apart the tasks are.
    certain = estimate([np.array([0.0, 0.0, 0.0]), np.array([100.0, 100.0, 100.0])])
    assert (certain.value, certain.low, certain.high) == (50.0, 50.0, 50.0)
    # One of two runs: the mean of two draws is 0, 1/2 or 1 with 1/4, 1/2, 1/4.
    coin = estimate([np.array([0.0, 1.0])])
    assert (coin.value, coin.low, coin.high) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="tasks"):
        estimate([])


def test_intervals_are_those_of_scipy() -> None:
    scores = np.random.default_rng(0).normal(size=12)
    own = estimate([scores])
    oracle = stats.bootstrap(
        (scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), n_resamples=4000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert [own.low, own.high] == pytest.approx([oracle.low, oracle.high], abs=0.05)


def test_evaluations_to_reach_by_hand() -> None:
    curves = np.array([[np.nan, 1, 2, 2], [np.nan, 1, 1, 1]])
    assert evaluations_to_reach(curves, np.array([2.0, 2.0])).tolist() == [3, np.inf]


def test_speedup_by_hand() -> None:
    slow = np.tile([1.0, 2, 3, 4, 4, 5], (3, 1))
    fast = np.tile([2.0, 5, 6, 6, 6, 6], (4, 1))
    found = speedup(fast, slow)
    assert (found.score, found.slow, found.fast, found.ratio) == (5.0, 6, 2, 3.0)
    assert (found.low, found.high, found.reached) == (3.0, 3.0, 1.0)
    back = speedup(slow, fast)
    assert (back.score, back.fast, back.ratio, back.high, back.reached) == (6.0, None, 0, 0, 0)
    # Half of the runs get there: the interval says so.
    mixed = speedup(np.array([[5.0] * 6, [0.0] * 6]), slow)
    assert mixed.low == 0.0 and mixed.high == 6.0 and 0.1 < mixed.reached < 0.4


def test_pairs_of_agents_may_have_colons() -> None:
    agents = ["ppo", "my.module:Agent"]
    assert parse_pair("my.module:Agent:ppo", agents) == ("my.module:Agent", "ppo")
    with pytest.raises(ValueError, match="speedup"):
        parse_pair("ppo:sac", agents)


def test_the_front_by_hand() -> None:
    points = np.array([[0.9, 0.5], [0.8, 0.7], [0.85, 0.4], [0.8, 0.6], [0.95, 0.5]])
    assert nondominated(points).tolist() == [[0.8, 0.7], [0.95, 0.5]]


def write_benchmark(folder: Path, agents: dict[str, list[float]], **changes: Any) -> None:
    """Results of runs that gain a point per evaluation until they are where they end."""
    rows, points = [], []
    for agent, ends in agents.items():
        for seed, end in enumerate(ends):
            row = {
                **dict.fromkeys(COLUMNS, 0.5),
                **{"env_id": "E", "network": "net", "dataset": "images", "metric": "bops"},
                **{"target_reduction": 0.9, "agent": agent, "seed": seed, "budget": 10},
                **{"evaluations": 10, "reduction": 0.91, "search_accuracy": end},
                **{"num_search_images": 100, "num_test_images": 100, "run": f"{agent}{seed}"},
                **{"command": "c", "versions": "v"},
                **changes,
            }
            rows.append(row)
            steps = round(100 * (end - 0.5))
            for step in range(steps + 1):
                reached = {"evaluations": step + 1, "search_accuracy": 0.5 + step / 100}
                points.append({**row, **reached, "reward": reached["search_accuracy"]})
    folder.mkdir()
    write_csv(folder / "results.csv", COLUMNS, rows)
    write_csv(folder / "curves.csv", CURVE_COLUMNS, points)


def test_tables_by_hand(tmp_path: Path) -> None:
    agents = {"slow": [0.52, 0.54, 0.53, 0.9], "fast": [0.57, 0.57, 0.57]}
    write_benchmark(tmp_path / "a", agents)
    write_benchmark(tmp_path / "b", {"slow": [0.55]}, target_reduction=0.95)
    scores = read_scores([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    first, second, overall, ratio = leaderboard_tables(scores, "search_accuracy", ["fast:slow"])
    assert [row[:5] for row in first.rows] == [
        ["1", "fast", "3", "57.00 [57.00, 57.00]", "57.00"],
        ["2", "slow", "4", first.rows[1][3], "53.50"],
    ]
    assert first.rows[1][3].startswith("53.50 [5")  # of 53 and 54
    assert second.rows[0][1:3] == ["slow", "1"]
    assert [row[1] for row in overall.rows] == ["slow"] and "fast" in overall.note
    # 53.5 is what the middle half of `slow` has after evaluation 5, and `fast` too.
    assert ratio.rows[0][1:4] == ["53.50", "5", "5"]
    with pytest.raises(ValueError, match="score"):
        leaderboard_tables(scores, "beauty", [])


def test_the_command_writes_table_and_pictures(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "a", {"one": [0.52, 0.54], "two": [0.55], "two[size=3]": [0.53]})
    folder = str(tmp_path / "a")
    result = runner.invoke(app, ["leaderboard", folder, "--speedup", "two:one"])
    assert result.exit_code == 0, result.output
    assert "two[size=3]" in result.output
    page = (tmp_path / "a" / "leaderboard" / "leaderboard.md").read_text()
    for name in ("curves-1", "front-1"):
        assert f"({name}.svg)" in page
        assert (
            (tmp_path / "a" / "leaderboard" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        )
        assert (tmp_path / "a" / "leaderboard" / f"{name}.png").stat().st_size > 10_000
    for arguments, named in (
        ([str(tmp_path / "none")], "none"),
        ([folder, "--score", "beauty"], "score"),
        ([folder, "--speedup", "one:three"], "speedup"),
    ):
        result = runner.invoke(app, ["leaderboard", *arguments])
        assert result.exit_code == 2 and named in result.stderr


def test_runs_that_start_from_other_networks_are_not_compared(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "a", {"one": [0.52]})
    write_benchmark(tmp_path / "b", {"two": [0.52]}, dense_search_accuracy=0.4)
    with pytest.raises(ValueError, match="dense_search_accuracy"):
        read_scores([tmp_path / "a", tmp_path / "b"])
