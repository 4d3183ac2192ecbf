"""`docs/results.md` from the rows of `benchmarks.papers`: tables and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import norm

from benchmarks.paper_rows import REPORTED
from benchmarks.tables import markdown_table
from compress_agents.html_report.statistics import wilson_interval

_LEVEL = 0.95
TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
"""Networks by the names they have in the papers."""

Row = dict[str, Any]


def paired_difference(only_ours: int, only_theirs: int, images: int) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images, with its interval.

    Args:
        only_ours: images that only the first network gets right.
        only_theirs: images that only the second gets right.
        images: how many there are.

    Returns:
        The difference, and the lower and upper end of Agresti and Min's adjusted interval
        ("Simple improved confidence intervals for comparing matched proportions", 2005).
    """
    b, c, n = only_ours + 0.5, only_theirs + 0.5, images + 2
    middle = (b - c) / n
    reach = norm.ppf((1 + _LEVEL) / 2) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return (only_ours - only_theirs) / images, middle - reach, middle + reach


def difference_to_dense(row: Row) -> tuple[float, float, float]:
    """A row's accuracy less that of the dense network on the same images, with its interval."""
    pair = int(row["only_compressed_right"]), int(row["only_dense_right"])
    return paired_difference(*pair, int(row["num_test_images"]))


def _cells(row: Row) -> list[str]:
    low, high = wilson_interval(row["test_accuracy"], int(row["num_test_images"]))
    difference, lowest, highest = difference_to_dense(row)
    target = row["target_reduction"]
    return [
        f"{target:.2%}" if target != "" else "",
        str(row["method"]),
        f"{row['reduction']:.2%}",
        f"{row['macs_reduction']:.1%}",
        f"{row['search_accuracy_before']:.1%} → {row['search_accuracy']:.1%}",
        f"{row['test_accuracy_before']:.1%} → **{row['test_accuracy']:.1%}**",
        f"{low:.1%} to {high:.1%}",
        f"{100 * difference:+.1f} ({100 * lowest:+.1f} to {100 * highest:+.1f})",
        f"{row['epochs']:.3g}",
        f"{row['file_bytes'] / 1024:.0f}",
    ]


_HEAD = [
    "target",
    "plan",
    "BOPs reduction",
    "MACs reduction",
    "search accuracy, before → after training",
    "test accuracy, before → after",
    "95% interval",
    "points to dense on the same images (95%)",
    "epochs",
    "file, KiB",
]


def network_table(rows: Sequence[Row]) -> str:
    """The table of one network's rows, the dense network first."""
    first = rows[0]
    low, high = wilson_interval(first["dense_test_accuracy"], int(first["num_test_images"]))
    dense = [""] * len(_HEAD)
    dense[1], dense[2], dense[3] = "dense, 32 bits", "0%", "0%"
    dense[4], dense[5] = (
        f"{first['dense_search_accuracy']:.1%}",
        f"{first['dense_test_accuracy']:.1%}",
    )
    dense[6] = f"{low:.1%} to {high:.1%}"
    return markdown_table(_HEAD, [dense, *map(_cells, rows)])


def latency_table(measured: Mapping[str, Any]) -> str:
    """What `compress-agents latency --json` wrote about a row, as a table."""
    head = ["engine", "batch", "file", "ms", "times as fast as dense", "file, KiB"]
    lines = [
        [
            row["engine"],
            str(row["batch_size"]),
            row["file"],
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['file_bytes'] / 1024:.0f}",
        ]
        for row in measured["rows"]
    ]
    engines = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    made = f"{engines}; {measured['threads']} threads, medians of {measured['repeats']} rounds"
    return f"{made}.\n\n{markdown_table(head, lines)}"


