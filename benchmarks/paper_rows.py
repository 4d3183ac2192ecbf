"""The rows of the papers' table: which plan, which training, and what the papers report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress_env import CompressionPlan
from compress_env.finetune_options import FinetuneOptions
from compress_env.layer_graph import LayerGraph
from compress_env.networks import NETWORKS

RESULTS = Path(__file__).parent / "results" / "papers.csv"
PLANS = RESULTS.with_name("plans")
CURVES = "papers_curves.csv"
LATENCIES = "papers_latency"

NUMBERS = frozenset(
    (
        "target_reduction", "reduction", "macs_reduction", "test_accuracy", "dense_test_accuracy",
        "num_test_images", "epochs", "seed", "search_accuracy_before", "search_accuracy",
        "dense_search_accuracy", "test_accuracy_before", "only_compressed_right",
        "only_dense_right", "file_bytes", "step", "train_loss", "train_accuracy", "wall_seconds",
    )
)  # fmt: skip
"""Columns of the CSV files that hold numbers."""

UNIFORM, PPO = "uniform bits", "joint plan, PPO"
JOINT, PRUNED = "joint plan, graph-q", "pruned only, graph-q"
UNIFORM_LONGER = "uniform bits, 20 epochs"
JOINT_TRAINED = "joint plan, graph-q with training"
PRUNED_TRAINED = "pruned only, graph-q with training"
PRUNED_UNIFORM = "pruned only, uniform share"
_FIRST_LAST_BITS = 8


@dataclass(frozen=True)
class PaperRow:
    """One network of the table.

    Attributes:
        network: name of the dense network.
        method: how its plan comes about.
        epochs: passes over the training images.
        target_reduction: what the plan has to save; None where bits are told.
        search: options of the search; None: uniform bits.
        bits: bits of all layers but the first and the last, where they are told.
        seed: of the search and of the training.
    """

    network: str
    method: str
    epochs: int
    target_reduction: float | None = None
    search: Mapping[str, Any] | None = field(default=None, hash=False)
    bits: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the row's folder."""
        words = [self.network, self.method.replace(", ", "-").replace(" ", "-").lower()]
        if self.target_reduction is not None:
            words.insert(1, f"{100 * self.target_reduction:g}")
        return "-".join(words)

    @property
    def env_id(self) -> str:
        """Gymnasium id of its environment."""
        return f"JointPruneQuant-{NETWORKS[self.network].title}-v0"

    @property
    def options(self) -> FinetuneOptions:
        """How its network is trained."""
        return FinetuneOptions(
            epochs=self.epochs, mixed_precision=True, compile=True, seed=self.seed
        )

    def uniform_plan(self, graph: LayerGraph) -> CompressionPlan:
        """Everything kept, the same bits for all layers between the first and the last."""
        assert self.bits is not None
        bits = np.full(len(graph.layers), self.bits)
        bits[[*graph.first_layers, *graph.last_layers]] = _FIRST_LAST_BITS
        kept = [np.ones(group.size, dtype=bool) for group in graph.groups]
        return CompressionPlan.of(graph, kept, bits, bits, self.network)

    def command(self) -> str:
        """The command that makes the row again."""
        return (
            "python -m benchmarks.papers --data-root cifar10 --weights-dir weights "
            f"--only {self.name}"
        )


_SEARCH = {"agent": "graph-q", "evaluations": 200}
_PRUNING = {"metric": "macs", "bits": (32,), **_SEARCH}
# The same share of every group, as far as the target allows: what a search must beat.
_PRUNING_ALIKE = {**_PRUNING, "agent": "uniform", "evaluations": 1}
_PPO = {"evaluations": 501}
# Plans are judged by what a few steps of training make of them, which takes seconds each.
_TRAINED = {"agent": "graph-q", "evaluations": 100, "finetune_steps": 20}
_TRAINED_LESS = {**_TRAINED, "evaluations": 40, "finetune_steps": 10}

ROWS = (
    *(
        PaperRow("resnet20", f"W{bits}A{bits}", epochs, bits=bits)
        for bits, epochs in ((8, 1), (6, 1), (4, 3), (3, 3), (2, 3))
    ),
    PaperRow("resnet20", PRUNED_UNIFORM, 10, 0.49, _PRUNING_ALIKE),
    PaperRow("resnet20", PRUNED, 10, 0.49, _PRUNING),
    *(
        PaperRow("resnet20", method, epochs, target, search)
        for target, epochs in ((0.9636, 3), (0.984, 3), (0.9936, 10))
        for method, search in ((UNIFORM, None), (PPO, _PPO), (JOINT, _SEARCH))
        if (target, method) != (0.9636, PPO)
    ),
    PaperRow("resnet20", UNIFORM_LONGER, 20, 0.9936),
    PaperRow("resnet20", JOINT_TRAINED, 20, 0.9936, _TRAINED),
    *(PaperRow("resnet56", f"W{bits}A{bits}", 1, bits=bits) for bits in (8, 6, 4, 3, 2)),
    PaperRow("resnet56", PRUNED_UNIFORM, 10, 0.50, _PRUNING_ALIKE),
    PaperRow("resnet56", PRUNED_TRAINED, 10, 0.50, {**_PRUNING, **_TRAINED_LESS}),
    PaperRow("resnet56", UNIFORM, 1, 0.9851),
    PaperRow("resnet56", PPO, 1, 0.9851, _PPO),
    PaperRow("resnet56", UNIFORM, 3, 0.991),
    PaperRow("resnet56", JOINT_TRAINED, 3, 0.991, _TRAINED_LESS),
)
"""All rows, in the order of the table."""


@dataclass(frozen=True)
class Reported:
    """What others report, in points of accuracy relative to their dense network.

    Attributes:
        network: name of the network.
        reduction: theirs, as they count it.
        what: their system.
        difference: their accuracy less that of their dense network; None where nobody reports any.
        goal: ours at this reduction, likewise, or None.
    """

    network: str
    reduction: str
    what: str
    difference: float | None
    goal: float | None = None


REPORTED = (
    Reported("resnet20", "49% of MACs", "GNN-RL (ICML 2022), pruning only", -0.42, 0.0),
    Reported("resnet20", "96.36%", "joint pruning-quantization (2024)", -0.11, 0.3),
    Reported("resnet20", "98.4%", "", None, 0.3),
    Reported("resnet20", "99.36%", "joint pruning-quantization (2024), abstract", -0.11, -0.3),
    Reported("resnet20", "99.06 to 99.1%", "APoT (ICLR 2020), 3 bits, training only", -0.47),
    Reported("resnet56", "50% of MACs", "GNN-RL (ICML 2022), pruning only", 0.10, 0.1),
    Reported("resnet56", "98.51%", "joint pruning-quantization (2024)", -0.59, 0.2),
    Reported("resnet56", "99.1%", "", None, -0.2),
    Reported("resnet56", "99.06 to 99.1%", "APoT (ICLR 2020), 3 bits, training only", -0.69),
)
"""Beside our rows; the papers count on all 10,000 test images and with their own training."""
