"""The papers' table: what is left of the accuracy at their reductions, with what they report.

    python -m benchmarks.papers --data-root cifar10 --weights-dir weights

searches a plan for every row that needs one, trains its network and measures it on the test images;
rows, searches and trainings that were finished or interrupted are gone on with. Plans that were
found are kept in `benchmarks/results/plans` and trained from there; `--plans FOLDER` with an empty
folder searches them again. Without `--data-root` it only makes `docs/results.md` anew from
`benchmarks/results/papers.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_figures import write_curves, write_differences
from benchmarks.paper_rows import CURVES, LATENCIES, NUMBERS, PLANS, RESULTS, ROWS, PaperRow
from benchmarks.paper_tables import results_page
from compress_agents.config import TrainingConfig
from compress_agents.runs import RunFolder, write_atomically
from compress_agents.training import open_run
from compress_env import CompressionPlan
from compress_env.compressed_file import COMPRESSED_FILE, FINETUNED_FOLDER, load_compressed
from compress_env.evaluation import Evaluation, evaluate_network
from compress_env.finetune import CURVE_FILE, finetune
from compress_env.task import CompressionTask

COMMAND = "python -m benchmarks.papers"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Source:
    """Where the images and the dense weights lie, and where runs and plans are kept."""

    data_root: str
    weights_dir: Path
    runs: Path
    plans: Path = PLANS

    def weights(self, row: PaperRow) -> str:
        """File of a row's dense weights."""
        found = sorted(self.weights_dir.glob(f"{row.network}-*"))
        if not found:
            raise ValueError(f"weights_dir: there is no {row.network}-* in {self.weights_dir}")
        return str(found[0])

    def config(self, row: PaperRow) -> TrainingConfig:
        """Options of a row's search; those of uniform bits, where it has none."""
        common: dict[str, Any] = {
            "env_id": row.env_id,
            "dataset": "imagefolder",
            "data_root": self.data_root,
            "weights": self.weights(row),
            "target_reduction": row.target_reduction or 0.9636,
            "seed": row.seed,
        }
        if row.search is None:
            return TrainingConfig(agent="uniform", **common)
        return TrainingConfig(**common, **row.search)

    def task(self, row: PaperRow) -> CompressionTask:
        """The task of a row, the same for its search and its training."""
        return CompressionTask(
            row.network, "imagefolder", data_root=self.data_root, weights=self.weights(row)
        )


def find_plan(
    row: PaperRow, source: Source, task: CompressionTask, folder: Path
) -> CompressionPlan:
    """The plan of a row: told by its bits, the one kept in `PLANS`, or searched and then kept."""
    if row.bits is not None:
        return row.uniform_plan(task.graph)
    kept = source.plans / f"{row.name}.json"
    if not kept.exists():
        run = RunFolder(folder)
        if not run.report.exists():
            open_run(source.config(row), str(folder), run.config.exists()).run()
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, run.best_plan.read_bytes())
    return CompressionPlan.load(kept, task.graph, row.network)


