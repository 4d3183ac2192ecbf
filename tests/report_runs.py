"""Run folders to make pages of."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

from typer.testing import CliRunner

from compress_agents.cli import app
from compress_env import CompressionPlan
from compress_env.finetune import FinetuneOptions, finetune
from compress_env.task import CompressionTask

HOSTILE = "<img src=x onerror=\"window.hacked='yes'\">&'\""
"""What somebody might call a folder."""


@lru_cache
def make_runs(folder: Path) -> tuple[Path, Path]:
    """A run with a fine-tuning and latencies, and one that has neither; once for every process."""
    searched, plain = folder / "searched", folder / "plain"
    words = ["baseline", "--method", "random", "--evaluations", "25", "--search-images", "64"]
    words += ["--target-reduction", "0.984", "--calibration-images", "64"]
    result = CliRunner().invoke(app, [*words, "--run-dir", str(searched)])
    assert result.exit_code == 0, result.output
    shutil.copytree(searched, plain)
    task = CompressionTask(search_images=64, calibration_images=64)
    finetune(
        task,
        CompressionPlan.load(searched / "best_plan.json", task.graph),
        FinetuneOptions(steps=4, batch_size=32, checkpoint_steps=2),
        searched / "finetuned",
        metadata={"command": "compress-agents finetune it --steps 4"},
    )
    rows = [
        {"file": "dense", "engine": "onnxruntime", "batch_size": 1, "milliseconds": 3.25},
        {"file": "small", "engine": "onnxruntime", "batch_size": 1, "milliseconds": 1.5},
    ]
    latency = {
        "command": "compress-agents latency it --threads 2",
        "rows": rows,
        "threads": 2,
        "versions": {"onnxruntime": "1.0"},
    }
    (searched / "latency.json").write_text(json.dumps(latency))
    return searched, plain


def hostile_copy(run: Path, folder: Path) -> Path:
    """A copy of a run in which every text that can be chosen is markup."""
    copy = folder / HOSTILE
    shutil.copytree(run, copy)
    texts = {
        "report.json": ("dataset", "method", "command"),
        "config.json": ("weights", "importance", "reward"),
        "finetuned/finetune.json": (),
    }
    for name, keys in texts.items():
        data = json.loads((copy / name).read_text())
        data.update(dict.fromkeys(keys, HOSTILE))
        if "versions" in data:
            data["versions"] = {HOSTILE: HOSTILE}
        if "results" in data:
            data["results"]["stopped"] = HOSTILE
        (copy / name).write_text(json.dumps(data))
    rows = [{"file": HOSTILE, HOSTILE: HOSTILE, "milliseconds": HOSTILE, "ratio": None}]
    (copy / "latency.json").write_text(
        json.dumps({"command": HOSTILE, "rows": rows, "versions": {HOSTILE: 1}})
    )
    return copy
