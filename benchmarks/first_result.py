"""The first result: PPO with a graph network against uniform bits and random search.

    python -m benchmarks.first_result

compresses the embedded ResNet-20 for digits at two BOPs reductions. Every method but uniform bits
searches with the same number of evaluations and the same seeds; a plan's accuracy is that on the
search split, and the test split is looked at once per run, for its best plan. Runs that were
finished or interrupted are gone on with.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.tables import markdown_table
from compress_agents.config import TrainingConfig
from compress_agents.progress import search_progress
from compress_agents.runs import RunFolder, write_atomically, write_json
from compress_agents.training import open_run

TARGETS = (0.984, 0.991)
RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m benchmarks.first_result"

_TITLES = {
    "uniform": "uniform bits",
    "random": "random search, uniform in [-1, 1]",
    "gaussian": "random search, Gaussian around uniform bits",
    "ppo": "PPO with a graph network",
}
_LATE = 100


@dataclass(frozen=True)
class Run:
    """One search of the benchmark."""

    target: float
    method: str
    seed: int
    evaluations: int

    @property
    def config(self) -> TrainingConfig:
        """Its options."""
        return TrainingConfig(
            target_reduction=self.target,
            seed=self.seed,
            agent=self.method,
            evaluations=self.evaluations,
        )

    def run(self, root: Path, console: Console) -> dict[str, Any]:
        """Run it, go on with it or read it; the row of the results."""
        config = self.config
        path = root / f"{self.target}-{self.method}-seed{self.seed}"
        resume = RunFolder(path).config.exists()
        search = open_run(config, str(path), resume)
        console.print(f"[bold]{self.target:.1%} {_TITLES[self.method]}, seed {self.seed}")
        with search_progress(console, config.budget) as show:
            report = search.run(show)
        return {
            "target_reduction": self.target,
            "method": self.method,
            "seed": self.seed,
            "late_accuracy": _late_accuracy(RunFolder(path).episodes),
            **{
                name: report[name]
                for name in (
                    "reduction",
                    "evaluations",
                    "search_accuracy",
                    "test_accuracy",
                    "dense_search_accuracy",
                    "baseline_test_accuracy",
                    "num_search_images",
                    "num_test_images",
                    "wall_seconds",
                    "command",
                    "versions",
                )
            },
        }


def _late_accuracy(episodes: Path) -> float:
    """Mean accuracy of the last plans that were tried: what the search has come to propose."""
    with episodes.open(newline="") as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file) if row["accuracy"]]
    return statistics.fmean(accuracies[-_LATE:])


def planned_runs(seeds: int, evaluations: int, targets: tuple[float, ...]) -> list[Run]:
    """All searches; uniform bits need but one."""
    return [
        Run(target, method, seed, evaluations)
        for target in targets
        for method in _TITLES
        for seed in range(1 if method == "uniform" else seeds)
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of the results, in Markdown."""
    lines = []
    for target in sorted({row["target_reduction"] for row in rows}):
        of_target = [row for row in rows if row["target_reduction"] == target]
        first = of_target[0]
        lines.append(
            [
                f"{target:.1%}",
                "dense network",
                "",
                f"{first['dense_search_accuracy']:.2%}",
                "",
                f"{first['baseline_test_accuracy']:.2%}",
            ]
        )
        for method, title in _TITLES.items():
            own = [row for row in of_target if row["method"] == method]
            if own:
                late = statistics.median(row["late_accuracy"] for row in own)
                lines.append(
                    [
                        f"{target:.1%}",
                        title,
                        str(own[0]["evaluations"]),
                        _spread([row["search_accuracy"] for row in own]),
                        f"{late:.2%}",
                        _spread([row["test_accuracy"] for row in own]),
                    ]
                )
    head = [
        "BOPs reduction",
        "method",
        "evaluations",
        "search accuracy of the best plan",
        f"mean of the last {_LATE} plans",
        "test accuracy of the best plan",
    ]
    return markdown_table(head, lines)


def _spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):.2%}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.2%} to {max(values):.2%})"


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    columns = [name for name in rows[0] if name not in ("versions", "command")]
    text = [",".join(columns)]
    text += [",".join(str(row[name]) for name in columns) for row in rows]
    write_atomically(path, ("\n".join(text) + "\n").encode())


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds per method (default 5)")
    parser.add_argument(
        "--evaluations",
        type=int,
        default=501,
        help="evaluations per search (default 501: 20 updates of PPO and its final action)",
    )
    parser.add_argument(
        "--targets", type=float, nargs="+", default=TARGETS, help="reductions (default 0.984 0.991)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/first_result"), help="folder of the run folders"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / "first_result.json",
        help="file for the results; a .csv and a .md go beside it",
    )
    arguments = parser.parse_args()
    console = Console()
    rows = []
    root = arguments.runs / f"evaluations{arguments.evaluations}"
    for run in planned_runs(arguments.seeds, arguments.evaluations, tuple(arguments.targets)):
        try:
            rows.append(run.run(root, console))
        except ValueError as error:  # run folders of other options, for example
            parser.error(str(error))
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, {"command": COMMAND, "rows": rows})
        _write_csv(rows, arguments.json.with_suffix(".csv"))
    table = summary(rows)
    write_atomically(arguments.json.with_suffix(".md"), table.encode())
    console.print(table, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
