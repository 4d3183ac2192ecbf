"""Memory of a search, measured in a process of its own: its peak, and whether steps make it grow.

    python -m benchmarks.memory growth --steps 100000

Steps of the environment for ResNet-20 on the digits, whose evaluations are answered at once but for
every 20th, so that every cache comes to its limit in reasonable time. It prints the resident memory
at ten points. (`peak CONFIG` is what `benchmarks.scaling` starts.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.searches import timed_search
from benchmarks.timing import fit_line
from compress_agents.config import TrainingConfig, from_json, to_json
from compress_env.env import JointPruneQuantEnv
from compress_env.evaluation import FastEngine
from compress_env.latency.engines import own_peak_memory
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan
from compress_env.task import EngineFactory

__all__ = [
    "MemoryPoint",
    "growth",
    "growth_per_step",
    "measured_growth",
    "peak_of_search",
    "resident_bytes",
]

COMMAND = "python -m benchmarks.memory"
_REAL_EVERY = 20
_POINTS = 10


@dataclass(frozen=True)
class MemoryPoint:
    """Resident memory of this process after a number of steps."""

    steps: int
    resident_bytes: int


class SampledEngine:
    """The fast engine for one evaluation in many, and outputs of zero for the others.

    Args:
        graph: layer graph of the dense network.
        calibration_images: float32 (images, channels, height, width), normalised.
        cache_bytes: see `FastEngine`.
    """

    def __init__(
        self, graph: LayerGraph, calibration_images: torch.Tensor, cache_bytes: int = 1 << 27
    ) -> None:
        self._fast = FastEngine(graph, calibration_images, cache_bytes=cache_bytes)
        self._numbers = count()
        self._classes = graph.layers[-1].out_channels

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs, float32 (images, classes)."""
        if next(self._numbers) % _REAL_EVERY == 0:
            return self._fast.logits(plan, images)
        return torch.zeros(len(images), self._classes)


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def growth(
    steps: int, points: int = _POINTS, engine: EngineFactory = SampledEngine
) -> list[MemoryPoint]:
    """Take steps with actions of all kinds, and look at the memory now and then.

    Args:
        steps: in all, at least `points`.
        points: how often to look, evenly spaced.
        engine: what answers for plans.
    """
    env = JointPruneQuantEnv(engine=engine)
    shape = env.action_space.shape
    generator = np.random.default_rng(0)
    found: list[MemoryPoint] = []
    for point in range(1, points + 1):
        target = steps * point // points
        for _ in range(target - (found[-1].steps if found else 0)):
            env.reset()
            env.step(generator.normal(0, 0.3, shape).astype(np.float32))
        found.append(MemoryPoint(target, resident_bytes()))
    return found


def growth_per_step(found: list[MemoryPoint]) -> float:
    """Bytes per step over the second half, when caches have come to their limits."""
    late = found[len(found) // 2 :]
    return fit_line([p.steps for p in late], [p.resident_bytes for p in late]).slope


def peak_of_search(config: TrainingConfig) -> int:
    """Peak memory in bytes of a process that runs a search, its report included.

    Raises:
        RuntimeError: it failed.
    """
    return int(_in_process("peak", json.dumps(to_json(config)))["peak_bytes"])


def measured_growth(steps: int) -> list[MemoryPoint]:
    """What `growth` finds in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    found = _in_process("growth", "--steps", str(steps))
    return [MemoryPoint(*point) for point in found["points"]]


def _in_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, *arguments]
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed, as it says above")
    last: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return last


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("growth", "peak"))
    parser.add_argument("config", nargs="?", help="options of a search as JSON, for peak")
    parser.add_argument("--steps", type=int, default=100_000, help="for growth (default 100000)")
    options = parser.parse_args(given)
    if options.what == "peak":
        if not options.config:
            parser.error("peak takes the options of a search as JSON")
        config = from_json(json.loads(options.config))
        assert isinstance(config, TrainingConfig)
        with tempfile.TemporaryDirectory() as folder:
            timed_search(config, Path(folder) / "run")
        print(json.dumps({"peak_bytes": own_peak_memory()}))
        return
    if options.steps < _POINTS:
        parser.error(f"--steps must be at least {_POINTS}")
    torch.set_num_threads(1)
    found = growth(options.steps)
    for point in found:
        print(f"{point.steps:>8} steps {point.resident_bytes / 2**20:7.1f} MiB")
    print(f"growth over the second half: {growth_per_step(found):.1f} bytes per step")
    print(json.dumps({"points": [[point.steps, point.resident_bytes] for point in found]}))


if __name__ == "__main__":
    main()
