"""Gymnasium environments in which an agent compresses a CNN by pruning and quantizing it."""

from compress_env.compression import compress
from compress_env.env import JointPruneQuantEnv
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan
from compress_env.registration import register_environments

__all__ = ["CompressionPlan", "JointPruneQuantEnv", "LayerGraph", "compress", "trace"]
__version__ = "0.1.0"

register_environments()