def carry_out(row: PaperRow, source: Source) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search, train and measure a row, as far as that has not been done.

    Returns:
        The row of the CSV file, and the curve of its training.
    """
    folder = source.runs / row.name
    task = source.task(row)
    plan = find_plan(row, source, task, folder)
    out = folder / FINETUNED_FOLDER
    told = {"command": row.command()}
    results = finetune(task, plan, row.options, out, resume=True, metadata=told)
    curve = json.loads((out / CURVE_FILE).read_text())["curve"]
    test = task.splits.test
    ours = _right(evaluate_network(load_compressed(out), test, task.splits))
    dense = _right(evaluate_network(task.network, test, task.splits))
    cost, whole = task.complexity(plan), task.costs.dense
    return {
        "network": row.network,
        "method": row.method,
        "target_reduction": row.target_reduction or "",
        "reduction": round(1 - cost.bops / whole.bops, 6),
        "macs_reduction": round(1 - cost.macs / whole.macs, 6),
        "test_accuracy": round(float(ours.float().mean()), 6),
        "dense_test_accuracy": round(float(dense.float().mean()), 6),
        "num_test_images": len(ours),
        "epochs": round(results["epochs"], 3),
        "seed": row.seed,
        "command": row.command(),
        "search_accuracy_before": round(results["search_accuracy_before"], 6),
        "search_accuracy": round(results["search_accuracy"], 6),
        "dense_search_accuracy": round(results["dense_search_accuracy"], 6),
        "test_accuracy_before": round(results["test_accuracy_before"], 6),
        "only_compressed_right": int((ours & ~dense).sum()),
        "only_dense_right": int((dense & ~ours).sum()),
        "file_bytes": (out / COMPRESSED_FILE).stat().st_size,
        "note": results["stopped"],
    }, curve


def _right(evaluation: Evaluation) -> torch.Tensor:
    return evaluation.logits.argmax(1) == evaluation.labels


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file as they stand there; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def with_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with numbers as numbers."""
    return [{k: float(v) if k in NUMBERS and v else v for k, v in row.items()} for row in rows]


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows of equal columns, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def _latencies(csv_file: Path) -> dict[str, Any]:
    """What is known of latencies, by the name of a row: files beside that of the rows."""
    folder = csv_file.with_name(LATENCIES)
    return {
        row.name: json.loads(file.read_text())
        for row in ROWS
        if (file := folder / f"{row.name}.json").exists()
    }


def _replace(
    known: list[dict[str, Any]], row: PaperRow, new: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows with those of one paper row replaced, in the order of the table."""
    order = {(r.network, r.method, str(r.target_reduction or "")): i for i, r in enumerate(ROWS)}

    def key(entry: dict[str, Any]) -> tuple[str, str, str]:
        return entry["network"], entry["method"], str(entry["target_reduction"])

    own = (row.network, row.method, str(row.target_reduction or ""))
    others = [entry for entry in known if key(entry) != own]
    return sorted([*others, *new], key=lambda entry: order.get(key(entry), len(order)))


def chosen_rows(name: str) -> list[PaperRow]:
    """The row of a name, or all rows that have it in theirs."""
    return [row for row in ROWS if row.name == name] or [row for row in ROWS if name in row.name]


def main() -> None:
    """Carry out what is asked for, and write the page."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data-root", help="folder with train/, val/ and test/ of CIFAR-10")
    parser.add_argument("--weights-dir", type=Path, help="folder of the dense checkpoints")
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"), help="run folders")
    parser.add_argument("--plans", type=Path, default=PLANS, help="plans found before")
    parser.add_argument("--only", default="", help="rows whose name holds this; see --list")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="the file of the rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    arguments = parser.parse_args()
    chosen = chosen_rows(arguments.only)
    if arguments.list:
        print("\n".join(row.name for row in chosen))
        return
    curves_file = arguments.csv.with_name(CURVES)
    if arguments.data_root is not None:
        if arguments.weights_dir is None:
            parser.error("--weights-dir is needed beside --data-root")
        if not chosen:
            parser.error(f"--only {arguments.only}: no row has that in its name; see --list")
        source = Source(arguments.data_root, arguments.weights_dir, arguments.runs, arguments.plans)
        for row in chosen:
            print(f"== {row.name}")
            try:
                entry, curve = carry_out(row, source)
            except ValueError as error:
                parser.error(str(error))
            write_rows(_replace(read_rows(arguments.csv), row, [entry]), arguments.csv)
            named = [
                {
                    "network": row.network,
                    "method": row.method,
                    "target_reduction": row.target_reduction or "",
                    **point,
                }
                for point in curve
            ]
            write_rows(_replace(read_rows(curves_file), row, named), curves_file)
    rows = with_numbers(read_rows(arguments.csv))
    if not rows:
        parser.error(f"{arguments.csv} has no rows yet: give --data-root and --weights-dir")
    curves, differences = (
        arguments.page.with_name(f"results-{name}.svg") for name in ("curves", "differences")
    )
    write_curves(with_numbers(read_rows(curves_file)), curves)
    write_differences(rows, differences)
    page = results_page(rows, curves.name, differences.name, _latencies(arguments.csv))
    write_atomically(arguments.page, page.encode())
    print(f"Written to {arguments.page}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. Go on with the same command.") from None
