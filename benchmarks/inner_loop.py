"""How long one evaluation of a plan takes, beside what it could be compared with.

For every network and plan, medians over repeats in one process on one machine:

1. peer: masks instead of removal, fake-quantize operations on weights and activations, eager, NCHW,
   batch 250 - how published code evaluates a plan;
2. ours: the fast engine;
3. float floor: a plain float32 forward pass of the same pruned, BatchNorm-folded network,
   channels-last, at its best batch size;
4. the same plan exported to ONNX and run in int8 by ONNX Runtime and OpenVINO (`--sessions`).

Usage: python -m benchmarks.inner_loop [--json FILE] [--sessions]
           [--data-root DIR --weights-dir DIR]
Random images and weights will do for the time; real ones are wanted for the agreement.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peer_network import PeerNetwork
from compress_env.calibration import BatchNorm
from compress_env.compression import compress, norm_as_affine
from compress_env.data import load_splits, normalize
from compress_env.env import JointPruneQuantEnv
from compress_env.evaluation import Evaluation, FastEngine, ReferenceEngine
from compress_env.importance import l1, rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import build_network
from compress_env.networks.weights import load_weights
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune

PLANS = (("W8A8", 8, 1.0), ("W6A6-30%", 6, 0.7), ("W4A4-50%", 4, 0.5))
FLOAT_BATCHES = (50, 100, 125, 250, 500)
PEER_BATCH = 250
CALIBRATION_IMAGES = 128  # the environment's default


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def in_batches(network: Callable[[torch.Tensor], Any], images: torch.Tensor, size: int) -> None:
    """Run a network over images, keeping nothing."""
    with torch.inference_mode():
        for batch in images.split(size):
            network(batch)


def plan_of(graph: LayerGraph, ranks: np.ndarray, bits: int, keep: float) -> CompressionPlan:
    """Uniform bits, and the same kept share in every coupling group."""
    kept = [ranks[atoms] < max(1, round(keep * atoms.size)) for atoms in graph.group_atoms]
    widths = np.full(len(graph.layers), bits)
    return CompressionPlan.of(graph, kept, widths, widths)


def float_floor(graph: LayerGraph, plan: CompressionPlan) -> nn.Module:
    """The pruned network in float32 with BatchNorm folded, channels-last."""
    network = prune(graph, plan.kept_atoms(graph))
    for layer_name, norm_name in graph.folds.items():
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        if not isinstance(layer, nn.Conv2d) or not isinstance(norm, BatchNorm):
            continue
        factor, offset = norm_as_affine(norm)
        with torch.no_grad():
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            bias = offset if layer.bias is None else layer.bias * factor + offset
            layer.bias = nn.Parameter(bias.detach())
        parent, _, leaf = norm_name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def measure(
    name: str, graph: LayerGraph, images: torch.Tensor, calibration: torch.Tensor, repeats: int
) -> list[dict[str, Any]]:
    """The rows of one network."""
    rows = []
    ranks = rank_channels(graph, l1(graph, calibration, torch.empty(0)))
    fast = FastEngine(graph, calibration)
    reference = ReferenceEngine(graph, calibration)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for label, bits, keep in PLANS:
        plan = plan_of(graph, ranks, bits, keep)
        peer = PeerNetwork(graph, plan, calibration)
        dense = float_floor(graph, plan)
        floors = {
            size: seconds(partial(in_batches, dense, channels_last, size), repeats)
            for size in FLOAT_BATCHES
        }
        best = min(floors, key=lambda size: floors[size])
        prepare = seconds(partial(cold_prepare, fast, plan), repeats)
        ours = seconds(partial(fast.logits, plan, images), repeats)
        same = fast.logits(plan, images).argmax(1) == reference.logits(plan, images).argmax(1)
        peers = seconds(partial(in_batches, peer, images, PEER_BATCH), max(2, repeats // 3))
        rows.append(
            {
                "network": name,
                "plan": label,
                "images": len(images),
                "peer_seconds": peers,
                "ours_seconds": ours,
                "float_floor_seconds": floors[best],
                "float_floor_batch": best,
                "peer_over_ours": peers / ours,
                "floor_over_ours": floors[best] / ours,
                "agreement": float(same.double().mean()),
                "prepare_seconds": prepare,
                "prepare_share": prepare / ours,
                "threads": torch.get_num_threads(),
            }
        )
        print_row(rows[-1])
    return rows


def cold_prepare(engine: FastEngine, plan: CompressionPlan) -> None:
    """Build, calibrate and quantize a plan whose channels were never seen."""
    engine.forget()
    engine.prepare(plan)


def session_seconds(
    graph: LayerGraph, plan: CompressionPlan, images: torch.Tensor, calibration: torch.Tensor
) -> dict[str, float]:
    """Evaluation and session creation of the exported plan in other int8 engines."""
    from compress_env.export import export_onnx  # noqa: PLC0415  (an extra)
    from compress_env.latency import int8_sessions  # noqa: PLC0415

    figures: dict[str, float] = {}
    batch = 100
    arrays = [part.numpy() for part in images.split(batch)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.onnx"
        export_onnx(compress(graph, plan, calibration), tuple(images.shape[1:]), path)
        sessions = int8_sessions(path, batch, torch.get_num_threads())
        for engine, (creation, run) in sessions.items():
            figures[f"{engine}_creation_seconds"] = creation
            figures[f"{engine}_seconds"] = seconds(partial(run_all, run, arrays), 3)
    return figures


def run_all(run: Callable[[Any], object], batches: list[Any]) -> None:
    """Run a session over batches, keeping nothing."""
    for batch in batches:
        run(batch)


def step_overhead(network: str, repeats: int) -> float:
    """Median time of `step` with an evaluator that answers at once."""
    env = JointPruneQuantEnv(
        random_network(network), load_splits("digits"), target_reduction=0.98, search_images=64
    )
    answer = Evaluation(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
    env.task.evaluator.evaluate = lambda plan: answer  # type: ignore[method-assign]
    env.task.__dict__["dense_evaluation"] = answer
    generator = np.random.default_rng(0)
    shape = env.action_space.shape
    assert shape is not None
    actions = iter([generator.normal(0, 0.3, shape).astype(np.float32) for _ in range(repeats + 1)])

    def step() -> None:
        env.reset()
        env.step(next(actions))

    return seconds(step, repeats)


def random_network(name: str) -> nn.Module:
    """A network of the registry with untrained weights."""
    torch.manual_seed(0)
    return build_network(name, 10).eval()


def load(
    name: str, count: int, data_root: str | None, weights_dir: str | None
) -> tuple[LayerGraph, torch.Tensor, torch.Tensor]:
    """A network's graph, images to evaluate and images to calibrate; real ones if given."""
    network = random_network(name)
    if weights_dir is not None:
        load_weights(network, next(Path(weights_dir).glob(f"{name}-*")))
    if data_root is None:
        generator = torch.Generator().manual_seed(0)
        both = torch.randn(count + CALIBRATION_IMAGES, 3, 32, 32, generator=generator)
    else:
        splits = load_splits("imagefolder", data_root)
        chosen = splits.search.take(count + CALIBRATION_IMAGES)
        both = normalize(chosen.images, splits)
    return trace(network), both[:count].clone(), both[count:].clone()


