"""Calibration: a pruned network's BatchNorm statistics and the values that its layers read.

The calibration images walk through the network step by step, all images of a batch together, so
that a BatchNorm knows the statistics of the whole batch before the next step. Each step goes
through the batch in parts that fit the processor's cache. A walk can be stopped before any step
and gone on with, also through another network that is the same up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.layer_graph import LayerGraph
from compress_env.program import (
    LayerStep,
    PlainStep,
    Program,
    called_module,
    copied,
    reads,
    run_plain,
)
from compress_env.quantization import SAMPLED_VALUES, sample_values
from compress_env.workers import Workers, threads_for

CALIBRATION_BATCH = 64
"""Images whose statistics a BatchNorm sees at once while a network is calibrated."""

_PART_BYTES = 16 * 3 * 32 * 32 * 4
"""Bytes of the images that go through a step together."""

_WORKERS = Workers()

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

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        values = (value for parts in self.batches for some in parts for value in some.values())
        tensors = (value for value in values if isinstance(value, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))


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
    for name in map(called_module, steps):
        if name in program.graph.layer_index:
            find(name).to(memory_format=torch.channels_last)
    inference = torch.is_inference_mode_enabled()

    def take(parts: list[dict[fx.Node, Any]]) -> tuple[_Walker, list[dict[fx.Node, Any]]]:
        with torch.inference_mode(inference), torch.no_grad():  # threads have modes of their own
            walker = _Walker(program.graph, find, reestimate)
            return walker, walker.take(steps, parts)

    taken = _WORKERS.map(take, start.batches, threads_for(start.device))
    samples: dict[int, list[Tensor]] = {}
    statistics: dict[str, list[Statistics]] = {}
    for walker, _ in taken:
        for index, some in walker.samples.items():
            samples.setdefault(index, []).extend(some)
        for name, seen in walker.statistics.items():
            statistics.setdefault(name, []).extend(seen)
    means = {
        name: (torch.stack([m for m, _ in seen]).mean(0), torch.stack([v for _, v in seen]).mean(0))
        for name, seen in statistics.items()
    }
    return Walk(
        max(stop, start.place),
        [parts for _, parts in taken],
        {**start.samples, **{index: torch.cat(some) for index, some in samples.items()}},
        {**start.statistics, **means},
    )


class _Walker:
    """Takes steps with one batch after the other, and notes what it sees."""

    def __init__(self, graph: LayerGraph, find: Callable[[str], Any], reestimate: bool) -> None:
        self.graph, self.find, self.reestimate = graph, find, reestimate
        self.samples: dict[int, list[Tensor]] = {}
        self.statistics: dict[str, list[Statistics]] = {}
        # Memory that is asked for anew costs more than the sums that are made in it.
        self._scratch = torch.empty(0)

    def take(
        self, steps: Sequence[LayerStep | PlainStep], start: list[dict[fx.Node, Any]]
    ) -> list[dict[fx.Node, Any]]:
        """What later steps read, for every part of a batch, after these steps."""
        parts = [copied(values) for values in start]
        for step in steps:
            self._sample(step, parts)
            if isinstance(step, LayerStep):
                target, results = step.target, self._run_layer(step, parts)
            else:
                target, results = step.node, self._run_plain(step, parts)
            for values, result in zip(parts, results, strict=True):
                values[target] = result
                for dead in step.dead:
                    del values[dead]
        return parts

    def _sample(self, step: LayerStep | PlainStep, parts: list[dict[fx.Node, Any]]) -> None:
        name = called_module(step)
        index = self.graph.layer_index.get(name)
        if index is not None:
            source = reads(step)[0]
            count = max(1, SAMPLED_VALUES // len(parts))
            self.samples.setdefault(index, []).extend(
                sample_values(values[source], count) for values in parts
            )

    def _run_layer(self, step: LayerStep, parts: list[dict[fx.Node, Any]]) -> list[Tensor]:
        layer, norm = self.find(step.name), None if step.norm is None else self.find(step.norm)
        results, seen = [], []
        for values in parts:
            results.append(layer(values[step.source]))
            if norm is not None and self.reestimate:
                seen.append(self._moments(results[-1]))  # while the result is in the cache
        if norm is not None:
            factor, offset = self._factors(str(step.norm), norm, seen)
            results = [_scaled(result, factor, offset, in_place=True) for result in results]
        for values, result in zip(parts, results, strict=True):
            if step.residual is not None:
                result.add_(values[step.residual])
            if step.relu:
                result.relu_()
        return results

    def _run_plain(self, step: PlainStep, parts: list[dict[fx.Node, Any]]) -> list[Any]:
        name = called_module(step)
        norm = self.find(name) if name else None
        if not isinstance(norm, BatchNorm):
            return [run_plain(step.node, values, self.find) for values in parts]
        inputs = [values[reads(step)[0]] for values in parts]
        own = norm.running_mean is None  # it always takes the statistics of the batch
        seen = [self._moments(x) for x in inputs] if self.reestimate or own else []
        factor, offset = self._factors(name, norm, seen)
        return [_scaled(x, factor, offset, in_place=False) for x in inputs]

    def _factors(self, name: str, norm: BatchNorm, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Factor and offset of a BatchNorm, by the moments of the batch where these are taken."""
        if seen:
            mean, variance, count = joined(seen)
            unbiased = variance * (count / max(1.0, count - 1))
            self.statistics.setdefault(name, []).append((mean, unbiased))
            return affine(norm, mean, variance)
        assert norm.running_mean is not None and norm.running_var is not None
        return affine(norm, norm.running_mean, norm.running_var)

    def _moments(self, x: Tensor) -> Tensor:
        if self._scratch.numel() < x.numel() or self._scratch.device != x.device:
            self._scratch = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        return moments(x, self._scratch)


