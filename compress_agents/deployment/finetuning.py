"""Fine-tuning the plan of a run in a folder beside it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.table import Table

from compress_agents.command_line.options import command_line
from compress_agents.config import to_json
from compress_agents.deployment import BEST, CONFIG_ENTRY, find_run
from compress_env.compressed_file import COMPRESSED_FILE, FINETUNED_FOLDER
from compress_env.evaluation import evaluate_network
from compress_env.finetune import CHECKPOINT_FILE, finetune
from compress_env.finetune_options import FinetuneOptions

__all__ = ["Finetuning", "finetuning_table"]


class Finetuning:
    """A fine-tuning of a run's plan, prepared but not begun.

    Args:
        run: the run folder.
        options: how to train.
        plan: `"best"`, `"uniform"`, or the file of a plan.
        out: folder of the result; None: `finetuned` in the run folder for the best plan, else
            `finetuned-<plan>`.
        data_root: folder of the data set, if it is not where the run found it.
        device: where to train, if not where the run searched.
        resume: go on from an interrupted training.

    Raises:
        ValueError: an argument is not allowed, or there is already what must not be overwritten.
    """

    def __init__(
        self,
        run: Path,
        options: FinetuneOptions,
        plan: str = BEST,
        out: Path | None = None,
        data_root: str | None = None,
        device: str | None = None,
        resume: bool = False,
    ) -> None:
        found = find_run(run).moved(data_root, device)
        name = FINETUNED_FOLDER if plan == BEST else f"{FINETUNED_FOLDER}-{Path(plan).stem}"
        self.folder = found.folder / name if out is None else out.expanduser()
        moved = {"plan": plan, "out": out, "data_root": data_root, "device": device}
        self.command = _command(run, options, moved)
        self.options, self.resume = options, resume
        self._check_folder()
        self.task = found.task()
        self.plan = found.plan(plan, self.task)
        self._config = json.dumps(to_json(found.config), separators=(",", ":"))

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is no folder")
        if self.resume:
            return
        for name, what in (
            (CHECKPOINT_FILE, "an interrupted training"),
            (COMPRESSED_FILE, "a trained network"),
        ):
            if (self.folder / name).exists():
                raise ValueError(
                    f"out: {self.folder} holds {what}; add --resume to go on with it, or name "
                    "another --out"
                )

    def run(self) -> dict[str, Any]:
        """Train, and write `compressed.safetensors` and `finetune.json`.

        Returns:
            What `compress_env.finetune.finetune` gives, with `dense_test_accuracy`, `file_bytes`
            and `dense_bytes` (of float32 parameters).

        Raises:
            ValueError: the folder holds another training, or another process is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the results say it, in `stopped`
            results = finetune(
                self.task,
                self.plan,
                self.options,
                self.folder,
                self.resume,
                metadata={"command": self.command, CONFIG_ENTRY: self._config},
            )
        splits, network = self.task.splits, self.task.network
        return {
            **results,
            "dense_test_accuracy": evaluate_network(network, splits.test, splits).accuracy,
            "num_search_images": len(self.task.search.labels),
            "num_test_images": len(splits.test),
            "file_bytes": (self.folder / COMPRESSED_FILE).stat().st_size,
            "dense_bytes": 4 * self.task.costs.dense.params,
        }

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"out: another process is at work in {self.folder}") from error
        try:
            yield
        finally:
            lock.release()


def _command(run: Path, options: FinetuneOptions, more: dict[str, Any]) -> str:
    """The command line; what has its default is left out."""
    values = {entry.name: getattr(options, entry.name) for entry in fields(options)}
    defaults = {entry.name: entry.default for entry in fields(options)}
    defaults["plan"] = BEST
    return command_line("compress-agents finetune", {**values, **more}, defaults, str(run))


def finetuning_table(results: dict[str, Any], title: str) -> Table:
    """The figures of a fine-tuning, for the terminal.

    Args:
        results: what `Finetuning.run` returned.
        title: above the table.
    """
    table = Table(title=title, title_justify="left")
    for name in ("", "dense", "before", "after"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for split in ("search", "test"):
        table.add_row(
            f"{split} accuracy ({results[f'num_{split}_images']} images)",
            f"{results[f'dense_{split}_accuracy']:.2%}",
            f"{results[f'{split}_accuracy_before']:.2%}",
            f"{results[f'{split}_accuracy']:.2%}",
        )
    table.add_row("BOPs reduction", "", "", f"{results['reduction']:.2%}")
    dense, small = results["dense_bytes"] / 1024, results["file_bytes"] / 1024
    table.add_row("size", f"{dense:.1f} KiB", "", f"{small:.1f} KiB")
    table.caption = (
        f"{results['steps']} steps, {results['epochs']:.1f} epochs, "
        f"{results['wall_seconds']:.0f} s, {results['images_per_second']:.0f} images/s"
    )
    table.caption_justify = "left"
    return table
