"""Every agent by name: the same budget for all, seeds that repeat, runs that can be resumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import TinyClassifier
from test_training import Killed, episodes, kill_after
from typer.testing import CliRunner

from compress_agents.agents import AGENTS, build_agent
from compress_agents.agents.haq import lower_in_turn
from compress_agents.agents.integer_program import solve
from compress_agents.agents.layer_ddpg import LayerDDPG, Walk
from compress_agents.agents.sensitivity import lower_to_budget, search_space
from compress_agents.cli import app
from compress_agents.command_line.options import parse_settings
from compress_agents.config import TrainingConfig
from compress_agents.measuring import BudgetSpent, EvaluationLog, MeasuredEnv
from compress_agents.records import Record
from compress_agents.running import seed_everything
from compress_agents.runs import RunFolder
from compress_agents.training import open_run
from compress_env.env import Appraisal, JointPruneQuantEnv

pytestmark = pytest.mark.filterwarnings("ignore:no weights given")

TINY: dict[str, Any] = {
    "network": "small_networks:TinyClassifier",
    "dataset": "digits",
    "target_reduction": 0.97,
    "first_last_bits": None,
    "search_images": 16,
    "calibration_images": 16,
}
SHORT = {
    **{"warm_up": 2, "batch_size": 4, "update_interval": 4, "hidden": 16, "episodes": 2},
    **{"first_steps": 8, "candidates": 20, "generations": 2},
}
"""Settings with which an agent learns within a few evaluations, where it has them."""


def config(agent: str, evaluations: int, **options: Any) -> TrainingConfig:
    """A run of an agent on a tiny network that learns from the first few episodes on."""
    settings = {name: SHORT[name] for name in SHORT if name in _settings_of(agent)}
    words = ",".join(f"{name}={value}" for name, value in settings.items())
    return TrainingConfig(
        **{**TINY, **options}, agent=agent, agent_options=words, evaluations=evaluations
    )


def _settings_of(agent: str) -> set[str]:
    return set(vars(build_agent(agent, {})))


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_takes_the_same_budget_and_repeats_itself(tmp_path: Path, agent: str) -> None:
    runs = [RunFolder(tmp_path / name) for name in ("first", "second")]
    reports = [open_run(config(agent, 8), str(run.path)).run() for run in runs]
    assert reports[0]["evaluations"] == (1 if agent == "uniform" else 8)
    assert reports[0]["reduction"] >= TINY["target_reduction"]
    assert episodes(runs[0]) == episodes(runs[1])
    assert runs[0].best_plan.read_bytes() == runs[1].best_plan.read_bytes()


@pytest.mark.parametrize("agent", ["sac", "evolution", "graph-q", "integer-program", "haq"])
def test_a_killed_search_goes_on_without_evaluating_again(
    tmp_path: Path, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(agent, 14)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    open_run(options, str(whole.path)).run()
    with pytest.raises(Killed):
        open_run(options, str(killed.path)).run(kill_after(9))
    known = len(killed.evaluations.read_text().splitlines())
    with killed.evaluations.open("a") as file:
        file.write('{"plan": "ab')  # what a killed process may leave
    fresh = []
    appraise = JointPruneQuantEnv._appraise

    def counted(env: JointPruneQuantEnv, plan: Any) -> Appraisal:
        fresh.append(plan)
        return appraise(env, plan)

    monkeypatch.setattr(JointPruneQuantEnv, "_appraise", counted)
    open_run(options, str(killed.path), resume=True).run()
    assert episodes(whole) == episodes(killed)
    assert whole.best_plan.read_bytes() == killed.best_plan.read_bytes()
    assert len(fresh) == len(killed.evaluations.read_text().splitlines()) - known
    # A finished run is read, and a longer one starts from what it knows.
    before = len(fresh)
    report = open_run(options, str(killed.path), resume=True).run()
    assert report["evaluations"] == 14 and len(fresh) == before


OUTSIDE = '''
import numpy as np


class Climber:
    """Keeps a step that helps; does not give up."""

    environment = {"step_mode": "network"}

    def __init__(self, step=0.1):
        self.step = step

    def search(self, env, seed, evaluations):
        generator = np.random.default_rng(seed)
        best, reward = np.zeros(env.action_space.shape, np.float32), -np.inf
        while True:
            try:
                tried = best + generator.normal(0, self.step, best.shape).astype(np.float32)
                env.reset()
                _, paid, _, _, _ = env.step(tried)
                if paid > reward:
                    best, reward = tried, paid
            except Exception:
                pass


def nothing():
    return object()
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that is in no package, on the path."""
    (tmp_path / "elsewhere.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield


@pytest.mark.usefixtures("outside")
def test_an_agent_from_outside_runs_by_its_name(tmp_path: Path) -> None:
    words = ["train", "--agent", "elsewhere:Climber", "--agent-options", "step=0.3"]
    words += ["--network", TINY["network"], "--dataset", "digits", "--target-reduction", "0.97"]
    words += ["--search-images", "16", "--calibration-images", "16", "--first-last-bits", "none"]
    run = RunFolder(tmp_path / "run")
    result = CliRunner().invoke(
        app, [*words, "--evaluations", "5", "--run-dir", str(run.path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report = json.loads(run.report.read_text())
    assert report["evaluations"] == 5 and report["method"] == "elsewhere:Climber"
    assert "elsewhere:Climber --agent-options step=0.3" in report["command"]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--agent", "james"], "agent must be one of ppo, "),
        (["--agent", "elsewhere:Nobody"], "elsewhere:Nobody"),
        (["--agent", "nowhere:Climber"], "nowhere"),
        (["--agent", "elsewhere:nothing"], "method search"),
        (["--agent", "elsewhere:Climber", "--agent-options", "stride=1"], "it has step"),
        (["--agent", "elsewhere:Climber", "--agent-options", "step"], "name=value"),
        (["--agent", "elsewhere:Climber", "--step-mode", "layer"], "step_mode must be network"),
        (["--agent", "random", "--learning-rate", "0.1"], "no setting learning_rate"),
        (["--agent", "sac", "--num-envs", "2"], "num_envs must be 1"),
        (["--agent", "sac", "--agent-options", "encoder=fft"], "encoder must be one of"),
        (["--agent", "evolution", "--agent-options", "population=1"], "population"),
        (["--agent-options", "learning_rate=abc"], "learning_rate must be a number, not 'abc'"),
        (["--agent", "greedy", "--agent-options", "steps=1.5"], "steps must be a whole number"),
        (["--agent", "gnn-rl", "--agent-options", "action_std=-1"], "action_std must be above 0"),
        (["--agent", "amc", "--agent-options", "actor_rate=0"], "actor_rate and critic_rate"),
        (["--agent", "trpo", "--agent-options", "trust_region=0"], "trust_region must be above 0"),
        (["--agent", "haq", "--metric", "macs", "--bits", "32"], "cannot be met by bits alone"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, words: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["train", *words, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert named in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_list_has_a_line_per_agent_and_the_settings_of_one() -> None:
    lines = CliRunner().invoke(app, ["agents"]).output.splitlines()
    assert [line.split()[0] for line in lines] == list(AGENTS)
    settings = CliRunner().invoke(app, ["agents", "ppo-mlp"]).output
    assert "encoder=flat" in settings and "update_interval=25" in settings
    assert parse_settings("a=1,b=0.5,c=true,d=gcn") == {"a": 1, "b": 0.5, "c": True, "d": "gcn"}


# -- measuring ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> JointPruneQuantEnv:
    """An environment for the tiny network. Not to be changed."""
    options = {name: value for name, value in TINY.items() if name != "network"}
    return JointPruneQuantEnv(TinyClassifier().eval(), bits=(2, 4, 8), **options)


def measured(env: JointPruneQuantEnv, tmp_path: Path, budget: int) -> MeasuredEnv:
    folder = RunFolder(tmp_path)
    record = Record(folder)
    log = EvaluationLog(folder.evaluations)
    return MeasuredEnv(env, record, lambda: record.episodes >= budget, log)


def test_a_plan_that_costs_too_much_counts_but_cannot_win(
    tiny: JointPruneQuantEnv, tmp_path: Path
) -> None:
    env = measured(tiny, tmp_path, budget=2)
    dense = env.measure(tiny.task.dense_plan)
    assert not dense.target_met and dense.reduction == 0
    assert dense.accuracy == tiny.task.dense_evaluation.accuracy
    assert env.record.best is None and env.record.evaluations == 1
    env.reset()
    zero = np.zeros(tiny.action_space.shape, np.float32)
    _, reward, _, _, info = env.step(zero)
    assert env.record.best is not None and env.record.best.reward == reward
    with pytest.raises(BudgetSpent):
        env.measure(info["plan"])
    with pytest.raises(BudgetSpent):
        env.step(zero)
    assert env.record.evaluations == 2
    env.close_measuring()
    again = EvaluationLog(RunFolder(tmp_path).evaluations).find(info["plan"])
    assert again is not None and np.float32(again[0].reward) == np.float32(reward)


# -- parts of the agents ------------------------------------------------------------------------


def test_the_integer_program_finds_what_trying_everything_finds(tiny: JointPruneQuantEnv) -> None:
    space = search_space(tiny)
    assert space.of_bits and len(space.axes) == 8
    for seed in range(3):
        losses = space.losses(np.random.default_rng(seed).lognormal(0, 2, len(space.axes)))

        def lost(state: np.ndarray, losses: list[np.ndarray] = losses) -> float:
            return sum(table[tuple(at)] for table, at in zip(losses, state, strict=True))

        everything = (np.reshape(s, (4, 2)) for s in itertools.product(range(3), repeat=8))
        least = min(lost(state) for state in everything if space.target_met(state))
        found = solve(space, losses, space.base, reach=2)
        assert space.target_met(found)
        assert lost(found) == pytest.approx(least, rel=1e-3)
        near = solve(space, losses, space.base, reach=1)
        assert np.abs(near - space.base).max() <= 1 and space.target_met(near)
        greedy = lower_to_budget(space, losses, space.start)
        assert space.target_met(greedy) and lost(greedy) >= least * 0.999


def test_sensitivities_can_be_of_channels() -> None:
    options = {name: value for name, value in TINY.items() if name != "network"}
    options.update(metric="macs", bits=(32,), target_reduction=0.5)
    env = JointPruneQuantEnv(TinyClassifier().eval(), **options)
    space = search_space(env)
    assert not space.of_bits
    losses = space.losses(np.ones(len(space.axes)))
    for state in (
        solve(space, losses, space.base, reach=9),
        lower_to_budget(space, losses, space.start),
    ):
        assert env.decoder.reduction(space.plan(state)) >= 0.5


def test_haq_lowers_one_bit_at_a_time_in_turn(tiny: JointPruneQuantEnv) -> None:
    decoder = tiny.decoder
    choice = lower_in_turn(decoder, np.full((4, 2), 8))
    assert decoder.target_met(choice)
    places = np.searchsorted(decoder.allowed, choice.bits).ravel()
    # Whoever comes first has been lowered as often as the rest, or once more.
    assert (np.diff(places) >= 0).all() and np.ptp(places) <= 1
    raised = choice.bits.ravel().copy()
    raised[np.flatnonzero(places == places.min())[-1]] = 8
    assert not decoder.target_met(replace(choice, bits=raised.reshape(4, 2)))


class Target(LayerDDPG):
    """Episodes of ten decisions, paid for being close to 0.3."""

    def play(self, env: Any, walk: Walk) -> float:
        """See `LayerDDPG`."""
        states = np.linspace(-1, 1, 10, dtype=np.float32)
        actions = np.array([walk.decide(np.full(2, state), 1)[0] for state in states])
        env.append(-float(np.abs(actions - 0.3).mean()) / 5)
        return float(env[-1])


class Until(list[float]):
    """Ends the search after so many episodes."""

    def append(self, value: float) -> None:
        if len(self) == 80:
            raise BudgetSpent
        super().append(value)


def test_layer_by_layer_ddpg_learns() -> None:
    seed_everything(0)  # as a run does
    rewards = Until()
    with pytest.raises(BudgetSpent):
        Target(warm_up=20, noise=0.3, hidden=32).search(rewards, 0, 80)
    assert rewards[0] == pytest.approx(-0.06, abs=0.003)  # starts at zero
    assert rewards[-1] > -0.05  # both without noise
