"""What the steps before the last of a layer-by-layer episode achieve."""

from __future__ import annotations

from functools import cached_property

from compress_env.checks import check_count, check_flag
from compress_env.evaluation import (
    Evaluation,
    FastEngine,
    StepEvaluator,
    StepwiseEngine,
    WholeEngine,
)
from compress_env.plan import CompressionPlan
from compress_env.rewards import Reward
from compress_env.task import CompressionTask


def check_step_evaluation(
    evaluate_every_step: object, step_images: object, dense_reward: object, step_mode: str
) -> None:
    """Refuse what cannot be meant.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    check_flag("evaluate_every_step", evaluate_every_step)
    check_flag("dense_reward", dense_reward)
    check_count("step_images", step_images)
    if evaluate_every_step and step_mode != "layer":
        raise ValueError("evaluate_every_step must be False unless step_mode is 'layer'")
    if dense_reward and not evaluate_every_step:
        raise ValueError("dense_reward must be False unless evaluate_every_step is True")


class StepEvaluation:
    """Evaluates plans whose last layers are not decided yet, on a few images.

    Args:
        task: the task; its engine, unless it is a `FastEngine`, runs the whole network each time.
        images: images of the search split to evaluate on, and calibration images to calibrate on;
            all, if there are fewer.
        reward: what an evaluation is paid.
    """

    def __init__(self, task: CompressionTask, images: int, reward: Reward) -> None:
        self._reward, self._dense_plan = reward, task.dense_plan
        some, calibration = task.search.images[:images], task.calibration.images[:images]
        engine: StepwiseEngine | WholeEngine
        if isinstance(task.engine, FastEngine):
            engine = StepwiseEngine(task.engine, calibration, some)
        else:
            engine = WholeEngine(task.new_engine(calibration), some)
        self.evaluator = StepEvaluator(engine, task.search.labels[:images])

    @cached_property
    def dense(self) -> Evaluation:
        """The dense network on the same images."""
        return self.evaluator.evaluate(self._dense_plan, 0)

    def evaluate(self, plan: CompressionPlan, decided: int) -> tuple[dict[str, float], float]:
        """Accuracy and its drop, and the reward, of a plan whose first layers are decided."""
        dense, found = self.dense, self.evaluator.evaluate(plan, decided)
        figures = {
            "accuracy": found.accuracy,
            "accuracy_drop": dense.accuracy - found.accuracy,
        }
        return figures, float(self._reward(found, dense))
