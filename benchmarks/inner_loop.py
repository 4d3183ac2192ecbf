r"""How long one evaluation of a plan takes, beside what it could be compared with.

For every network and plan, medians over rounds in one process on one machine, in which all are run
in turn:

1. peer: masks instead of removal, fake-quantize operations on weights and activations, eager, NCHW,
   batch 250 - how published code evaluates a plan;
2. ours: the fast engine, running a plan that it has prepared. Preparing one (remove channels,
   re-estimate BatchNorm, find ranges, quantize) is counted separately, and a whole evaluation of a
   plan never seen before is the third time of ours;
3. float floor: a plain float32 forward pass of the same pruned, BatchNorm-folded network,
   channels-last, at its best batch size;
4. the same plan exported to ONNX and run in int8 by ONNX Runtime and OpenVINO (`--sessions`); what
   it takes to create their sessions is counted separately, and what it takes to export is not.

Random images and weights will do for the times; real ones are wanted for the agreement:

    python -m benchmarks.inner_loop --sessions --data-root cifar10 --weights-dir weights \
        --markdown docs/speed.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.peer_network import PeerNetwork
from benchmarks.subjects import (
    Subject,
    float_floor,
    load_subject,
    random_network,
    uniform_plan,
)
from benchmarks.tables import machine, markdown_table, replace_section
from benchmarks.timing import interleaved_seconds
from compress_agents.runs import write_json
from compress_env.compression import compress
from compress_env.data import load_splits
from compress_env.env import JointPruneQuantEnv
from compress_env.evaluation import Evaluation, FastEngine, ReferenceEngine
from compress_env.latency.engines import available_cores
from compress_env.networks import NETWORKS
from compress_env.plan import CompressionPlan

COMMAND = "python -m benchmarks.inner_loop"
SECTION = "inner_loop"

PLANS = (("W8A8", 8, 1.0), ("W6A6, 30% gone", 6, 0.7), ("W4A4, 50% gone", 4, 0.5))
FLOAT_BATCHES = (50, 100, 125, 250, 500)
PEER_BATCH = 250
SESSION_BATCH = 100
OVERHEAD_NETWORKS = ("resnet20", "resnet110")
OVERHEAD_STEPS = 100
_TIMES = ("peer", "ours", "new_plan", "float_floor")


def in_batches(network: Callable[[torch.Tensor], Any], images: torch.Tensor, size: int) -> None:
    """Run a network over images, keeping nothing."""
    with torch.inference_mode():
        for batch in images.split(size):
            network(batch)


def prepare_new(engine: FastEngine, plan: CompressionPlan) -> None:
    """Build, calibrate and quantize a plan of which nothing was seen before."""
    engine.forget()
    engine.prepare(plan)


def evaluate_new(engine: FastEngine, plan: CompressionPlan, images: torch.Tensor) -> None:
    """Evaluate a plan of which nothing was seen before."""
    engine.forget()
    engine.logits(plan, images)


def run_all(run: Callable[[Any], object], batches: list[np.ndarray]) -> None:
    """Run a session over batches, keeping nothing."""
    for batch in batches:
        run(batch)


def float_batch(network: Callable[[torch.Tensor], Any], images: torch.Tensor, rounds: int) -> int:
    """The batch size at which a network is fastest."""
    times = interleaved_seconds(
        {str(size): partial(in_batches, network, images, size) for size in FLOAT_BATCHES}, rounds
    )
    return int(min(times, key=times.__getitem__))


def sessions_of(
    subject: Subject, plan: CompressionPlan, folder: Path
) -> tuple[dict[str, float], dict[str, Callable[[], object]]]:
    """The plan in the other engines that are installed: seconds to create, and what to run."""
    from compress_env.export import export_onnx  # noqa: PLC0415  (an extra)
    from compress_env.latency import int8_sessions  # noqa: PLC0415

    path = folder / "plan.onnx"
    network = compress(subject.graph, plan, subject.calibration)
    export_onnx(network, tuple(subject.images.shape[1:]), path)
    whole = len(subject.images) // SESSION_BATCH * SESSION_BATCH
    batches = [np.ascontiguousarray(part) for part in subject.images[:whole].split(SESSION_BATCH)]
    creation: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {}
    threads = torch.get_num_threads()
    for engine, (seconds, run) in int8_sessions(path, SESSION_BATCH, threads).items():
        creation[f"{engine}_creation_seconds"] = seconds
        runs[engine] = partial(run_all, run, batches)
    return creation, runs


def measure_plan(
    subject: Subject, label: str, plan: CompressionPlan, repeats: int, sessions: bool
) -> dict[str, Any]:
    """The row of one plan, without the overhead of a step."""
    fast = FastEngine(subject.graph, subject.calibration)
    reference = ReferenceEngine(subject.graph, subject.calibration)
    images, plain = subject.images, subject.images.contiguous()
    floor = float_floor(subject.graph, plan)
    batch = float_batch(floor, images, max(1, repeats // 2))
    peer = PeerNetwork(subject.graph, plan, subject.calibration)
    forgetful = FastEngine(subject.graph, subject.calibration)
    runs: dict[str, Callable[[], object]] = {
        "peer": partial(in_batches, peer, plain, PEER_BATCH),
        "ours": partial(fast.logits, plan, images),
        "float_floor": partial(in_batches, floor, images, batch),
        "new_plan": partial(evaluate_new, forgetful, plan, images),
        "prepare": partial(prepare_new, forgetful, plan),
    }
    with tempfile.TemporaryDirectory() as folder:
        creation, others = sessions_of(subject, plan, Path(folder)) if sessions else ({}, {})
        seconds = interleaved_seconds({**runs, **others}, repeats)
    same = fast.logits(plan, images).argmax(1) == reference.logits(plan, images).argmax(1)
    return {
        "network": subject.name,
        "plan": label,
        "images": len(images),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **creation,
        "float_floor_batch": batch,
        "peer_over_ours": seconds["peer"] / seconds["ours"],
        "peer_over_new_plan": seconds["peer"] / seconds["new_plan"],
        "floor_over_ours": seconds["float_floor"] / seconds["ours"],
        "prepare_share": seconds["prepare"] / seconds["ours"],
        "agreement": float(same.double().mean()),
        "threads": torch.get_num_threads(),
    }


def step_overhead(network: str, repeats: int = OVERHEAD_STEPS) -> float:
    """Median seconds of `step` with an evaluator that answers at once, the observation included."""
    env = JointPruneQuantEnv(
        random_network(network), load_splits("digits"), target_reduction=0.98, search_images=64
    )
    answer = Evaluation(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
    env.task.evaluator.evaluate = lambda plan: answer  # type: ignore[method-assign]
    env.task.__dict__["dense_evaluation"] = answer
    shape = env.action_space.shape
    assert shape is not None
    times = []
    for action in np.random.default_rng(0).normal(0, 0.3, (repeats, *shape)).astype(np.float32):
        env.reset()
        start = time.perf_counter()
        env.step(action)
        times.append(time.perf_counter() - start)
    return median(times)


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Times and ratios."""
    head = (
        "network", "plan", "peers, ms", "ours, ms", "new plan, ms", "float32, ms",
        "peers / ours", "peers / new plan", "float32 / ours", "prepare / ours", "agreement",
    )  # fmt: skip
    lines = [
        (
            row["network"],
            row["plan"],
            *(f"{1e3 * row[f'{name}_seconds']:.0f}" for name in _TIMES),
            f"{row['peer_over_ours']:.1f}",
            f"{row['peer_over_new_plan']:.1f}",
            f"{row['floor_over_ours']:.2f}",
            f"{row['prepare_share']:.0%}",
            f"{row['agreement']:.2%}",
        )
        for row in rows
    ]
    return markdown_table(head, lines)


