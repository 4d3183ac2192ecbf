"""The compressed network as one file: codes packed at their bits, scales, and the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress_env.compression import quantize_network
from compress_env.layer_graph import trace
from compress_env.networks import NETWORKS, build_network
from compress_env.networks.weights import read_metadata
from compress_env.plan import FLOAT_BITS, CompressionPlan
from compress_env.pruning import prune
from compress_env.quantization import QuantizedLayer

COMPRESSED_FILE = "compressed.safetensors"
"""Name of the file in the folder of a fine-tuning."""

FINETUNED_FOLDER = "finetuned"
"""Name of that folder in the folder of a run."""

_FORMAT = "compress-env 1"
_CHUNK = 1 << 20


def save_compressed(
    network: nn.Module,
    path: str | os.PathLike[str],
    plan: CompressionPlan,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a compressed network so that the file is whole or not there.

    Args:
        network: what `compress_env.compress` or fine-tuning gave.
        path: the file; its folder is made.
        plan: the plan it was made by; its `network` names the dense network.
        num_classes: outputs of the network.
        input_shape: channels, height and width of an image.
        metadata: more to keep beside it; `read_metadata` gives it back.
    """
    widths = _packed_keys(network)
    state = {
        key: pack_codes(value, widths[key]) if key in widths else value.detach().cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    known = {
        "format": _FORMAT,
        "network": plan.network,
        "num_classes": str(num_classes),
        "input_shape": json.dumps(list(input_shape)),
        "plan": json.dumps(plan.to_json(), separators=(",", ":")),
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    copies = {key: value.clone() for key, value in state.items()}  # none may share memory
    partial.write_bytes(save(copies, {**(metadata or {}), **known}))
    os.replace(partial, target)


def load_compressed(path: str | os.PathLike[str], network: nn.Module | None = None) -> nn.Module:
    """Build a compressed network from its file.

    Args:
        path: the file, the folder of a fine-tuning that holds it, or the folder of a run that
            holds that one under the name "finetuned".
        network: the dense network, where it has no name by which it can be built; its weights do
            not matter.

    Returns:
        The network in evaluation mode, on the CPU, in channels-last order. On the same images,
        batch by batch, it gives bit for bit the outputs that the saved network has in this order
        (whose sums of floats, as in pooling, may differ in the last digit from the plain order's).

    Raises:
        ValueError: there is no such file, it does not hold a compressed network, or not one of
            this `network`.
    """
    file = find_compressed(path)
    try:
        metadata = read_metadata(file)
    except ValueError as error:
        raise ValueError(f"path: {file} does not hold a compressed network: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"path: {file} does not hold a compressed network")
    try:
        name, classes = metadata["network"], int(metadata["num_classes"])
        shape = [int(size) for size in json.loads(metadata["input_shape"])]
        plan = json.loads(metadata["plan"])
        state = load_file(file)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"path: {file} is damaged: {error}") from error
    return _filled(_skeleton(name, classes, shape, plan, network), state, file)


def find_compressed(path: str | os.PathLike[str]) -> Path:
    """The file of a compressed network, from what `load_compressed` takes.

    Raises:
        ValueError: there is none.
    """
    given = Path(path)
    places = (given, given / COMPRESSED_FILE, given / FINETUNED_FOLDER / COMPRESSED_FILE)
    for place in places:
        if place.is_file():
            return place
    if given.is_dir():
        raise ValueError(
            f"path: there is no compressed network in {given} (no {COMPRESSED_FILE}, nor one in a "
            f"folder {FINETUNED_FOLDER})"
        )
    raise ValueError(f"path: there is no compressed network at {given}")


def _skeleton(
    name: str, classes: int, shape: list[int], plan: Any, network: nn.Module | None
) -> nn.Module:
    """A network with the plan's modules; its values are of no meaning."""
    if network is None:
        if name not in NETWORKS and ":" not in name:
            raise ValueError(
                f"network must be given: '{name}' is no name by which it could be built"
            )
        with torch.random.fork_rng([]):
            network = build_network(name, classes)
    graph = trace(network, shape)
    checked = CompressionPlan.from_json(plan, graph)
    small = prune(graph, checked.kept_atoms(graph))
    return quantize_network(small, graph, checked, [torch.ones(1) for _ in graph.layers])


def _filled(network: nn.Module, state: dict[str, Tensor], file: Path) -> nn.Module:
    own, widths = network.state_dict(), _packed_keys(network)
    try:
        for key, bits in widths.items():
            state[key] = unpack_codes(state[key], bits, own[key].shape)
        network.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"network: {file} does not fit it: {error}") from error
    for module in network.modules():
        if isinstance(module, QuantizedLayer):
            module.choose_precision()
    network.to(memory_format=torch.channels_last)
    return network.cpu().requires_grad_(False).eval()


def _packed_keys(network: nn.Module) -> dict[str, int]:
    """Bits of every weight that is stored as packed codes, by its key in the state."""
    return {
        f"{name}.layer.{part}.weight" if part else f"{name}.layer.weight": module.weight_bits
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLayer) and module.weight_bits < FLOAT_BITS
        for part, inner in module.layer.named_modules()
        if isinstance(inner, (nn.Conv2d, nn.Linear))
    }


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack signed integer codes: `code + 2**(bits - 1)`, lowest bit first, without gaps.

    Args:
        codes: whole numbers of any dtype and shape, from `-2**(bits-1)` to `2**(bits-1) - 1`.
        bits: 2 to 8.

    Returns:
        uint8 (ceil(codes * bits / 8),).
    """
    values = (codes.detach().cpu().flatten() + (1 << (bits - 1))).numpy().astype(np.uint8)
    places = np.arange(bits, dtype=np.uint8)
    # A chunk fills whole bytes.
    chunks = [
        np.packbits((values[start : start + _CHUNK, None] >> places) & 1, bitorder="little")
        for start in range(0, len(values), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *chunks]))


def unpack_codes(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """What `pack_codes` was given, as float32.

    Raises:
        ValueError: there are too few or too many bytes for the shape.
    """
    count = shape.numel()
    if packed.dtype != torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} codes of {bits} bits")
    powers = np.int16(1) << np.arange(bits, dtype=np.int16)
    values = np.empty(count, dtype=np.float32)
    chunk_bytes = _CHUNK * bits // 8
    for index, start in enumerate(range(0, packed.numel(), chunk_bytes)):
        own = values[index * _CHUNK : (index + 1) * _CHUNK]
        taken = packed[start : start + chunk_bytes].numpy()
        digits = np.unpackbits(taken, count=own.size * bits, bitorder="little")
        own[:] = digits.reshape(-1, bits) @ powers - (1 << (bits - 1))
    return torch.from_numpy(values).view(shape)
