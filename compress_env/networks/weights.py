"""Reading, writing and finding the weights of a network."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

__all__ = ["Checkpoint", "default_weights", "load_weights", "read_metadata", "save_weights"]

_CIFAR10 = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
_TORCHVISION = "https://download.pytorch.org/models/"
_EXAMPLES = 3


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose file name carries the first digits of its SHA-256."""

    folder: str
    file: str

    @property
    def url(self) -> str:
        """Where it is published."""
        return self.folder + self.file

    @property
    def hash_prefix(self) -> str:
        """First digits of its SHA-256."""
        return self.file.rpartition("-")[2].partition(".")[0]


CHECKPOINTS: dict[tuple[str, str], Checkpoint] = {
    # Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch".
    ("resnet20", "cifar10"): Checkpoint(_CIFAR10, "resnet20-12fca82f.th"),
    ("resnet32", "cifar10"): Checkpoint(_CIFAR10, "resnet32-d509ac18.th"),
    ("resnet44", "cifar10"): Checkpoint(_CIFAR10, "resnet44-014dd654.th"),
    ("resnet56", "cifar10"): Checkpoint(_CIFAR10, "resnet56-4bfd9763.th"),
    ("resnet110", "cifar10"): Checkpoint(_CIFAR10, "resnet110-1d1ed7c2.th"),
    # torchvision's first set, IMAGENET1K_V1: the baselines that the papers compress.
    ("resnet18_imagenet", "imagenet"): Checkpoint(_TORCHVISION, "resnet18-f37072fd.pth"),
    ("resnet50_imagenet", "imagenet"): Checkpoint(_TORCHVISION, "resnet50-0676ba61.pth"),
    ("vgg16_imagenet", "imagenet"): Checkpoint(_TORCHVISION, "vgg16_bn-6c64b313.pth"),
    ("mobilenet_v2_imagenet", "imagenet"): Checkpoint(_TORCHVISION, "mobilenet_v2-b0353104.pth"),
    ("shufflenet_v2_imagenet", "imagenet"): Checkpoint(
        _TORCHVISION, "shufflenetv2_x1-5666bf0f80.pth"
    ),
}
"""Published weights by network and data set."""


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a file into a network, in place.

    Args:
        network: the network they are for.
        path: a safetensors file, or a torch checkpoint: a state dict, or a dict that holds one
            as ``state_dict``; the prefix ``module.`` of its keys is dropped.

    Raises:
        ValueError: the file cannot be read, would need arbitrary pickle, or does not fit.
    """
    state = _without_prefix(_read_state(Path(path)))
    own = network.state_dict()
    # Checkpoints older than torch 0.4.1 do not count batches; nothing uses the count.
    count = "num_batches_tracked"
    missing = [key for key in own if key not in state and not key.endswith(count)]
    unexpected = [key for key in state if key not in own and not key.endswith(count)]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{word}: {', '.join(keys[:_EXAMPLES])}{f' and {rest} more' if rest > 0 else ''}"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
        if keys
        for rest in (len(keys) - _EXAMPLES,)
    ]
    if problems:
        raise ValueError(f"weights {path} do not fit the network; {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)


def save_weights(
    network: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write a network's weights as safetensors, so that the file is whole or not there.

    Args:
        network: the network.
        path: the file; its folder is made.
        metadata: strings that :func:`read_metadata` gives back.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    state = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    # save_file would make it readable for its owner alone.
    partial.write_bytes(save(state, dict(metadata)))
    os.replace(partial, target)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings stored beside the weights in a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"weights {path} cannot be read as safetensors: {error}") from error


def default_weights(network_name: str, dataset_name: str) -> Path | None:
    """The file of a network's published or embedded weights, fetched where it must be.

    Args:
        network_name: a key of ``NETWORKS``.
        dataset_name: the data set they were trained on.

    Returns:
        The file, or None where there is no such thing. The weights embedded in the package come
        first; published ones are fetched once into torch.hub's folder, with their hash checked.

    Raises:
        ValueError: they have to be fetched and cannot be; the message says which file to put
            where.
    """
    embedded = Path(str(files("compress_env") / "assets" / f"{network_name}-{dataset_name}"))
    embedded = embedded.with_name(embedded.name + ".safetensors")
    if embedded.is_file():
        return embedded
    checkpoint = CHECKPOINTS.get((network_name, dataset_name))
    return None if checkpoint is None else _fetch(checkpoint)


def _fetch(checkpoint: Checkpoint) -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / checkpoint.file
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(checkpoint.url, str(target), checkpoint.hash_prefix)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights: fetching {checkpoint.url} failed ({error}); put that file at {target}, "
            "or name a file with weights="
        ) from error
    return target


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights must be a file, there is none at {path}")
    try:
        if _is_safetensors(path):
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights {path} would need arbitrary pickle to load, or are not a checkpoint; save "
            "them as torch.save(network.state_dict(), path) or as safetensors"
        ) from error
    except Exception as error:  # torch's unpickler raises whatever a file makes it stumble over
        raise ValueError(
            f"weights {path} can be read neither as safetensors nor as a torch checkpoint"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"weights {path} must hold a state dict, or a dict with one inside")
    return dict(content)


def _is_safetensors(path: Path) -> bool:
    # A safetensors file is eight bytes of header length and then a JSON object.
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)
