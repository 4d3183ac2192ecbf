import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from compress_env.networks import NETWORKS, build_network
from compress_env.networks.weights import (
    CHECKPOINTS,
    default_weights,
    load_weights,
    read_metadata,
    save_weights,
)

SMALL = [name for name, spec in NETWORKS.items() if spec.image_size == 32]
LARGE = [name for name, spec in NETWORKS.items() if spec.image_size == 224]

# Parameters and millions of MACs in convolutions and linear layers, as published.
PUBLISHED = {
    "resnet20": (269_722, 40.55),
    "resnet32": (464_154, 68.86),
    "resnet44": (658_586, 97.17),
    "resnet56": (853_018, 125.49),
    "resnet110": (1_727_962, 252.89),
    "vgg16": (14_724_042, 313.20),
    "resnet18_imagenet": (11_689_512, 1814.07),
    "resnet50_imagenet": (25_557_032, 4089.18),
    "mobilenet_v1_imagenet": (4_231_976, 568.74),
    "mobilenet_v2_imagenet": (3_504_872, 300.77),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    spec = NETWORKS[name]
    network = build_network(name, 10 if spec.image_size == 32 else 1000).eval()
    parameters, macs = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, spec.image_size, spec.image_size))
    assert counter.get_total_flops() / 2e6 == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_take_both_sizes_and_trace(name, size):
    torch.manual_seed(0)
    network = build_network(name, 7)
    images = torch.randn(4, 3, size, size)
    network(images)  # in training mode, so that BatchNorm is not the identity afterwards
    network.eval()
    with torch.no_grad():
        logits = network(images)
        traced = symbolic_trace(network)(images)
    assert logits.shape == (4, 7)
    assert torch.equal(logits, traced)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_trace(name):
    with torch.device("meta"):  # nothing is computed here
        network = build_network(name, 3)
    assert symbolic_trace(network).graph.nodes


def test_registry_is_consistent():
    assert len({spec.title for spec in NETWORKS.values()}) == len(NETWORKS)
    for name, spec in NETWORKS.items():
        assert spec.name == name
        assert pickle.loads(pickle.dumps(spec)) == spec
    for (network, dataset), checkpoint in CHECKPOINTS.items():
        assert NETWORKS[network].image_size == (32 if dataset == "cifar10" else 224)
        assert len(checkpoint.hash_prefix) >= 8
        int(checkpoint.hash_prefix, 16)


def test_networks_of_others_are_built_by_path(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef tiny(num_classes):\n    return nn.Linear(2, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_network("my_networks:tiny", 5).out_features == 5
    assert build_network("torchvision.models:squeezenet1_1", 5).num_classes == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet21", "must be one of resnet20"),
        ("no_such_module:factory", "cannot import 'no_such_module'"),
        ("math:factory", "no callable 'factory'"),
        ("math:floor", "calling the factory failed"),
        ("os:getcwd", "must give an nn.Module, got str"),
    ],
)
def test_unknown_networks_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        build_network(name, 10)


def test_weights_round_trip_in_every_form(tmp_path):
    network = build_network("resnet20", 10)
    save_weights(network, tmp_path / "a" / "w.safetensors", {"seed": "3"})
    assert read_metadata(tmp_path / "a" / "w.safetensors") == {"seed": "3"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["w.safetensors"]
    state = network.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    prefixed = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}
    torch.save({"state_dict": prefixed, "best_prec1": 91.7}, tmp_path / "wrapped.th")
    for file in ("a/w.safetensors", "plain.pt", "wrapped.th"):
        other = build_network("resnet20", 10)
        load_weights(other, tmp_path / file)
        assert all(
            torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True)
        )


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(build_network("resnet20", 10), path, {})
    with pytest.raises(ValueError, match=r"shape: linear.weight \(10, 64\) instead of \(7, 64\)"):
        load_weights(build_network("resnet20", 7), path)
    with pytest.raises(ValueError, match=r"missing: layer1.3.conv1.weight, .* more$"):
        load_weights(build_network("resnet32", 10), path)
    with pytest.raises(ValueError, match=r"missing: weight, bias; unexpected: bn1.bias, "):
        load_weights(nn.Linear(2, 2), path)


class Harmful:
    def __reduce__(self):
        return os.abort, ()


def test_files_that_are_no_weights_are_refused(tmp_path):
    network = nn.Linear(2, 2)
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="arbitrary pickle"):
        load_weights(network, tmp_path / "harmful.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{")
    torch.save([1], tmp_path / "list.pt")
    for file in ("empty.pt", "cut.safetensors", "list.pt", "absent.pt"):
        with pytest.raises(ValueError, match=f"weights .*{file}|weights .*none at"):
            load_weights(network, tmp_path / file)


def test_default_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    embedded = default_weights("resnet20", "digits")
    load_weights(build_network("resnet20", 10), embedded)
    assert default_weights("vgg16", "cifar10") is None

    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    target = tmp_path / "checkpoints" / "resnet20-12fca82f.th"
    with pytest.raises(ValueError, match=f"no network.*put that file at {target}"):
        default_weights("resnet20", "cifar10")
    target.touch()
    assert default_weights("resnet20", "cifar10") == target


@pytest.mark.skipif("COMPRESS_TEST_WEIGHTS" not in os.environ, reason="needs the checkpoints")
@pytest.mark.parametrize("name", ["resnet20", "resnet44", "resnet56"])
def test_published_checkpoints_load(name):
    path = Path(os.environ["COMPRESS_TEST_WEIGHTS"]) / CHECKPOINTS[name, "cifar10"].file
    network = build_network(name, 10)
    load_weights(network, path)
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    loaded = network.state_dict()
    assert {f"module.{name}" for name, _ in network.named_parameters()} <= set(stored)
    assert all(torch.equal(loaded[key.removeprefix("module.")], stored[key]) for key in stored)
