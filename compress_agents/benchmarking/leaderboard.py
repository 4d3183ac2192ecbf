"""The tables of a leaderboard: agents by task, over all tasks, and one against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from compress_agents.benchmarking.aggregates import Array, Estimate, estimate, median
from compress_agents.benchmarking.scores import Scores, Task, curve_name
from compress_agents.benchmarking.speedup import parse_pair, speedup
from compress_agents.tables import markdown_table

__all__ = ["Table", "leaderboard_tables"]

_TITLES = {
    "search_accuracy": "search",
    "test_accuracy": "test",
    "best_reward": "reward",
}


@dataclass(frozen=True)
class Table:
    """A table with what has to be said of it.

    Attributes:
        title: above it.
        head: names of the columns.
        rows: cells.
        note: below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """As a section of a Markdown document."""
        note = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n{markdown_table(self.head, self.rows)}{note}"

    def terminal(self) -> TerminalTable:
        """For the terminal."""
        table = TerminalTable(
            title=Text(self.title),
            title_justify="left",
            caption=Text(self.note) if self.note else None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in range(len(self.head)):
            table.add_column(
                Text(self.head[column]),
                justify="right" if column > 1 else "left",
                no_wrap=column == 1,
                overflow="fold",
            )
        for row in self.rows:
            # Settings of agents are in brackets, which would be markup.
            table.add_row(*map(Text, row))
        return table


def leaderboard_tables(scores: Scores, score: str, pairs: Sequence[str]) -> list[Table]:
    """All tables.

    Args:
        scores: the results.
        score: what agents are ranked by.
        pairs: agents to compare, ``"A:B"``.

    Raises:
        ValueError: there is no such score, or no such agents.
    """
    curve = curve_name(score)
    known = list(dict.fromkeys(row["agent"] for row in scores.rows))
    parsed = [parse_pair(pair, known) for pair in pairs]
    tables = [_task_table(scores, task, score) for task in scores.tasks]
    if len(scores.tasks) > 1:
        tables.append(_overall_table(scores, score))
    return tables + [_speedup_table(scores, fast, slow, curve) for fast, slow in parsed]


def ranked(scores: Scores, task: Task, score: str) -> list[tuple[str, Estimate]]:
    """The agents of a task with their interquartile means, best first."""
    found = [
        (agent, estimate([scores.column(task, agent, score)])) for agent in scores.agents(task)
    ]
    return sorted(found, key=lambda one: -one[1].value)


def _task_table(scores: Scores, task: Task, score: str) -> Table:
    others = [name for name in ("search_accuracy", "test_accuracy") if name != score]
    first = scores.runs(task)[0]
    rows = []
    for place, (agent, best) in enumerate(ranked(scores, task, score), start=1):
        own = scores.column(task, agent, score)
        rows.append(
            [
                str(place),
                agent,
                str(len(own)),
                _with_interval(best),
                _percent(float(median(own[:, None])[0])),
                *(_with_interval(estimate([scores.column(task, agent, name)])) for name in others),
                _percent(_middle(scores.column(task, agent, "late_accuracy"))),
                f"{scores.column(task, agent, 'reduction').min():.2%}",
            ]
        )
    head = [
        "", "agent", "runs", f"{_TITLES[score]} IQM [95%]", "median",
        *(f"{_TITLES[name]} IQM [95%]" for name in others),
        "last plans", "reduction",
    ]  # fmt: skip
    note = (
        "Percent of images of the best plan found; last plans: of the last 100 that were tried. "
        f"Dense network: {first['dense_search_accuracy']:.2%} search, "
        f"{first['dense_test_accuracy']:.2%} test. Uniform bits: "
        f"{first['uniform_search_accuracy']:.2%} search, {first['uniform_test_accuracy']:.2%} "
        f"test. {first['num_search_images']} search and {first['num_test_images']} test images."
    )
    return Table(task.title, head, rows, note)


def _overall_table(scores: Scores, score: str) -> Table:
    """How far agents come above uniform bits, over all tasks; only those that have run in each."""
    gains: dict[str, list[Array]] = {}
    for task in scores.tasks:
        first = scores.runs(task)[0]
        base = first.get(f"uniform_{score}", first["uniform_search_accuracy"])
        for agent in scores.agents(task):
            gains.setdefault(agent, []).append(scores.column(task, agent, score) - base)
    tasks = len(scores.tasks)
    whole = {agent: parts for agent, parts in gains.items() if len(parts) == tasks}
    means = sorted(
        ((agent, estimate(parts)) for agent, parts in whole.items()), key=lambda one: -one[1].value
    )
    rows = [
        [
            str(place),
            agent,
            str(sum(map(len, whole[agent]))),
            f"{100 * mean.value:+.2f} [{100 * mean.low:+.2f}, {100 * mean.high:+.2f}]",
            f"{100 * float(np.median(np.concatenate(whole[agent]))):+.2f}",
        ]
        for place, (agent, mean) in enumerate(means, start=1)
    ]
    left = ", ".join(sorted(set(gains) - set(whole)))
    return Table(
        f"All {tasks} tasks: {score.replace('_', ' ')} above uniform bits, in points",
        ["", "agent", "runs", "IQM [95%]", "median"],
        rows,
        f"Not in every task, so left out: {left}." if left else "",
    )


def _speedup_table(scores: Scores, fast: str, slow: str, curve: str) -> Table:
    rows = []
    for task in scores.tasks:
        curves = [scores.curves(task, agent, curve) for agent in (fast, slow)]
        if not all(map(len, curves)):
            continue
        found = speedup(*curves)
        rows.append(
            [
                task.title,
                _percent(found.score),
                str(found.slow),
                "never" if found.fast is None else str(found.fast),
                f"{_ratio(found.ratio)} [{_ratio(found.low)}, {_ratio(found.high)}]",
                f"{found.reached:.0%}",
            ]
        )
    if not rows:
        raise ValueError(f"speedup: {fast} and {slow} have no task in common")
    return Table(
        f"Evaluations that {fast} needs to come where {slow} ends",
        ["task", f"{slow} ends at", slow, fast, "ratio [95%]", "reached in"],
        rows,
        f"Interquartile mean of the best plan so far ({curve.replace('_', ' ')}); the ratio is "
        "below 1 where it takes more, and 'never' where it is not reached; the last column is the "
        "share of bootstrap resamples in which it is.",
    )


def _middle(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _with_interval(one: Estimate) -> str:
    return f"{100 * one.value:.2f} [{100 * one.low:.2f}, {100 * one.high:.2f}]"


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value > 0 else "never"
