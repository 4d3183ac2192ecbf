"""Calibration: a pruned network's BatchNorm statistics and the values that its layers read.

The calibration images walk through the network step by step, all images of a batch together, so
that a BatchNorm knows the statistics of the whole batch before the next step. Each step goes
through the batch in parts that fit the processor's cache. A walk can be stopped before any step
and gone on with, also through another network that is the same up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.layer_graph import LayerGraph
from compress_env.program import LayerStep, PlainStep, Program, run_plain
from compress_env.quantization import SAMPLED_VALUES, sample_values

CALIBRATION_BATCH = 64
"""Images whose statistics a BatchNorm sees at once while a network is calibrated."""

_PART_BYTES = 16 * 3 * 32 * 32 * 4
"""Bytes of the images that go through a step together."""

BatchNorm = nn.modules.batchnorm._BatchNorm

Statistics = tuple[Tensor, Tensor]
"""Mean and unbiased variance of every channel."""


@dataclass(frozen=True, eq=False)
class Walk:
    """How far the calibration images have come.

    Attributes:
        place: steps of the program that are behind them.
        batches: for every batch, for every part of it, the values that later steps read.
        samples: by layer, magnitudes of values of its input.
        statistics: by name of a BatchNorm, what it saw.
    """

    place: int
    batches: list[list[dict[fx.Node, Any]]]
    samples: dict[int, Tensor]
    statistics: dict[str, Statistics]


def calibrate(
    network: nn.Module | Mapping[str, Any],
    graph: LayerGraph,
    images: Tensor,
    reestimate: bool,
    program: Program | None = None,
) -> list[Tensor]:
    """One pass over the calibration images: BatchNorm statistics and samples of layer inputs.

    Args:
        network: a pruned network, or its modules and tensors by name; its BatchNorm statistics
            are replaced if `reestimate`.
        graph: the layer graph it comes from.
        images: float32 (images, channels, height, width).
        reestimate: whether to re-estimate BatchNorm statistics (mean over batches of the batch
            statistics). Layers behind a BatchNorm then see its re-estimated output.
        program: the graph's program, where it is there already.

    Returns:
        For every layer, magnitudes of values of its input.
    """
    program = program or Program(graph)
    find = network.__getitem__ if isinstance(network, Mapping) else _finder(network)
    done = walk(program, find, at_start(program, images), len(program.steps), reestimate)
    if reestimate:
        set_statistics(find, done.statistics)
    return [done.samples[index] for index in range(len(graph.layers))]


def set_statistics(find: Callable[[str], Any], statistics: Mapping[str, Statistics]) -> None:
    """Give BatchNorm modules the statistics of a walk."""
    for name, (mean, variance) in statistics.items():
        norm = find(name)
        if norm.running_mean is not None:
            norm.running_mean, norm.running_var = mean, variance


def at_start(program: Program, images: Tensor) -> Walk:
    """The calibration images before the first step."""
    size = max(1, _PART_BYTES // max(1, images[0].nbytes))
    batches = [
        [{program.input: part} for part in batch.split(size)]
        for batch in images.contiguous(memory_format=torch.channels_last).split(CALIBRATION_BATCH)
    ]
    return Walk(0, batches, {}, {})


def walk(
    program: Program, find: Callable[[str], Any], start: Walk, stop: int, reestimate: bool
) -> Walk:
    """Go on with a walk, which stays as it is.

    Args:
        program: the steps.
        find: gives a module or tensor of the network by its name. Up to `start.place` the network
            must be the one that `start` walked through.
        start: where to begin.
        stop: the first step not to take.
        reestimate: whether BatchNorm uses and notes the statistics of the batch.
    """
    steps = program.steps[start.place : stop]
    notes = _Notes([], {}, {})
    with torch.no_grad():
        for parts in start.batches:
            notes.batches.append(_walk_batch(program, find, parts, steps, reestimate, notes))
    samples = {index: torch.cat(some) for index, some in notes.samples.items()}
    statistics = {
        name: (torch.stack([m for m, _ in some]).mean(0), torch.stack([v for _, v in some]).mean(0))
        for name, some in notes.statistics.items()
    }
    return Walk(
        max(stop, start.place),
        notes.batches,
        {**start.samples, **samples},
        {**start.statistics, **statistics},
    )


@dataclass(frozen=True, eq=False)
class _Notes:
    """What is noted on the way, batch by batch."""

    batches: list[list[dict[fx.Node, Any]]]
    samples: dict[int, list[Tensor]]
    statistics: dict[str, list[Statistics]]


def _walk_batch(
    program: Program,
    find: Callable[[str], Any],
    start: list[dict[fx.Node, Any]],
    steps: list[LayerStep | PlainStep],
    reestimate: bool,
    notes: _Notes,
) -> list[dict[fx.Node, Any]]:
    parts = [dict(values) for values in start]
    for step in steps:
        name = step.name if isinstance(step, LayerStep) else _called(step)
        source = step.source if isinstance(step, LayerStep) else _first_input(step)
        if name in program.graph.layer_index:
            find(name).to(memory_format=torch.channels_last)
            count = max(1, SAMPLED_VALUES // len(parts))
            notes.samples.setdefault(program.graph.layer_index[name], []).extend(
                sample_values(values[source], count) for values in parts
            )
        if isinstance(step, LayerStep):
            target, results = step.target, _run_layer(step, find, parts, reestimate, notes)
        else:
            target, norm = step.node, find(name) if name else None
            if isinstance(norm, BatchNorm):
                inputs = [values[source] for values in parts]
                results = _normalise(inputs, name, norm, reestimate, notes)
            else:
                results = [run_plain(step.node, values, find) for values in parts]
        for values, result in zip(parts, results, strict=True):
            values[target] = result
            for dead in step.dead:
                del values[dead]
    return parts


def _called(step: PlainStep) -> str:
    """Name of the module that a step calls, or nothing."""
    return str(step.node.target) if step.node.op == "call_module" else ""


def _first_input(step: PlainStep) -> fx.Node:
    """What a step reads first; the step itself if it reads nothing."""
    return next(iter(step.node.all_input_nodes), step.node)


def _run_layer(
    step: LayerStep,
    find: Callable[[str], Any],
    parts: list[dict[fx.Node, Any]],
    reestimate: bool,
    notes: _Notes,
) -> list[Tensor]:
    layer = find(step.name)
    results = [layer(values[step.source]) for values in parts]
    if step.norm is not None:
        results = _normalise(results, step.norm, find(step.norm), reestimate, notes, results)
    for values, result in zip(parts, results, strict=True):
        if step.residual is not None:
            result.add_(values[step.residual])
        if step.relu:
            result.relu_()
    return results


def _normalise(
    parts: list[Tensor],
    name: str,
    norm: BatchNorm,
    reestimate: bool,
    notes: _Notes,
    into: list[Tensor] | None = None,
) -> list[Tensor]:
    """Run a BatchNorm over the parts of a batch; `into` says that they may be overwritten."""
    if reestimate or norm.running_mean is None:
        mean, variance, count = batch_statistics(parts)
        unbiased = variance * (count / max(1, count - 1))
        notes.statistics.setdefault(name, []).append((mean, unbiased))
    else:
        assert norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
    factor, offset = affine(norm, mean, variance)
    return [_scaled(part, factor, offset, into is not None) for part in parts]


def affine(norm: BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """What a BatchNorm with these statistics multiplies and adds: factor, offset (channels,)."""
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    offset = -mean * factor
    if norm.bias is not None:
        offset = offset + norm.bias.detach()
    return factor, offset


def batch_statistics(parts: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of every channel over all parts (n, C, ...), and their number.

    Returns:
        Mean and variance, float32 (channels,), and the number of values of a channel.
    """
    rows = [_rows(part) for part in parts]
    channels = parts[0].shape[1]
    count = sum(part.numel() for part in parts) // channels

    def per_channel(sums: list[Tensor]) -> Tensor:
        # First over images, which runs along memory, then over positions.
        return torch.stack(sums).double().sum(0).view(-1, channels).sum(0) / count

    mean = per_channel([row.sum(0) for row in rows]).float()
    everywhere = mean.repeat(rows[0].shape[1] // channels)
    squares = [torch.sub(row, everywhere).square_().sum(0) for row in rows]
    return mean, per_channel(squares).float(), count


def _scaled(x: Tensor, factor: Tensor, offset: Tensor, in_place: bool) -> Tensor:
    """`x * factor + offset` with numbers per channel."""
    rows = _rows(x)
    # Numbers per position: rows are long, channels may be few.
    count = rows.shape[1] // x.shape[1]
    out = rows if in_place else None
    scaled = torch.addcmul(offset.repeat(count), rows, factor.repeat(count), out=out)
    moved = x.movedim(1, -1).shape
    return scaled.view(moved).movedim(-1, 1)


def _rows(x: Tensor) -> Tensor:
    """A tensor (n, C, ...) as (n, positions * C): without a copy if it is channels-last."""
    return x.movedim(1, -1).contiguous().view(len(x), -1)


def _finder(network: nn.Module) -> Callable[[str], Any]:
    return lambda name: attrgetter(name)(network)
