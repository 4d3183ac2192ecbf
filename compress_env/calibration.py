"""Calibration: a pruned network's BatchNorm statistics and the values that its layers read.

The calibration images walk through the network step by step, all images of a batch together, so
that a BatchNorm knows the statistics of the whole batch before the next step. Each step goes
through the batch in parts that fit the processor's cache. A walk can be stopped before any step
and gone on with, also through another network that is the same up to there.

The values may be bfloat16, which halves what must be moved and, on a processor that multiplies
bfloat16, takes much less time. Statistics and what BatchNorm does with them are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_env.casting import CalledModules, called_modules, run_plain_as
from compress_env.layer_graph import LayerGraph
from compress_env.normalization import (
    BatchNorm,
    Moments,
    as_images,
    as_rows,
    averages,
    moments,
    normalize_,
    own_moments,
)
from compress_env.program import (
    LayerStep,
    PlainStep,
    Program,
    called_module,
    copied,
    reads,
)
from compress_env.quantization import SAMPLED_VALUES, sample_values
from compress_env.workers import Workers, threads_for

CALIBRATION_BATCH = 64
"""Images whose statistics a BatchNorm sees at once while a network is calibrated."""

_PART_BYTES = 64 * 3 * 32 * 32 * 2
"""Bytes of the images that go through a step together."""

_WORKERS = Workers()

Statistics = tuple[Tensor, Tensor]
"""Mean and unbiased variance of every channel."""


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor has matrix instructions for it (AMX), else float32.

    Without those bfloat16 loses: by AVX512-BF16 alone a convolution takes longer than in float32.
    """
    has_instructions = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    native = device.type == "cpu" and has_instructions()
    return torch.bfloat16 if native else torch.float32


@dataclass(frozen=True, eq=False)
class Walk:
    """How far the calibration images have come.

    Attributes:
        place: steps of the program that are behind them.
        dtype: of the values, float32 or bfloat16.
        batches: for every batch, for every part of it, the values that later steps read.
        samples: by layer, magnitudes of values of its input, float32.
        statistics: by name of a BatchNorm, what it saw.
    """

    place: int
    dtype: torch.dtype
    batches: list[list[dict[fx.Node, Any]]]
    samples: dict[int, Tensor]
    statistics: dict[str, Statistics]

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        values = (value for parts in self.batches for some in parts for value in some.values())
        tensors = (value for value in values if isinstance(value, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))


CALIBRATION_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""In what plans may be calibrated; `auto` takes `fastest_dtype`."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type in `CALIBRATION_DTYPES`."""
    return next(name for name, known in CALIBRATION_DTYPES.items() if known == dtype)


def check_dtype(dtype: object) -> None:
    """Refuse what plans cannot be calibrated in.

    Raises:
        ValueError: neither float32 nor bfloat16.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"calibration_dtype must be torch.float32 or torch.bfloat16, not {dtype!r}"
        )


def calibrate(
    network: nn.Module | Mapping[str, Any],
    graph: LayerGraph,
    images: Tensor,
    reestimate: bool,
    program: Program | None = None,
    dtype: torch.dtype | None = None,
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
        dtype: of the values between the layers, float32 or bfloat16; None takes
            `fastest_dtype`.

    Returns:
        For every layer, magnitudes of values of its input, float32.

    Raises:
        ValueError: `dtype` is another one.
    """
    program = program or Program(graph)
    find = network.__getitem__ if isinstance(network, Mapping) else _finder(network)
    start = at_start(program, images, dtype or fastest_dtype(images.device))
    done = walk(program, find, start, len(program.steps), reestimate)
    if reestimate:
        set_statistics(find, done.statistics)
    return [done.samples[index] for index in range(len(graph.layers))]


def set_statistics(find: Callable[[str], Any], statistics: Mapping[str, Statistics]) -> None:
    """Give BatchNorm modules the statistics of a walk."""
    for name, (mean, variance) in statistics.items():
        norm = find(name)
        if norm.running_mean is not None:
            norm.running_mean, norm.running_var = mean, variance


