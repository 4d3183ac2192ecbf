"""What tracing finds in every network, and how long it takes.

For every network of `benchmarks.network_list`, at the image size it is made for: layers, coupling
groups, MACs and parameters of the dense network; and medians of the processor time, with one
thread, to trace and group it, to build the network of a plan that keeps 70% of the channels, and to
build an observation. Below, the same per layer for the ResNets of the papers: none of it grows
faster than the network.

Usage: python -m benchmarks.networks [NAME ...] [--repeats N] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch

from benchmarks.network_list import LISTED, ListedNetwork
from benchmarks.tables import markdown_table
from compress_env.complexity import ComplexityModel
from compress_env.graphs import to_dgl
from compress_env.importance import IMPORTANCES, rank_channels
from compress_env.layer_graph import LayerGraph, trace
from compress_env.observations import ObservationContext, ObservedState
from compress_env.observations.layer import LayerObservation
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune

KEPT = 0.7
FAMILY = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
COMMAND = "python -m benchmarks.networks --markdown docs/networks.md"


@dataclass(frozen=True)
class Measured:
    """What is known of a network; times are medians in milliseconds.

    Attributes:
        name: the network.
        image_size: side of the images.
        layers: number of layers.
        groups: number of coupling groups.
        macs: of the dense network, for one image.
        params: of the dense network.
        trace_ms: tracing it, following its channels and grouping them.
        prune_ms: building the network of a plan.
        observe_ms: building the DGL graph of a plan.
        whole: operations in front of which channels are left whole, with their number.
    """

    name: str
    image_size: int
    layers: int
    groups: int
    macs: int
    params: int
    trace_ms: float
    prune_ms: float
    observe_ms: float
    whole: str


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after one that is not counted.

    With one thread that is the wall time on an idle machine, and other work does not disturb it.
    """
    run()
    times = []
    for _ in range(repeats):
        start = process_time()
        run()
        times.append(process_time() - start)
    return 1000 * median(times)


def plan_of(graph: LayerGraph, scores: np.ndarray) -> CompressionPlan:
    """A plan that keeps a share of all channels, with six bits."""
    ranks = rank_channels(graph, scores)
    kept = [ranks[atoms] < max(1, round(KEPT * atoms.size)) for atoms in graph.group_atoms]
    bits = np.full(len(graph.layers), 6)
    return CompressionPlan.of(graph, kept, bits, bits)


def measure(listed: ListedNetwork, repeats: int) -> Measured:
    """Trace, prune and observe a network several times."""
    network = listed.build()
    shape = (3, listed.image_size, listed.image_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = trace(network, shape)
    told = [str(warning.message) for warning in caught if "left whole" in str(warning.message)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace_ms = milliseconds(lambda: trace(network, shape), repeats)
    costs = ComplexityModel(graph)
    scores = IMPORTANCES["random"](graph, torch.empty(0), torch.empty(0))
    plan = plan_of(graph, scores)
    kept = plan.kept_atoms(graph)
    unfixed = np.zeros(len(graph.layers), dtype=bool)
    ranks = rank_channels(graph, scores)
    context = ObservationContext(graph, costs, scores, ranks, unfixed, torch.empty(0, *shape))
    observer = LayerObservation(context)
    state = ObservedState(plan, 0.9, 0.95, 1.0)
    return Measured(
        name=listed.name,
        image_size=listed.image_size,
        layers=len(graph.layers),
        groups=len(graph.groups),
        macs=costs.dense.macs,
        params=costs.dense.params,
        trace_ms=trace_ms,
        prune_ms=milliseconds(lambda: prune(graph, kept), repeats),
        observe_ms=milliseconds(lambda: to_dgl(observer.observe(state)), 4 * repeats),
        whole=told[0].split(": ", 1)[1] if told else "",
    )


def networks_table(found: list[Measured]) -> str:
    """A line for every network."""
    head = (
        "network", "images", "layers", "groups", "MACs, M", "parameters, M", "trace, ms",
        "prune, ms", "observe, ms", "left whole at",
    )  # fmt: skip
    rows = [
        (
            each.name,
            f"{each.image_size}x{each.image_size}",
            str(each.layers),
            str(each.groups),
            f"{each.macs / 1e6:.2f}",
            f"{each.params / 1e6:.3f}",
            f"{each.trace_ms:.0f}",
            f"{each.prune_ms:.1f}",
            f"{each.observe_ms:.2f}",
            each.whole,
        )
        for each in found
    ]
    return markdown_table(head, rows)


def per_layer_table(found: list[Measured]) -> str:
    """Microseconds per layer along a family of networks."""
    head = ("network", "layers", "trace, us/layer", "prune, us/layer", "observe, us/layer")
    rows = [
        (
            each.name,
            str(each.layers),
            *(
                f"{1000 * value / each.layers:.1f}"
                for value in (each.trace_ms, each.prune_ms, each.observe_ms)
            ),
        )
        for each in found
        if each.name in FAMILY
    ]
    return markdown_table(head, rows) if rows else ""


def page(found: list[Measured], repeats: int) -> str:
    """The documentation page."""
    return f"""# Networks

Made by `{COMMAND}` with Python {platform.python_version()} and PyTorch
{torch.__version__.split("+")[0]} on one core of an {platform.machine()} machine without GPU:
medians of the processor time of {repeats} runs with one thread.

- *trace*: run `torch.fx`, follow every channel, find the coupling groups (once per environment).
- *prune*: build the network of a plan that keeps {KEPT:.0%} of the channels.
- *observe*: build the DGL graph that an agent sees (at every step).
- *left whole at*: operations whose effect on channels is not known, with the number of uses; the
  channels they read are never removed.

{networks_table(found)}
Per layer, along the ResNets for small images:

{per_layer_table(found)}"""


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in LISTED]
    if unknown:
        parser.error(f"unknown network {unknown[0]}; there are {', '.join(LISTED)}")
    torch.set_num_threads(1)
    found = []
    for name in options.names or LISTED:
        found.append(measure(LISTED[name], options.repeats))
        print(f"{len(found)}. {name}: traced in {found[-1].trace_ms:.0f} ms", flush=True)
    print(f"\n{networks_table(found)}\n{per_layer_table(found)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page(found, options.repeats))


if __name__ == "__main__":
    main()
