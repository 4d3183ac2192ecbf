"""From a plan to its accuracy."""

from compress_env.evaluation.evaluator import Engine, Evaluation, Evaluator
from compress_env.evaluation.fast import FastEngine
from compress_env.evaluation.networks import evaluate_network, run_network
from compress_env.evaluation.reference import ReferenceEngine
from compress_env.evaluation.stepwise import StepEvaluator, StepwiseEngine, WholeEngine

__all__ = [
    "Engine",
    "Evaluation",
    "Evaluator",
    "FastEngine",
    "ReferenceEngine",
    "StepEvaluator",
    "StepwiseEngine",
    "WholeEngine",
    "evaluate_network",
    "run_network",
]
