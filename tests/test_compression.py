"""What `compress` builds from a plan."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from samples import assert_close, every_network, float_plan, liven, outputs, random_masks, sample
from torch import nn

import compress_env
from compress_env.layer_graph import trace
from compress_env.networks import build_network
from compress_env.normalization import norm_as_affine
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune
from compress_env.quantization import QuantizedLayer


@every_network
def test_keep_everything_at_32_bits_is_the_identical_network(name: str) -> None:
    found = sample(name)
    plan = CompressionPlan.dense(found.graph)
    network = compress_env.compress(found.graph, plan, found.images)
    assert torch.equal(outputs(network, found.images), outputs(found.network, found.images))
    nhwc = found.images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(outputs(network, nhwc), outputs(found.network, nhwc))


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: v for key, v in network.state_dict().items() if "running_" in key}


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_statistics_are_estimated_anew_only_where_something_was_pruned(
    dtype: torch.dtype, error: float
) -> None:
    found = sample("resnet20")
    kept = CompressionPlan.dense(found.graph)
    same = compress_env.compress(found.graph, kept, found.images, dtype)
    before = statistics(found.network)
    assert all(torch.equal(before[key], after) for key, after in statistics(same).items())

    masks = [np.ones(group.size, dtype=bool) for group in found.graph.groups]
    masks[1][:4] = False
    plan = float_plan(found.graph, masks)
    calibration = torch.randn(96, *found.graph.input_shape)  # a batch of 64 and one of 32
    pruned = compress_env.compress(found.graph, plan, calibration, dtype)
    # By hand: the first BatchNorm sees what the first convolution makes of every batch.
    first = prune(found.graph, plan.kept_atoms(found.graph)).get_submodule("conv1")
    with torch.no_grad():
        batches = [first(batch) for batch in calibration.split(64)]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    assert float(((pruned.bn1.running_mean - mean) / variance.sqrt()).abs().max()) < error
    assert torch.allclose(pruned.bn1.running_var, variance, rtol=error)
    assert not pruned.bn1.training
    assert pruned.bn1.momentum == found.network.bn1.momentum


def test_quantized_layers_have_their_norm_folded_in() -> None:
    found = sample("resnet20")
    graph = found.graph
    weight_bits = np.full(len(graph.layers), 32)
    activation_bits = weight_bits.copy()
    weight_bits[2] = 8  # weights of one layer only, input as it is
    plan = CompressionPlan.of(
        graph, CompressionPlan.dense(graph).kept, weight_bits, activation_bits
    )
    network = compress_env.compress(graph, plan, found.images)
    layer, norm = graph.layers[2].name, graph.folds[graph.layers[2].name]
    assert isinstance(network.get_submodule(layer), QuantizedLayer)
    assert isinstance(network.get_submodule(norm), nn.Identity)
    assert sum(isinstance(m, QuantizedLayer) for m in network.modules()) == 1
    error = outputs(network, found.images) - outputs(found.network, found.images)
    assert 0 < float(error.abs().max()) < 0.05 * float(outputs(found.network, found.images).std())
    dense = found.network.get_submodule(norm)
    factor, offset = norm_as_affine(dense)
    x = torch.randn(2, dense.num_features, 3, 3)
    expected = x * factor.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
    assert torch.allclose(outputs(dense, x), expected, atol=1e-5)


def saved_bytes(network: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return len(file.getvalue())


def test_compressed_network_is_ordinary_smaller_and_the_same_every_time() -> None:
    torch.manual_seed(0)
    network = build_network("vgg16", 10)
    images = torch.randn(16, 3, 16, 16)
    liven(network, images)
    graph = trace(network, (3, 16, 16))
    masks = [np.arange(group.size) < group.size // 4 for group in graph.groups]
    bits = np.full(len(graph.layers), 6)
    plan = CompressionPlan.of(graph, masks, bits, bits)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    compressed = compress_env.compress(network, plan, images)
    again = compress_env.compress(network, plan, images)
    assert saved_bytes(compressed) < saved_bytes(network) / 10
    assert torch.equal(outputs(compressed, images), outputs(again, images))
    assert not any(module.training for module in compressed.modules())
    # The dense network is as it was.
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_unfit_arguments_are_refused() -> None:
    found = sample("resnet20")
    plan = CompressionPlan.dense(found.graph)
    for images in (found.images[:0], found.images[0]):
        with pytest.raises(ValueError, match=r"calibration_images must be \(images, channels"):
            compress_env.compress(found.graph, plan, images)
    with pytest.raises(ValueError, match="plan: it is for another network"):
        compress_env.compress(build_network("resnet32", 10), plan, found.images)


def test_norm_without_statistics_of_its_own_is_not_folded() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, affine=False),
    )  # fmt: skip
    images = torch.randn(8, 3, 6, 6)
    graph = trace(network, (3, 6, 6))
    assert list(graph.folds.values()) == ["4"]
    masks = random_masks(graph, "all but one", 0)
    plan = CompressionPlan.of(graph, masks, np.full(2, 8), np.full(2, 8))
    quantized = compress_env.compress(graph, plan, images)
    floating = compress_env.compress(graph, float_plan(graph, masks), images)
    assert torch.allclose(outputs(quantized, images), outputs(floating, images), atol=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"])
def test_networks_on_a_gpu_are_compressed_there(name: str) -> None:
    found = sample(name)
    masks = random_masks(found.graph, "any share", 0)
    expected = compress_env.compress(found.graph, float_plan(found.graph, masks), found.images)
    images = found.images.cuda()
    graph = trace(copy.deepcopy(found.network).cuda(), found.graph.input_shape)
    for bits in (32, 8):
        widths = np.full(len(graph.layers), bits)
        plan = CompressionPlan.of(graph, masks, widths, widths)
        network = compress_env.compress(graph, plan, images)
        result = outputs(network, images)
        assert result.is_cuda
        if bits == 32:
            assert_close(result.cpu(), outputs(expected, found.images), 1e-2)


def test_layer_of_parametrized_weights_stays_as_it_is() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network = nn.Sequential(normed, nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 10))
    images = torch.randn(4, 3, 8, 8)
    with pytest.warns(UserWarning, match="ParametrizedConv2d"):
        graph = trace(network, (3, 8, 8))
    assert [layer.name for layer in graph.layers] == ["2", "4"]
    small = compress_env.compress(graph, CompressionPlan.dense(graph, bits=8), images)
    expected, found = outputs(network, images), outputs(small, images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05