def session_table(rows: list[dict[str, Any]]) -> str:
    """The other engines; empty where none was measured."""
    engines = [name for name in ("onnxruntime", "openvino") if f"{name}_seconds" in rows[0]]
    if not engines:
        return ""
    head = ["network", "plan", "ours, ms"]
    head += [f"{name}{what}, ms" for name in engines for what in ("", " session")]
    lines = []
    for row in rows:
        keys = ["ours_seconds"]
        keys += [f"{name}{what}_seconds" for name in engines for what in ("", "_creation")]
        lines.append([row["network"], row["plan"], *(f"{1e3 * row[key]:.0f}" for key in keys)])
    return markdown_table(head, lines)


def overhead_table(overhead: dict[str, float]) -> str:
    """What a step takes beside the evaluation."""
    lines = [(name, f"{1e3 * seconds:.2f}") for name, seconds in overhead.items()]
    return markdown_table(("network", "step without evaluation, ms"), lines)


def section(rows: list[dict[str, Any]], overhead: dict[str, float], repeats: int) -> str:
    """The part of the page that this benchmark makes."""
    parts = [
        f"Made by `{COMMAND}` with {machine()}; {rows[0]['images']} images of 32x32, "
        f"{rows[0]['threads']} threads, medians of {repeats} rounds.",
        speed_table(rows),
        session_table(rows),
        overhead_table(overhead),
    ]
    return "\n\n".join(part.strip() for part in parts if part)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["resnet20", "resnet56"],
        choices=NETWORKS,
        metavar="NAME",
        help="default resnet20 resnet56",
    )
    parser.add_argument("--images", type=int, default=1000, help="to evaluate (default 1000)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--data-root", help="real CIFAR-10 as image folders")
    parser.add_argument("--weights-dir", help="folder with the published checkpoints")
    parser.add_argument("--sessions", action="store_true", help="also ONNX Runtime and OpenVINO")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: all cores")
    parser.add_argument("--json", type=Path, help="file for the rows", metavar="FILE")
    parser.add_argument("--markdown", type=Path, help="page for the tables", metavar="FILE")
    options = parser.parse_args(given)
    for name in ("images", "repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.sessions and options.images < SESSION_BATCH:
        parser.error(f"--images must be at least {SESSION_BATCH} with --sessions")
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"--json must name a file in an existing folder, not {options.json}")
    if options.markdown and not options.markdown.is_file():
        parser.error(f"--markdown must name an existing page, not {options.markdown}")
    try:
        options.subjects = [
            load_subject(name, options.images, options.data_root, options.weights_dir)
            for name in options.networks
        ]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return options


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    options = _arguments(given)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    overhead: dict[str, float] = {}
    for subject in options.subjects:
        for label, bits, keep in PLANS:
            plan = uniform_plan(subject, bits, keep)
            rows.append(measure_plan(subject, label, plan, options.repeats, options.sessions))
            print(speed_table(rows[-1:]), flush=True)
    for name in dict.fromkeys([*options.networks, *OVERHEAD_NETWORKS]):
        overhead[name] = step_overhead(name)
    for row in rows:
        row["step_overhead_seconds"] = overhead[row["network"]]
    text = section(rows, overhead, options.repeats)
    print(f"\n{text}")
    if options.json:
        write_json(options.json, rows)
    if options.markdown:
        replace_section(options.markdown, SECTION, text)


if __name__ == "__main__":
    main()
