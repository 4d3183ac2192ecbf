"""The environment: an agent says how much to keep and how many bits to spend, and sees a graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from torch import nn

from compress_env.actions import Choice, check_arguments
from compress_env.checks import check_choice, check_count, check_flag
from compress_env.complexity import LATENCY
from compress_env.data import Splits
from compress_env.graphs import ObservationGraph, to_dgl
from compress_env.importance import Importance
from compress_env.latency.cost import check_latency_table
from compress_env.layer_actions import LayerActionDecoder
from compress_env.observations import (
    OBSERVATIONS,
    ObservationContext,
    ObservationFactory,
    ObservedState,
)
from compress_env.plan import CompressionPlan
from compress_env.rendering import draw_plan, layer_table
from compress_env.rewards import MISSED_TARGET_REWARD, REWARDS, Reward
from compress_env.spaces import GraphSpace
from compress_env.step_evaluation import StepEvaluation, check_step_evaluation
from compress_env.task import CompressionTask, EngineFactory

STEP_MODES = ("network", "layer")
CHANNEL_ACTIONS = ("count", "choice")


class Appraisal(NamedTuple):
    """What a plan is found to be worth.

    Attributes:
        reward: what the reward function pays for it.
        accuracy: of its network on the search split, 0 to 1.
    """

    reward: float
    accuracy: float


class JointPruneQuantEnv(gymnasium.Env[ObservationGraph, np.ndarray]):
    """Compress a trained CNN: remove channels, choose bit-widths, keep the accuracy.

    ## Description

    A trained network is given, with images that it classifies. The agent decides for every coupling
    group (channels of several layers that can only go together) which share of the channels stays,
    and for every layer how many bits its weights and its input get. Channels are removed for
    real, BatchNorm statistics are re-estimated, weights and activations are quantized, and the
    accuracy of what results is the reward. It carries out the joint pruning-quantization paper
    (2024) and, with `metric="macs", bits=[32]`, the task of GNN-RL (ICML 2022).

    ## Action space

    `Box(-1, 1, float32)`. Zero everywhere is the plan a person would try first: uniform bits that
    meet the target, nothing pruned.

    | `step_mode` | shape | entries |
    |---|---|---|
    | `"network"` | `(groups + 2 * layers,)` | one per coupling group; then two per layer |
    | `"layer"` | `(3,)` | channels, weight bits and activation bits of one layer |

    The two per layer are its weight bits and the bits of its input, layer by layer. In `"layer"`
    mode the number for channels holds for the groups that this layer is the first to make.
    With `channel_action="choice"` there is in its place one number for every channel of these
    groups, in their order; the shape is that of the layer with most, and a layer with fewer does
    not look at the rest.

    A number for bits moves the layer away from its uniform bits, up or down by as many as reach
    every allowed width, and is rounded. A number for channels keeps `1 - min(number, 0)**2` of
    them, at least one: those that `importance` puts first. A number for one channel keeps it where
    it is positive and removes it where it is negative; zero does what the base plan does.

    ## Observation space

    `GraphSpace`: a `dgl.DGLGraph`, by default (`observation="layer"`) with a node per layer, edges
    of type `flow` (data) and `coupling` (channels that go together), named node features and
    globals; see `compress_env.observations.layer`, `env.unwrapped.node_columns` and
    `.global_columns`. All observations: `compress_env.observations`.
    `compress_env.wrappers` turns it into a padded `Dict` or a `GraphInstance`.

    ## Rewards

    0 before the episode ends; at the end the accuracy on the search split (or what `reward` says);
    -1 if the episode ends without having met the target. Test images are never looked at.

    With `dense_reward` every step is paid what `reward` gives for the plan so far, less what the
    steps before were paid, so that the rewards of an episode add up to the same as without.

    ## Starting state

    The dense network: every channel, 32 bits.

    ## Episode end

    `"network"` mode: every step acts on the whole network; pruning accumulates, bits are set.
    Terminated when the reduction has reached the target; truncated after `max_steps` without.
    With `project_to_budget` (the default) the action is first moved onto the budget: all bits are
    shifted together until the target is just met, so that one step is an episode.

    `"layer"` mode: one step per layer in the order of the data flow; what a step may spend is
    bounded so that the target stays in reach. Terminated at the last layer.

    ## Information

    Every step: `reduction`, `macs`, `bops`, `params`, `size_bits`, `target_met`, and with
    `metric="latency"` also `latency_ms`. When the plan was evaluated also `accuracy`,
    `accuracy_drop`. At the end of an episode `plan` (`CompressionPlan`).

    With `evaluate_every_step` the plan is evaluated at every step: layers that are decided have
    their bits, groups that are decided their channels, all others are dense and in float32. Before
    the end `accuracy` is that of this plan on the first `step_images` images of the search split,
    calibrated on the first `step_images` calibration images, and `accuracy_drop` is against the
    dense network on the same images. At the end both are as always: all images.

    ## Arguments

    Args:
        network: name of a network, `"module.path:factory"`, or an `nn.Module` with its weights.
        dataset: `"digits"` (embedded), `"cifar10"`, `"cifar100"`, `"imagefolder"`, `"imagenet"`,
            or a `compress_env.data.Splits`.
        data_root: folder of the data set, where it needs one.
        weights: file of the dense weights: safetensors or a torch checkpoint. None takes the
            embedded or published ones.
        target_reduction: share of the dense cost to remove, above 0 and below 1. The default is
            the joint paper's for ResNet-20.
        metric: what the reduction is measured in: `"bops"`, `"macs"`, `"params"`, `"size"`,
            `"latency"`.
        latency_table: for `metric="latency"`, HAQ's idea: file with the milliseconds of every
            layer, in float32 and in 8-bit integers, at several numbers of channels. It is measured
            once on the machine that counts, by `compress-agents latency-table` or
            `compress_env.latency.LatencyTable.measure`, for this network and size of images. The
            reduction is then 1 - milliseconds / milliseconds of the dense network in float32. The
            engines have no kernels for fewer bits than 8, so bits from 2 to 8 cost the same.
        bits: allowed bit-widths, from 2 to 8; `[32]` prunes only.
        step_mode: `"network"` or `"layer"`.
        channel_action: in `"layer"` mode, whether an action says how many channels of a layer stay
            (`"count"`) or which (`"choice"`).
        observation: `"layer"`, `"hierarchical"`, `"channel"`, or a callable that makes one, see
            `compress_env.observations`.
        evaluate_every_step: in `"layer"` mode, whether every step's information holds the accuracy
            of the plan so far. A `"fast"` engine computes only what is new since the step before.
        step_images: images that steps before the last are evaluated on, and calibrated on.
        dense_reward: with `evaluate_every_step`, whether steps before the last are paid as well.
        max_steps: steps of an episode in `"network"` mode, at least 1.
        project_to_budget: whether an action of `"network"` mode is moved onto the budget.
        importance: which channels stay: `"l1"`, `"l2"`, `"geometric_median"`, `"norm_scale"`,
            `"taylor"`, `"random"`, or a callable.
        reward: `"accuracy"`, `"agreement"`, `"divergence"`, `"accuracy_and_divergence"`, or a
            callable `(evaluation, dense evaluation) -> float`.
        search_images: images of the search split that a plan is evaluated on.
        calibration_images: images for BatchNorm statistics and activation ranges.
        first_last_bits: bits of first and last layer, which are then not searched; None
            searches them too. They count in the reduction with the bits they have.
        channel_multiple: kept channels are rounded to a multiple of this.
        image_size: side of the images, for data sets that can be scaled.
        device: where the networks run.
        seed: of the splits and the choice of images.
        engine: `"fast"`, `"reference"` (slow, the definition), or a factory.
        finetune_steps: steps of training a plan's network gets before it is evaluated; with any,
            an evaluation takes seconds to minutes, and `engine` is not used.
        calibration_dtype: `"float32"`, `"bfloat16"`, or `"auto"`: bfloat16 on a processor with
            matrix instructions for it, else float32. The two give accuracies a little apart.
        render_mode: `"ansi"` (a table of layers) or `"rgb_array"` (kept channels and bits drawn).

    Raises:
        ValueError: an argument is not allowed or the target cannot be reached; the message names
            the argument and what is allowed.

    ## Version history

    v0: first version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}  # noqa: RUF012
    _paid: float
    _over: bool

    def __init__(
        self,
        network: str | nn.Module = "resnet20",
        dataset: str | Splits = "digits",
        *,
        data_root: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        target_reduction: float = 0.9636,
        metric: str = "bops",
        latency_table: str | os.PathLike[str] | None = None,
        bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
        step_mode: str = "network",
        channel_action: str = "count",
        observation: str | ObservationFactory = "layer",
        evaluate_every_step: bool = False,
        step_images: int = 32,
        dense_reward: bool = False,
        max_steps: int = 10,
        project_to_budget: bool = True,
        importance: str | Importance = "l1",
        reward: str | Reward = "accuracy",
        search_images: int = 1000,
        calibration_images: int = 128,
        first_last_bits: int | None = 8,
        channel_multiple: int = 1,
        image_size: int | None = None,
        device: str = "cpu",
        seed: int = 0,
        engine: str | EngineFactory = "fast",
        finetune_steps: int = 0,
        calibration_dtype: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        check_choice("step_mode", step_mode, STEP_MODES)
        check_choice("channel_action", channel_action, CHANNEL_ACTIONS)
        if channel_action == "choice" and step_mode != "layer":
            raise ValueError("channel_action must be 'count' unless step_mode is 'layer'")
        check_count("max_steps", max_steps)
        check_choice("reward", reward, REWARDS, own=True)
        check_flag("project_to_budget", project_to_budget)
        check_choice("observation", observation, OBSERVATIONS, own=True)
        check_step_evaluation(evaluate_every_step, step_images, dense_reward, step_mode)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be 'ansi' or 'rgb_array', not '{render_mode}'")
        check_arguments(target_reduction, metric, bits, first_last_bits, channel_multiple)
        check_latency_table(metric, latency_table)
        self.task = CompressionTask(
            network,
            dataset,
            data_root=data_root,
            weights=weights,
            importance=importance,
            search_images=search_images,
            calibration_images=calibration_images,
            image_size=image_size,
            device=device,
            seed=seed,
            engine=engine,
            finetune_steps=finetune_steps,
            calibration_dtype=calibration_dtype,
        )
        self.decoder = self.task.decoder(
            target_reduction=target_reduction,
            metric=metric,
            bits=bits,
            first_last_bits=first_last_bits,
            channel_multiple=channel_multiple,
            latency_table=latency_table,
        )
        self.layer_decoder = LayerActionDecoder(self.decoder)
        self.step_mode, self.max_steps = step_mode, max_steps
        self.project_to_budget = project_to_budget
        self.reward_function = REWARDS[reward] if isinstance(reward, str) else reward
        self.metric, self.target_reduction = metric, float(target_reduction)
        self.render_mode = render_mode
        factory = OBSERVATIONS[observation] if isinstance(observation, str) else observation
        self.observer = factory(
            ObservationContext(
                self.task.graph,
                self.task.costs,
                self.task.importance,
                self.task.ranks,
                self.decoder.fixed,
                self.task.calibration.images,
                step_mode,
            )
        )
        # An attribute, so that a search can put a memory of known plans in front of it.
        self.appraise: Callable[[CompressionPlan], Appraisal] = self._appraise
        self.step_evaluation = (
            StepEvaluation(self.task, step_images, self.reward_function)
            if evaluate_every_step
            else None
        )
        self.dense_reward = dense_reward
        self.layers_to_decide = len(self.task.graph.layers)
        self.chooses_channels = channel_action == "choice"
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._action_size(),), np.float32)
        self._start()
        self.observation_space = self._graph_space()

    # -- what others may ask -----------------------------------------------------------------

    @property
    def node_columns(self) -> tuple[str, ...]:
        """Names of the node features, in order; of several node types those of the first."""
        return self.observer.schema.nodes[0].columns

    @property
    def global_columns(self) -> tuple[str, ...]:
        """Names of the globals, in order."""
        return self.observer.schema.globals

    @property
    def group_membership(self) -> np.ndarray:
        """Bool (groups, layers): which layers make the channels of a coupling group."""
        return self.task.graph.group_membership

    @property
    def plan(self) -> CompressionPlan:
        """The current plan."""
        return self._plan

    # -- Gymnasium ---------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationGraph, dict[str, Any]]:
        """Start an episode from the dense network."""
        super().reset(seed=seed)
        self._start()
        return self._observe(), self._info()

    def step(
        self, action: np.ndarray
    ) -> tuple[ObservationGraph, float, bool, bool, dict[str, Any]]:
        """Apply an action to the plan.

        Raises:
            ValueError: the action has another shape, or holds NaN or infinities.
            RuntimeError: the episode is over.
        """
        if self._over:
            raise RuntimeError("the episode is over: call reset() before the next step()")
        values = self._check_action(action)
        if self.step_mode == "layer":
            terminated, truncated = self._step_layer(values)
        else:
            terminated, truncated = self._step_network(values)
        self._plan = self.decoder.plan(self._choice)
        info = self._info()
        reward = 0.0
        if terminated:
            appraisal = self.appraise(self._plan)
            info["accuracy"] = appraisal.accuracy
            info["accuracy_drop"] = self.task.dense_evaluation.accuracy - appraisal.accuracy
            reward = appraisal.reward
        elif truncated:
            reward = MISSED_TARGET_REWARD
        elif self.step_evaluation is not None:
            figures, value = self.step_evaluation.evaluate(self._plan, self._steps)
            info.update(figures)
            reward = value if self.dense_reward else 0.0
        if self.dense_reward:
            reward -= self._paid
            self._paid += reward
        self._over = terminated or truncated
        if self._over:
            info["plan"] = self._plan
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> Any:
        """The current plan as text or as a picture, uint8 (height, width, 3)."""
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() needs a render_mode: gymnasium.make(..., render_mode='ansi')"
            )
            return None
        if self.render_mode == "ansi":
            return layer_table(self.task.graph, self.task.costs, self._plan)
        return draw_plan(self.task.graph, self._plan)

    # -- steps -------------------------------------------------------------------------------

    def _appraise(self, plan: CompressionPlan) -> Appraisal:
        evaluation = self.task.evaluator.evaluate(plan)
        reward = float(self.reward_function(evaluation, self.task.dense_evaluation))
        return Appraisal(reward, evaluation.accuracy)

    def _action_size(self) -> int:
        if self.step_mode == "network":
            return self.decoder.network_action_size
        return self.layer_decoder.choice_size if self.chooses_channels else 3

    def _start(self) -> None:
        self._steps = 0
        self._paid = 0.0  # what the steps of this episode were paid
        self._over = False
        self._choice: Choice = self.decoder.dense()
        self._plan = self.decoder.plan(self._choice)

    def _step_network(self, action: np.ndarray) -> tuple[bool, bool]:
        self._steps += 1
        self._choice = self.decoder.decode(action, self._choice, self.project_to_budget)
        met = self.decoder.target_met(self._choice)
        return met, not met and self._steps >= self.max_steps

    def _step_layer(self, action: np.ndarray) -> tuple[bool, bool]:
        decode = (
            self.layer_decoder.decode_choice if self.chooses_channels else self.layer_decoder.decode
        )
        self._choice = decode(action, self._steps, self._choice)
        self._steps += 1
        done = self._steps >= self.layers_to_decide
        met = done and self.decoder.target_met(self._choice)
        return met, done and not met

    def _check_action(self, action: np.ndarray) -> np.ndarray:
        values = np.asarray(action)
        if values.dtype.kind not in "fiub":
            raise ValueError(f"action must be real numbers, not {values.dtype}")
        values = values.astype(np.float64)
        if values.shape != self.action_space.shape:
            raise ValueError(
                f"action must have shape {self.action_space.shape}, not {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError("action must be finite: it holds NaN or infinity")
        clipped: np.ndarray = np.clip(values, -1.0, 1.0)
        return clipped

    # -- observation -------------------------------------------------------------------------

    def _reduction(self) -> float:
        return self.decoder.reduction(self._plan)

    def _state(self) -> ObservedState:
        total = self.layers_to_decide if self.step_mode == "layer" else self.max_steps
        undecided = self.step_mode == "layer" and self._steps < total
        return ObservedState(
            plan=self._plan,
            reduction=self._reduction(),
            target_reduction=self.target_reduction,
            steps_left=1.0 - self._steps / total,
            next_layer=self._steps if undecided else -1,
        )

    def _observe(self) -> ObservationGraph:
        return to_dgl(self.observer.observe(self._state()), self.observer.schema)

    def _graph_space(self) -> GraphSpace:
        schema, size = self.observer.schema, self.observer.max_size
        if size is None:
            return GraphSpace.like(self.observer.observe(self._state()), schema)
        return GraphSpace(schema, max_nodes=size[0], max_edges=size[1])

    def _info(self) -> dict[str, Any]:
        cost = self.task.complexity(self._plan)
        measured = self.metric == LATENCY
        return {
            **({"latency_ms": self.decoder.cost_of(self._choice)} if measured else {}),
            "reduction": self._reduction(),
            "macs": cost.macs,
            "bops": cost.bops,
            "params": cost.params,
            "size_bits": cost.size_bits,
            "target_met": bool(self.decoder.target_met(self._choice)),
        }
