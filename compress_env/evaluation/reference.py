"""The plain engine: build the compressed network and run it. Slow, and the definition."""

from __future__ import annotations

import torch

from compress_env.checks import logits_of
from compress_env.compression import compress
from compress_env.layer_graph import LayerGraph
from compress_env.plan import CompressionPlan


class ReferenceEngine:
    """Runs a plan's network with quantizers emulated in float32.

    Args:
        graph: layer graph of the dense network.
        calibration_images: float32 (images, channels, height, width), normalised.
        batch_size: images per forward pass.
        calibration_dtype: in what plans are calibrated, float32 or bfloat16; None takes
            `compress_env.calibration.fastest_dtype`.
    """

    def __init__(
        self,
        graph: LayerGraph,
        calibration_images: torch.Tensor,
        batch_size: int = 100,
        calibration_dtype: torch.dtype | None = None,
    ) -> None:
        self.graph = graph
        self.calibration_images = calibration_images
        self.batch_size = batch_size
        self.calibration_dtype = calibration_dtype

    def logits(self, plan: CompressionPlan, images: torch.Tensor) -> torch.Tensor:
        """Outputs of the plan's network: float32 (images, classes).

        Args:
            plan: a plan for the network of the graph.
            images: float32 (images, channels, height, width), normalised.
        """
        network = compress(self.graph, plan, self.calibration_images, self.calibration_dtype)
        # The order of the fast engine, so that float operations round alike.
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return torch.cat([logits_of(network(batch)) for batch in images.split(self.batch_size)])
