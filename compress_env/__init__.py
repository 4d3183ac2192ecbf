"""Gymnasium environments in which an agent compresses a CNN by pruning and quantizing it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress_env.compressed_file import load_compressed
from compress_env.compression import compress
from compress_env.layer_graph import LayerGraph, trace
from compress_env.plan import CompressionPlan
from compress_env.registration import register_environments

if TYPE_CHECKING:
    from compress_env.env import JointPruneQuantEnv

__all__ = [
    "CompressionPlan",
    "JointPruneQuantEnv",
    "LayerGraph",
    "compress",
    "load_compressed",
    "trace",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The environment's class when it is first asked for.

    It needs DGL, which compressing, fine-tuning and running a network do not: these work where
    there is no DGL.
    """
    if name == "JointPruneQuantEnv":
        return import_module("compress_env.env").JointPruneQuantEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_environments()