def print_row(row: dict[str, Any]) -> None:
    """One readable line."""
    peer, ours, floor, prepare = (
        1e3 * row[f"{name}_seconds"] for name in ("peer", "ours", "float_floor", "prepare")
    )
    print(
        f"{row['network']:>9} {row['plan']:>9}  peer {peer:8.1f} ms  ours {ours:7.1f} ms"
        f"  floor {floor:7.1f} ms (batch {row['float_floor_batch']})"
        f"  peer/ours {row['peer_over_ours']:5.1f}  floor/ours {row['floor_over_ours']:4.2f}"
        f"  prepare {prepare:5.1f} ms ({row['prepare_share']:.0%})"
        f"  agreement {row['agreement']:.4f}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data-root", help="real CIFAR-10 as image folders")
    parser.add_argument("--weights-dir", help="folder with the published checkpoints")
    parser.add_argument("--sessions", action="store_true", help="also ONNX Runtime and OpenVINO")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        graph, images, calibration = load(
            name, options.images, options.data_root, options.weights_dir
        )
        found = measure(name, graph, images, calibration, options.repeats)
        overhead = step_overhead(name, 30)
        ranks = rank_channels(graph, l1(graph, calibration, torch.empty(0)))
        for row, (_, bits, keep) in zip(found, PLANS, strict=True):
            row["step_overhead_seconds"] = overhead
            if options.sessions:
                plan = plan_of(graph, ranks, bits, keep)
                row.update(session_seconds(graph, plan, images, calibration))
        print(f"{name:>9} step without evaluation: {overhead * 1e3:.2f} ms")
        rows += found
    print(f"resnet110 step without evaluation: {step_overhead('resnet110', 30) * 1e3:.2f} ms")
    if options.sessions:
        for row in rows:
            line = [
                f"{k} {v * 1e3:.1f} ms" for k, v in row.items() if k.startswith(("onnx", "open"))
            ]
            print(f"{row['network']:>9} {row['plan']:>9}  {', '.join(line)}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