def results_page(
    rows: Sequence[Row], curves: str, differences: str, latencies: Mapping[str, Mapping[str, Any]]
) -> str:
    """The whole page.

    Args:
        rows: of the CSV file.
        curves: name of the file of the learning curves, beside the page.
        differences: name of the file of the differences to the dense networks.
        latencies: by the name of a row, what `compress-agents latency --json` wrote about it.
    """
    parts = [_INTRODUCTION, f"![Points to the dense network]({differences})\n"]
    for network in dict.fromkeys(str(row["network"]) for row in rows):
        own = [row for row in rows if row["network"] == network]
        parts += [f"## {TITLES.get(network, network)}\n", network_table(own)]
        reported = [r for r in REPORTED if r.network == network]
        if reported:
            lines = [
                [
                    r.reduction,
                    r.what,
                    "" if r.difference is None else f"{r.difference:+.2f}",
                    "" if r.goal is None else f"{r.goal:+.1f}",
                ]
                for r in reported
            ]
            head = ["reduction", "reported by", "points to their dense network", "goal here"]
            parts += ["Beside it, what the papers report:\n", markdown_table(head, lines)]
    if latencies:
        parts.append(_LATENCIES)
    for name, measured in latencies.items():
        parts += [f"### {name}\n", latency_table(measured)]
    commands = "\n".join(dict.fromkeys(str(row["command"]) for row in rows))
    parts += [
        f"## Curves\n\n![Search accuracy during training]({curves})\n",
        f"## Commands\n\n```\n{commands}\n```\n",
    ]
    return "\n".join(parts)


_LATENCIES = """## Latency

`compress-agents latency RUN --json FILE` on two cores. The exact form gives PyTorch's predictions,
but for an image whose rounding lies on an edge, and runs as integers in OpenVINO only; the integer
form runs so in both ([deployment](deployment.md)).
"""

_INTRODUCTION = """# Results on CIFAR-10

Made by `python -m benchmarks.papers` from `benchmarks/results/papers.csv`; do not edit by hand.

The checkpoints are those that both papers start from. A plan is searched by the agent that a row
names ([agents](agents.md)) on 1,000 images that the test never sees, then its physically pruned
network is trained at its bits (`compress-agents finetune`: learned step sizes, distillation from
the dense network, cosine schedule). PPO with a graph network had 501 evaluations, `graph-q` 200,
both of networks as they are without any training. In rows **with training** `graph-q` was paid
for what a plan's network does after a few steps of it (`--finetune-steps`): 100 evaluations after
20 steps each at 99.36%, else 40 after 10. **Uniform bits** is the plan that the action zero
stands for: nothing pruned, the same bits everywhere as far as the target allows, trained in just
the same way; the difference to the joint plan's row is what the search adds. Where plans only
prune, it stands for a **uniform share**: the same part of every coupling group. First and last
layer have 8 bits and count with them. BOPs are counted against 32 times 32 bits, over all layers.

Test accuracy is that of the trained network, measured once, on all test images at hand; before
training it is the plan's own. With 1,000 images an interval is some three points wide, so the last
network against the dense one is better judged by the paired difference on the same images (Agresti
and Min's interval). The checkpoints have seen the search images in their own training, which is why
search accuracies are so high; differences still rank plans. Training images are a lossy copy of
CIFAR-10's, with a quarter of every batch from lossless ones that neither search nor test uses.

The plans are kept in `benchmarks/results/plans`, and the commands below train them; with `--plans`
and the name of an empty folder they search anew, with today's agents. The plans of PPO were found
with `compress-agents train --target-reduction T --total-timesteps 500` (default agent, seed 0, one
search per target) at commit 45126b6, those of `graph-q` by the commands below at commits 1db3371
and, with training, bea85f1. Fewer epochs than a row would like are what two cores had time for.
The searched plans at 49% and 50% of MACs had been trained for 3 and 1 epochs before, which left
less, and measured on the test images (`benchmarks/results/papers.csv` at commit bdddc21); their
rows now are new, longer trainings of the same plans.

All rows are trained with `--compile --mixed-precision` on a processor with AMX. Since commit
94e0d95 plans are calibrated in bfloat16 there; rows trained before and after it can differ by some
tenths of a point before training, as the uniform bits at 99.36% do.

A search without training ranks by the accuracy before it, and where training changes much, that
is not the order after it: at 99.36% the plan that `graph-q` finds so is the best of those before
and the worst after. That is what the rows with training are for. On ResNet-56 at 99.1% such a
search found nothing better than where it started, uniform bits: the two rows are one plan and one
training.
"""