def at_start(program: Program, images: Tensor, dtype: torch.dtype) -> Walk:
    """The calibration images before the first step, in the type that the walk is to have."""
    check_dtype(dtype)
    images = images.to(dtype=dtype, memory_format=torch.channels_last)
    size = max(1, _PART_BYTES // max(1, images[0].nbytes))
    batches = [
        [{program.input: part} for part in batch.split(size)]
        for batch in images.split(CALIBRATION_BATCH)
    ]
    return Walk(0, dtype, batches, {}, {})


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
    called = called_modules(steps, find, start.dtype, fold=not reestimate)
    inference = torch.is_inference_mode_enabled()

    def take(parts: list[dict[fx.Node, Any]]) -> tuple[_Walker, list[dict[fx.Node, Any]]]:
        with torch.inference_mode(inference), torch.no_grad():  # threads have modes of their own
            walker = _Walker(program.graph, called, start.dtype, reestimate)
            return walker, walker.take(steps, parts)

    # Sums of statistics depend on the threads that share them: every batch gets one of its own.
    taken = _WORKERS.map(take, start.batches, threads_for(start.device), alone=True)
    samples: dict[int, list[Tensor]] = {}
    statistics: dict[str, list[Moments]] = {}
    for walker, _ in taken:
        for index, some in walker.samples.items():
            samples.setdefault(index, []).extend(some)
        for name, seen in walker.statistics.items():
            statistics.setdefault(name, []).extend(seen)
    means = {name: averages(seen) for name, seen in statistics.items()}
    magnitudes = {index: torch.cat(some) for index, some in samples.items()}
    return Walk(
        max(stop, start.place),
        start.dtype,
        [parts for _, parts in taken],
        {**start.samples, **magnitudes},
        {**start.statistics, **means},
    )


class _Walker:
    """Takes steps with one batch after the other, and notes what it sees."""

    def __init__(
        self, graph: LayerGraph, called: CalledModules, dtype: torch.dtype, reestimate: bool
    ) -> None:
        self.graph, self.called, self.dtype, self.reestimate = graph, called, dtype, reestimate
        self.samples: dict[int, list[Tensor]] = {}
        self.statistics: dict[str, list[Moments]] = {}

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
        layer = self.called.modules[step.name]
        norm = None if step.norm is None else self.called.norms.get(step.norm)
        results = [layer(values[step.source].to(self.dtype)) for values in parts]
        if norm is not None:
            results = self._normalized(str(step.norm), norm, results)
        for place, values in enumerate(parts):
            if step.residual is not None:
                results[place].add_(values[step.residual])
            if step.relu:
                _relu_(results[place])
        return results

    def _run_plain(self, step: PlainStep, parts: list[dict[fx.Node, Any]]) -> list[Any]:
        name = called_module(step)
        norm = self.called.norms.get(name)
        if norm is None:
            find = self.called.modules.__getitem__
            return [run_plain_as(self.dtype, step.node, values, find) for values in parts]
        inputs = [values[reads(step)[0]] for values in parts]
        copies = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        return self._normalized(name, norm, copies)

    def _normalized(self, name: str, norm: BatchNorm, parts: list[Tensor]) -> list[Tensor]:
        """What a BatchNorm makes of a batch. The values may be changed."""
        rows = [as_rows(part) for part in parts]
        # One without statistics of its own always takes those of the batch.
        if self.reestimate or norm.running_mean is None:
            batch = moments(rows, parts[0].shape[1])
            self.statistics.setdefault(name, []).append(batch)
        else:
            batch = own_moments(norm, rows[0])
        for part in rows:
            normalize_(part, norm, batch)
        return [as_images(row, part) for row, part in zip(rows, parts, strict=True)]


def _relu_(x: Tensor) -> None:
    """ReLU in place."""
    if x.dtype == torch.bfloat16:
        # Numbers below zero, and they alone, are integers below zero too: five times as fast.
        x.view(torch.int16).clamp_(min=0)
    else:
        x.relu_()


def _finder(network: nn.Module) -> Callable[[str], Any]:
    return lambda name: attrgetter(name)(network)
