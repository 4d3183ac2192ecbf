import json
from dataclasses import replace

import pytest
import torch

from compress_env import network_training
from compress_env.data import load_splits
from compress_env.datasets.augmentation import augment
from compress_env.network_training import (
    NetworkTraining,
    accuracy,
    ensure_digits_weights,
    train_network,
)
from compress_env.networks import NETWORKS, build_network
from compress_env.networks.weights import default_weights, load_weights, read_metadata

# Dropout and BatchNorm, so that there is random and running state to restore.
TINY = """
from torch import nn
def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(288, num_classes),
    )
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    (tmp_path / "tiny_network.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    return NetworkTraining("tiny_network:tiny", "digits", epochs=10, device="cpu")


def test_interrupted_and_resumed_is_the_same_as_uninterrupted(options, tmp_path, monkeypatch):
    whole = train_network(options, tmp_path / "whole.safetensors")
    assert whole["search_accuracy"] > 0.9

    calls = iter(range(20))

    def interrupt(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return accuracy(*arguments)

    out = tmp_path / "resumed.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(network_training, "accuracy", interrupt)
        train_network(options, out)
    assert not out.exists()
    with pytest.raises(ValueError, match="resume must be set"):
        train_network(options, out)
    with pytest.raises(ValueError, match="another training: seed is 0 there and 1 here"):
        train_network(replace(options, seed=1), out, resume=True)
    resumed = train_network(options, out, resume=True)

    for figure in ("train_loss", "search_accuracy", "test_accuracy"):
        assert resumed[figure] == whole[figure]
    networks = [build_network(options.network, 10) for _ in range(2)]
    for network, name in zip(networks, ("whole", "resumed"), strict=True):
        load_weights(network, tmp_path / f"{name}.safetensors")
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[key], second[key]) for key in first)

    # Once finished, there is nothing left to do, and the file tells all.
    assert train_network(options, out, resume=True) == resumed
    assert not out.with_suffix(".checkpoint").exists()
    metadata = read_metadata(out)
    assert json.loads(metadata["results"]) == resumed
    assert metadata["command"] == options.command()


def test_training_leaves_the_callers_random_numbers_alone(options, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_network(replace(options, epochs=1), tmp_path / "w.safetensors")
    assert torch.equal(torch.rand(3), expected)


def test_embedded_weights_are_what_their_command_makes():
    path = default_weights("resnet20", "digits")
    assert ensure_digits_weights("resnet20") == path
    metadata = read_metadata(path)
    assert metadata["command"] == NetworkTraining("resnet20", "digits").command()
    assert metadata["command"] == (
        "compress-agents train-network --network resnet20 --dataset digits"
    )
    network = build_network("resnet20", 10)
    load_weights(network, path)
    splits = load_splits("digits")
    results = json.loads(metadata["results"])
    for split, images in (("search", splits.search), ("test", splits.test)):
        assert accuracy(network, images, splits) == pytest.approx(
            results[f"{split}_accuracy"], abs=0.003
        )
        assert results[f"{split}_accuracy"] >= 0.99


def test_augmentation_shifts_and_mirrors():
    image = torch.arange(1, 3 * 64 + 1, dtype=torch.uint8).reshape(1, 3, 8, 8)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0]
    shifted = {(dy, dx): padded[:, dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)}
    batch = image.expand(300, 3, 8, 8)

    def seen(mirror: bool) -> set[tuple[int, int, bool]]:
        found = set()
        for result in augment(batch, mirror, torch.Generator().manual_seed(0)):
            matches = [
                (*shift, flipped)
                for shift, expected in shifted.items()
                for flipped in (False, True)
                if torch.equal(result, expected.flip(2) if flipped else expected)
            ]
            assert len(matches) == 1
            found.add(matches[0])
        return found

    assert seen(mirror=False) == {(*shift, False) for shift in shifted}
    assert len(seen(mirror=True)) == 18


def test_learning_rate_schedules_by_hand():
    cosine = NetworkTraining("resnet20", "digits", learning_rate=0.2, schedule="cosine")
    for progress, rate in ((0, 0.2), (0.5, 0.1), (1, 0.0)):
        assert cosine.learning_rate_at(progress) == pytest.approx(rate)
    onecycle = replace(cosine, schedule="onecycle")
    for progress, rate in ((0, 0.008), (0.125, 0.104), (0.25, 0.2), (0.625, 0.1), (1, 0.0)):
        assert onecycle.learning_rate_at(progress) == pytest.approx(rate)
        assert onecycle.learning_rate_at(progress, 32) == pytest.approx(rate / 4)
    assert [cosine.batch_size_for(n) for n in (41_667, 3199, 897, 100, 9)] == [128, 64, 32, 16, 9]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("learning_rate", float("nan"), "learning_rate must be positive, got nan"),
        ("batch_size", 1, "batch_size must be at least 2"),
        ("momentum", 1.0, "momentum must be at least 0 and below 1"),
        ("schedule", "step", "schedule must be one of cosine, onecycle, got 'step'"),
        ("label_smoothing", 1.0, "label_smoothing must be"),
        ("device", "nowhere", "device 'nowhere' is not available"),
        ("network", "resnet21", "network must be one of"),
        ("dataset", "mnist", "dataset must be one of"),
    ],
)
def test_bad_options_are_named(option, value, words, tmp_path):
    good = NetworkTraining("resnet20", "digits", device="cpu")
    with pytest.raises(ValueError, match=words):
        train_network(replace(good, **{option: value}), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_divergence_and_bad_paths_are_reported(options, tmp_path):
    with pytest.raises(ValueError, match="learning_rate 1e\\+30 is too high"):
        train_network(replace(options, learning_rate=1e30), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"out_path must end in .safetensors"):
        train_network(options, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="must name a file for network 'resnet50_imagenet'"):
        ensure_digits_weights("resnet50_imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, spec in NETWORKS.items() if spec.image_size == 32])
def test_every_small_network_learns_the_digits(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path))
    path = ensure_digits_weights(name)
    assert ensure_digits_weights(name) == path
    assert json.loads(read_metadata(path)["results"])["search_accuracy"] > 0.95
