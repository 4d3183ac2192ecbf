"""Evaluations per second of processes that share nothing: what the cores of a machine give at most.

The control beside several environments. Each process evaluates a plan again and again on one
thread; they begin together and wait for nothing from then on.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks.subjects import load_subject, uniform_plan
from compress_env.evaluation import FastEngine

__all__ = ["independent_rate"]

_WARM_UP = 2


def independent_rate(network: str, images: int, bits: int, count: int, seconds: float) -> float:
    """Evaluations per second in all.

    Args:
        network: name of the network; its weights and images are random.
        images: of an evaluation.
        bits: of all layers.
        count: processes.
        seconds: for which each evaluates.
    """
    context = multiprocessing.get_context("spawn")
    together, rates = context.Barrier(count), context.Queue()
    processes = [
        context.Process(
            target=_evaluate, args=(network, images, bits, seconds, together, rates), daemon=True
        )
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    total = sum(rates.get(timeout=600 + 10 * seconds) for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def _evaluate(
    network: str, images: int, bits: int, seconds: float, together: Barrier, rates: Any
) -> None:
    torch.set_num_threads(1)
    subject = load_subject(network, images)
    engine, plan = FastEngine(subject.graph, subject.calibration), uniform_plan(subject, bits, 1.0)
    for _ in range(_WARM_UP):
        engine.logits(plan, subject.images)
    together.wait()
    start = now = time.perf_counter()
    done = 0
    while now < start + seconds:
        engine.logits(plan, subject.images)
        done += 1
        now = time.perf_counter()
    rates.put(done / (now - start))
