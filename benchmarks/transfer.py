"""Does what an agent learned on one network help on another? GNN-RL's experiment, and zero-shot.

    python -m benchmarks.transfer

1. An agent trained on ResNet-56 goes on with ResNet-44, its graph network frozen or not, beside one
   that starts from nothing (GNN-RL, Yu et al., ICML 2022, from ResNet-56 to ResNet-44).
2. The node-wise agent trained on ResNet-20 proposes a plan for deeper networks, untrained there.

What an agent has come to propose is told by the mean accuracy of its plans, block by block of 25
evaluations: the best plan of a search is for long the one that it begins with, uniform bits.

All on the digits, unless `--dataset`, `--data-root` and `--weights-dir` say otherwise. Runs that
were finished or interrupted are gone on with.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.subjects import find_weights
from benchmarks.tables import markdown_table, replace_section
from benchmarks.transfer_figure import curves_figure
from compress_agents.benchmarking.results import read_result, write_csv
from compress_agents.config import TrainingConfig
from compress_agents.progress import search_progress
from compress_agents.runs import RunFolder
from compress_agents.training import open_run
from compress_agents.transfer import open_transfer
from compress_agents.transfer_config import TransferConfig, transfer_config
from compress_env.networks import NETWORKS

COMMAND = "python -m benchmarks.transfer"
SECTION = "transfer"
RESULTS = Path(__file__).parent / "results" / "transfer.csv"
PAGE = Path(__file__).parent.parent / "docs" / "benchmark.md"

FROM, TO = "resnet56", "resnet44"
SMALL, DEEPER = "resnet20", ("resnet32", "resnet44", "resnet56", "resnet110")
SCRATCH, WHOLE, FROZEN, ZERO_SHOT = "from nothing", "transferred", "encoder frozen", "zero-shot"
AGENTS = ("ppo", "ppo-node")

_COLUMNS = (
    "network", "agent", "method", "target_reduction", "seed", "evaluations", "reduction",
    "search_accuracy", "test_accuracy", "uniform_search_accuracy", "uniform_test_accuracy",
    "dense_search_accuracy", "dense_test_accuracy", "command",
)  # fmt: skip
_CURVE_COLUMNS = ("network", "agent", "method", "seed", "evaluations", "mean_search_accuracy")
_BLOCK = 25

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """All that the runs have in common.

    Attributes:
        runs: folder of the run folders.
        options: of every training, by name of `TrainingConfig`.
        weights_dir: folder of the dense weights; None: those of the environments.
    """

    runs: Path
    options: dict[str, Any]
    weights_dir: str | None

    def trained(self, network: str, agent: str, seed: int) -> TrainingConfig:
        """A search from nothing."""
        return TrainingConfig(
            env_id=_env_id(network),
            agent=agent,
            seed=seed,
            weights=self._weights(network),
            **self.options,
        )

    def transferred(
        self, source: Path, network: str, seed: int, freeze: bool = False, zero_shot: bool = False
    ) -> TransferConfig:
        """A search that begins with the agent of a run."""
        return transfer_config(
            source,
            _env_id(network),
            freeze,
            zero_shot,
            seed=seed,
            weights=self._weights(network),
        )

    def folder(self, network: str, agent: str, method: str, seed: int) -> Path:
        """The run folder of a search."""
        return self.runs / f"{network}-{agent}-{method.replace(' ', '-')}-seed{seed}"

    def _weights(self, network: str) -> str | None:
        return None if self.weights_dir is None else str(find_weights(self.weights_dir, network))


def _env_id(network: str) -> str:
    return f"JointPruneQuant-{NETWORKS[network].title}-v0"


def carry_out(config: TrainingConfig, folder: Path, console: Console) -> tuple[Row, list[Row]]:
    """Run a search, go on with it, or read it.

    Returns:
        The row of the results, without the name of the method, and its curve likewise.

    Raises:
        ValueError: the folder holds a run with other options.
    """
    run = RunFolder(folder)
    if not run.report.exists():
        resume, path = run.config.exists(), str(folder)
        search = (
            open_transfer(config, path, resume)
            if isinstance(config, TransferConfig)
            else open_run(config, path, resume)
        )
        console.print(f"[bold]{folder.name}")
        with search_progress(console, config.budget) as show:
            search.run(show)
    result = read_result(run, config)
    if result is None:
        raise ValueError(f"runs: {folder} holds a run with other options; name other --runs")
    common = {"network": result.row["network"], "agent": config.agent, "seed": config.seed}
    row = {**result.row, **common, "command": config.command()}
    return row, [{**point, **common} for point in proposed(run.episodes)]


def proposed(episodes: Path) -> list[Row]:
    """Mean accuracy of the plans of every whole block of evaluations, by `episodes.csv`.

    The first evaluation is of the base plan, whoever searches, and is left out.
    """
    with episodes.open(newline="") as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file) if row["accuracy"]][1:]
    return [
        {
            "evaluations": end,
            "mean_search_accuracy": statistics.fmean(accuracies[end - _BLOCK : end]),
        }
        for end in range(_BLOCK, len(accuracies) + 1, _BLOCK)
    ]


def measure(experiment: Experiment, seeds: int, console: Console) -> tuple[list[Row], list[Row]]:
    """All searches: their rows and their curves."""
    rows: list[Row] = []
    curves: list[Row] = []

    def note(config: TrainingConfig, method: str, seed: int) -> Path:
        network = config.env_id.split("-", 1)[1].removesuffix("-v0").replace("-", "").lower()
        folder = experiment.folder(network, config.agent, method, seed)
        row, curve = carry_out(config, folder, console)
        rows.append({**row, "method": method})
        curves.extend({**point, "method": method} for point in curve)
        return folder

    for seed in range(seeds):
        for agent in AGENTS:
            source = note(experiment.trained(FROM, agent, seed), SCRATCH, seed)
            note(experiment.trained(TO, agent, seed), SCRATCH, seed)
            note(experiment.transferred(source, TO, seed), WHOLE, seed)
            note(experiment.transferred(source, TO, seed, freeze=True), FROZEN, seed)
        small = note(experiment.trained(SMALL, "ppo-node", seed), SCRATCH, seed)
        for network in DEEPER:
            note(experiment.transferred(small, network, seed, zero_shot=True), ZERO_SHOT, seed)
    return rows, curves


def section(rows: list[Row], curves: list[Row], command: str, picture: str) -> str:
    """The two tables, in Markdown."""
    evaluations = max(int(row["evaluations"]) for row in rows)
    seeds = len({row["seed"] for row in rows})
    blocks = sorted({point["evaluations"] for point in curves if point["network"] == TO})
    marks = [blocks[0], blocks[len(blocks) // 2], blocks[-1]]
    lines = []
    for agent in AGENTS:
        for method in (SCRATCH, WHOLE, FROZEN):
            key = (TO, agent, method)
            own = [c for c in curves if _key(c) == key]
            best = [row["search_accuracy"] for row in rows if _key(row) == key]
            means = (_spread(_at(own, mark)) for mark in marks)
            lines.append((agent, method, *means, _spread(best)))
    heads = (f"mean of plans {mark - _BLOCK + 1} to {mark}" for mark in marks)
    first = markdown_table(("agent", f"{TO} after {FROM}", *heads, "best plan"), lines)
    zero = []
    for network in DEEPER:
        own = [r for r in rows if r["network"] == network and r["method"] == ZERO_SHOT]
        zero.append(
            (
                network,
                f"{own[0]['dense_search_accuracy']:.2%}",
                f"{own[0]['uniform_search_accuracy']:.2%}",
                _spread([row["search_accuracy"] for row in own]),
            )
        )
    second = markdown_table(("network", "dense", "uniform bits", "zero-shot"), zero)
    return (
        f"Made by `{command}`: {seeds} seeds, {evaluations} evaluations per search, "
        f"{rows[0]['target_reduction']:.1%} fewer BOPs; search accuracy, median (lowest to "
        f"highest).\n\n{first}\n![what the agents propose]({picture})\n\nPlans that the `ppo-node` "
        f"agent of a search on {SMALL} proposes without training and without noise, one "
        f"evaluation each:\n\n{second}"
    )


def _key(row: Row) -> tuple[str, str, str]:
    return row["network"], row["agent"], row["method"]


def _at(curve: list[Row], evaluations: int) -> list[float]:
    """The means of the block that ends there, of all seeds."""
    return [p["mean_search_accuracy"] for p in curve if p["evaluations"] == evaluations]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2%} ({min(values):.2%} to {max(values):.2%})"


def main() -> None:
    """Measure, and write the files."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=300, help="of every search")
    parser.add_argument("--target-reduction", type=float, default=0.991)
    parser.add_argument("--dataset", help="instead of the digits")
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--weights-dir", help="folder of the dense checkpoints")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="run folders")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="the file of the rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write into")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {given.seeds}")
    if given.evaluations <= 2 * _BLOCK:
        parser.error(f"--evaluations must be above {2 * _BLOCK}, not {given.evaluations}")
    options = {"evaluations": given.evaluations, "target_reduction": given.target_reduction}
    words = [COMMAND]
    defaults = {"seeds": 3, "evaluations": 300, "target_reduction": 0.991}
    words += [
        f"--{name.replace('_', '-')} {getattr(given, name)}"
        for name, default in defaults.items()
        if getattr(given, name) != default
    ]
    if given.dataset is not None:
        options |= {"dataset": given.dataset, "data_root": given.data_root}
        words += [f"--dataset {given.dataset} --data-root cifar10 --weights-dir weights"]
    experiment = Experiment(given.runs, options, given.weights_dir)
    try:
        rows, curves = measure(experiment, given.seeds, Console())
    except ValueError as error:
        parser.error(str(error))
    given.csv.parent.mkdir(parents=True, exist_ok=True)
    write_csv(given.csv, _COLUMNS, rows)
    write_csv(given.csv.with_name(f"{given.csv.stem}_curves.csv"), _CURVE_COLUMNS, curves)
    picture = given.page.with_name("transfer-curves.svg")
    curves_figure([c for c in curves if c["network"] == TO], picture)
    replace_section(given.page, SECTION, section(rows, curves, " ".join(words), picture.name))
    print(f"Written to {given.csv} and {given.page}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. Go on with the same command.") from None
