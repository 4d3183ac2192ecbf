"""Evaluating every step of an episode that decides layer by layer.

From one step to the next a plan changes in one layer and what comes after it. What the decided
layers make of the images is kept, and so is what they make of the calibration images; only the
rest of the network is computed again. The figures are those of a `FastEngine` with the same
calibration images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import numpy as np
import torch

from compress_env.calibration import Walk, at_start, calibrate, set_statistics, walk
from compress_env.evaluation.devices import convolution_precision
from compress_env.evaluation.evaluator import Engine, Evaluation
from compress_env.evaluation.fast import FastEngine, split
from compress_env.evaluation.preparing import Pruned
from compress_env.evaluation.running import Values, result_of, run_steps
from compress_env.plan import CompressionPlan
from compress_env.program import LayerStep, PlainStep, called_module, copied, reads
from compress_env.pruning import pruned_modules
from compress_env.workers import threads_for


@dataclass(frozen=True, eq=False)
class _Prefix:
    """What the first steps of a network made of the images.

    Attributes:
        place: number of these steps.
        marks: for each of them what its result depends on beside the steps before it.
        walk: what they made of the calibration images; at the start where nothing was pruned.
        batches: what they made of the images, batch by batch.
    """

    place: int
    marks: tuple[bytes, ...]
    walk: Walk
    batches: list[Values]


class StepwiseEngine:
    """Runs the plans of an episode on a few images, each time only the part that is new.

    Args:
        engine: a fast engine for the same network, whose weight codes and threads are used.
        calibration_images: float32 (images, channels, height, width), normalised.
        images: what the plans are run on, likewise. They are held, and must not be changed.
    """

    def __init__(
        self, engine: FastEngine, calibration_images: torch.Tensor, images: torch.Tensor
    ) -> None:
        self.engine, self.images = engine, images
        self.calibration_images = calibration_images
        graph = engine.graph
        first = np.array([group.layers[0] for group in graph.groups] + [-1], dtype=np.int64)
        # Frozen atoms, whose group is -1, are there from the start.
        self._first_maker = first[graph.atom_group]
        self._lock = RLock()
        self._state = engine.current_state()
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_prefix": None, "_pruned": None, "_dense": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()

    def forget(self) -> None:
        """Drop what is kept of the plans before."""
        with self._lock:
            self._prefix: _Prefix | None = None
            self._pruned: Pruned | None = None
            self._dense: Pruned | None = None

    def logits(self, plan: CompressionPlan, decided: int) -> torch.Tensor:
        """Outputs of the plan's network: float32 (images, classes).

        Args:
            plan: any plan for the network.
            decided: number of layers, from the first, that later plans are expected to share.
                It has no influence on the result.
        """
        device = self.images.device
        with (
            self._lock,
            self.engine.lock,
            torch.inference_mode(),
            convolution_precision(device, tensor_cores=False),
        ):
            found = self._logits(plan, decided)
        return found.clone()  # which, not made in inference mode, may take part in training

    def _logits(self, plan: CompressionPlan, decided: int) -> torch.Tensor:
        state = self.engine.current_state()
        if state != self._state:
            self.forget()
            self._state = state
        program, kept = self.engine.program, plan.kept_atoms(self.engine.graph)
        marks = [self._mark(step, plan, kept) for step in program.steps]
        start = self._start(marks)
        stop = max(start.place, self._first_open_step(decided))
        pruned, walked = self._calibrated(kept, start, stop)
        steps = program.steps[start.place :]
        needed = {index for step in steps for index in self._layers(step)}
        prepared = self.engine.preparer.prepare(plan, pruned, needed)

        first = self._ending_in_floats(start.place, stop)

        def run(values: Values) -> tuple[Values, torch.Tensor]:
            with torch.inference_mode():
                before = run_steps(prepared, first, copied(values))
                after = run_steps(prepared, program.steps[stop:], copied(before))
                return before, result_of(program, after)

        found = self.engine.workers.map(run, start.batches, threads_for(self.images.device))
        batches, outputs = [before for before, _ in found], [output for _, output in found]
        self._prefix = _Prefix(stop, tuple(marks[:stop]), walked, batches)
        return torch.cat(outputs)

    def _ending_in_floats(self, start: int, stop: int) -> list[LayerStep | PlainStep]:
        """Steps that hand on floats to those after them, whatever codes these will want."""
        steps = self.engine.program.steps
        later = {node for step in steps[stop:] for node in reads(step)}
        return [
            replace(step, readers=None)
            if isinstance(step, LayerStep) and step.target in later
            else step
            for step in steps[start:stop]
        ]

    # -- what changed --------------------------------------------------------------------------

    def _start(self, marks: list[bytes]) -> _Prefix:
        """The kept prefix if the plan shares it, else the images themselves."""
        prefix = self._prefix
        if prefix is not None and prefix.marks == tuple(marks[: prefix.place]):
            return prefix
        program = self.engine.program
        parts = split(self.images, self.engine.batch_size, threads_for(self.images.device))
        calibration = at_start(program, self.calibration_images, self.engine.calibration_dtype)
        return _Prefix(0, (), calibration, [{program.input: part} for part in parts])

    def _mark(self, step: LayerStep | PlainStep, plan: CompressionPlan, kept: np.ndarray) -> bytes:
        """What a step does to the values it reads, as far as plans differ in it."""
        found = [bytes([bool(kept.all())]), *(kept[atoms].tobytes() for atoms in self._atoms(step))]
        for index in self._layers(step):
            found.append(bytes([plan.weight_bits[index], plan.activation_bits[index]]))
        return b"".join(found)

    def _first_open_step(self, decided: int) -> int:
        """The first step that a layer which is not decided yet has a say in."""
        for place, step in enumerate(self.engine.program.steps):
            layers = self._layers(step)
            makers = [self._first_maker[atoms].max(initial=-1) for atoms in self._atoms(step)]
            if max([*layers, *makers], default=-1) >= decided:
                return place
        return len(self.engine.program.steps)

    def _layers(self, step: LayerStep | PlainStep) -> list[int]:
        if isinstance(step, LayerStep):
            return [step.layer]
        index = self.engine.graph.layer_index.get(called_module(step))
        return [] if index is None else [index]

    def _atoms(self, step: LayerStep | PlainStep) -> list[np.ndarray]:
        graph = self.engine.graph
        found = [graph.layers[index] for index in self._layers(step)]
        atoms = [each for layer in found for each in (layer.in_atoms, layer.out_atoms)]
        if isinstance(step, PlainStep) and called_module(step) in graph.channels:
            atoms.append(graph.channels[called_module(step)])
        return atoms

    # -- calibration ---------------------------------------------------------------------------

    def _calibrated(self, kept: np.ndarray, start: _Prefix, stop: int) -> tuple[Pruned, Walk]:
        """The network with these channels, and the walk of its calibration up to a step."""
        program = self.engine.program
        if kept.all():
            if self._dense is None:
                self._dense = self._without_pruning(kept)
            # The calibration images stay at the start: what they see there changes with the
            # first channel that goes.
            return self._dense, start.walk
        pruned = self._pruned
        if pruned is not None and np.array_equal(pruned.kept, kept):
            return pruned, walk(program, pruned.modules.__getitem__, start.walk, stop, True)
        modules = pruned_modules(self.engine.graph, kept)
        find = modules.__getitem__
        walked = walk(program, find, start.walk, stop, True)
        done = walk(program, find, walked, len(program.steps), True)
        set_statistics(find, done.statistics)
        samples = [done.samples[index] for index in range(len(self.engine.graph.layers))]
        self._pruned = Pruned(kept, modules, samples)
        return self._pruned, walked

    def _without_pruning(self, kept: np.ndarray) -> Pruned:
        graph, program = self.engine.graph, self.engine.program
        modules = pruned_modules(graph, kept)
        dtype = self.engine.calibration_dtype
        samples = calibrate(modules, graph, self.calibration_images, False, program, dtype)
        return Pruned(kept, modules, samples)


class WholeEngine:
    """Any engine in the place of a `StepwiseEngine`: it runs every plan from the start.

    Args:
        engine: what runs them.
        images: float32 (images, channels, height, width), normalised.
    """

    def __init__(self, engine: Engine, images: torch.Tensor) -> None:
        self.engine, self.images = engine, images

    def logits(self, plan: CompressionPlan, decided: int) -> torch.Tensor:
        """Outputs of the plan's network: float32 (images, classes)."""
        return self.engine.logits(plan, self.images)


class StepEvaluator:
    """Evaluates the plan after every step of an episode that decides layer by layer.

    Args:
        engine: runs the plans on its images.
        labels: int64 (images,).
    """

    def __init__(self, engine: StepwiseEngine | WholeEngine, labels: torch.Tensor) -> None:
        self.engine, self.labels = engine, labels.cpu()

    def evaluate(self, plan: CompressionPlan, decided: int) -> Evaluation:
        """Run a plan of which so many layers are decided."""
        logits = self.engine.logits(plan, decided).detach().float().cpu()
        return Evaluation(logits, self.labels)
