"""Compressed networks as files that other programs run: ONNX, and PyTorch's own programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import fx, nn

from compress_env.export.int8_weights import with_int8_weights
from compress_env.plan import CompressionPlan
from compress_env.tracing import symbolic_trace

__all__ = ["export_onnx", "export_torch"]


def export_onnx(
    compressed: nn.Module,
    input_shape: Sequence[int],
    path: str | os.PathLike[str],
    *,
    plan: CompressionPlan | None = None,
    low_bit_storage: bool = True,
    calibration_images: torch.Tensor | None = None,
) -> None:
    """Write a compressed (or dense) network as ONNX, in QDQ form at the scales of its plan.

    By default the file means exactly what the network computes: sums of products of codes, scaled,
    plus a float bias, and floats between layers where the network has them; what is left to the
    runtime is how a value in the very middle between two codes is rounded. OpenVINO runs that in
    integer kernels. ONNX Runtime's integer kernels want more: integer biases, and 8-bit codes
    behind every convolution. With `calibration_images` the file has both. It is then faster there
    (docs/results.md has figures), and about as accurate, but no longer the same: where layers have
    few bits, predictions differ on some percent of the images.

    The input "images" is float32 (batch, channels, height, width), normalised; the output "logits"
    is (batch, classes), of several outputs the first; the batch dimension is free.

    Args:
        compressed: what `compress_env.compress` returns, or a dense network.
        input_shape: channels, height and width of an image.
        path: of the file. It is written atomically.
        plan: kept in the file's metadata: "plan" is its JSON, "network" its network.
        low_bit_storage: whether weights of 4 bits and fewer are stored as INT4, else as INT8. ONNX
            Runtime reads INT4 from version 1.23.
        calibration_images: None for the exact form; for the integer form, float32
            (images, channels, height, width), normalised: the ranges of results come from them.

    Raises:
        ValueError: the network has an operation that cannot be written; the message names it.
        ImportError: onnx is not installed.
    """
    try:
        from onnx import checker  # noqa: PLC0415  (an extra)

        from compress_env.export.onnx_writer import INPUT, OUTPUT, OnnxWriter  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "export to ONNX needs the package onnx: pip install 'compress-env[export]'"
        ) from error
    channels, height, width = (int(size) for size in input_shape)
    shape = (channels, height, width)
    module = compressed if isinstance(compressed, fx.GraphModule) else symbolic_trace(compressed)
    writer = OnnxWriter(module.eval(), shape, low_bit_storage, calibration_images)
    metadata = {"form": "exact" if calibration_images is None else "integer"}
    if plan is not None:
        metadata["network"] = plan.network
        metadata["plan"] = json.dumps(plan.to_json(), separators=(",", ":"))
    content = writer.graph.finish(INPUT, shape, {OUTPUT: writer.output_shape}, metadata)
    checker.check_model(content, full_check=True)
    _write(path, lambda temporary: temporary.write_bytes(content.SerializeToString()))


def export_torch(
    compressed: nn.Module, input_shape: Sequence[int], path: str | os.PathLike[str]
) -> None:
    """Save a compressed network as a program of `torch.export` (.pt2), batch dimension free.

    Load it with `torch.export.load(path).module()`; it needs PyTorch alone and gives the same
    outputs. Weights are stored as 8-bit integers, whatever their bits, and computed with as floats.

    Args:
        compressed: what `compress_env.compress` returns, or a dense network.
        input_shape: channels, height and width of an image.
        path: of the file; its name must end in ".pt2". It is written atomically.

    Raises:
        ValueError: the file's name has another ending.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, not '{Path(path).name}'")
    parameter = next(compressed.parameters(), torch.empty(0))
    images = torch.zeros(2, *input_shape, device=parameter.device)
    batch = torch.export.Dim("batch", min=1)
    network = with_int8_weights(compressed).eval()
    with torch.no_grad():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: batch},), strict=False
        )
    _write(path, lambda temporary: torch.export.save(program, temporary))


def _write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    write(temporary)
    os.replace(temporary, path)