def affine(norm: BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """What a BatchNorm with these statistics multiplies and adds: factor, offset (channels,)."""
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    offset = -mean * factor
    if norm.bias is not None:
        offset = offset + norm.bias.detach()
    return factor, offset


def moments(x: Tensor, scratch: Tensor) -> Tensor:
    """Number of values, mean, and sum of squares around it of every channel.

    Args:
        x: float32 (n, C, ...).
        scratch: memory to use, as many values as `x` has, or more.

    Returns:
        float64 (3, channels).
    """
    rows = _rows(x)
    count = x.numel() // x.shape[1]

    def per_channel(values: Tensor) -> Tensor:
        # First over images, which runs along memory, then over positions.
        return values.sum(0).view(-1, x.shape[1]).double().sum(0)

    mean = per_channel(rows) / count
    off = scratch[: x.numel()].view_as(rows)
    torch.sub(rows, _at_every_position(mean.to(rows.dtype), rows), out=off)
    return torch.stack([torch.full_like(mean, count), mean, per_channel(off.square_())])


def joined(parts: list[Tensor]) -> tuple[Tensor, Tensor, float]:
    """Moments of parts of a batch to those of the batch (Chan, Golub and LeVeque, 1979).

    Returns:
        Mean and biased variance of every channel, float32 (channels,), and the number of values.
    """
    counts, means, squares = torch.stack(parts).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    around = squares + counts * (means - mean).square()
    return mean.float(), (around.sum(0) / total).float(), float(total[0])


def _at_every_position(values: Tensor, rows: Tensor) -> Tensor:
    """Numbers per channel repeated to the length of rows, which is long where channels are few."""
    return values.expand(rows.shape[1] // len(values), len(values)).reshape(-1)


def _scaled(x: Tensor, factor: Tensor, offset: Tensor, in_place: bool) -> Tensor:
    """`x * factor + offset` with numbers per channel."""
    rows = _rows(x)
    factor, offset = _at_every_position(factor, rows), _at_every_position(offset, rows)
    scaled = torch.addcmul(offset, rows, factor, out=rows if in_place else None)
    return scaled.view(x.movedim(1, -1).shape).movedim(-1, 1)


def _rows(x: Tensor) -> Tensor:
    """A tensor (n, C, ...) as (n, positions * C): without a copy if it is channels-last."""
    return x.movedim(1, -1).contiguous().view(len(x), -1)


def _finder(network: nn.Module) -> Callable[[str], Any]:
    return lambda name: attrgetter(name)(network)
