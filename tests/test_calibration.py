"""Calibration in bfloat16 finds what it finds in float32; statistics against an obvious version."""

from __future__ import annotations

import pytest
import torch
from samples import float_plan, random_masks
from torch import nn

from compress_env import calibration
from compress_env.calibration import calibrate
from compress_env.layer_graph import trace
from compress_env.normalization import as_images, as_rows, averages, moments, normalize_
from compress_env.plan import CompressionPlan
from compress_env.pruning import pruned_modules
from compress_env.task import CompressionTask

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(13, 5, 6, 7), (70, 40, 3, 1), (9, 3)])
@pytest.mark.parametrize("last", [False, True], ids=["plain order", "channels-last"])
def test_statistics_are_those_of_a_slow_double_precision_version(
    dtype: torch.dtype, shape: tuple[int, ...], last: bool
) -> None:
    x = (3 * torch.randn(shape) + 5).to(dtype)
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm1d(shape[1]).eval()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    rows = [as_rows(part) for part in x.split(4)]  # the last part is smaller
    found = moments(rows, shape[1])
    values = x.double().transpose(0, 1).flatten(1)
    mean, variance = values.mean(1), values.var(1, correction=0)
    assert torch.allclose(found.mean.double(), mean.expand_as(found.mean), atol=1e-6)
    assert torch.allclose(found.variance.double(), variance.expand_as(found.variance), atol=1e-5)
    average, unbiased = averages([found, found])
    assert torch.allclose(average.double(), mean, atol=1e-6)
    assert torch.allclose(unbiased.double(), values.var(1), atol=1e-5)

    places = (1, -1, *(1 for _ in shape[2:]))
    expected = (x.double() - mean.view(places)) / (variance.view(places) + norm.eps).sqrt()
    expected = expected * norm.weight.double().view(places) + norm.bias.double().view(places)
    whole = as_rows(x).clone()
    with torch.no_grad():
        normalize_(whole, norm, found)
    relative = 2**-8 if dtype == torch.bfloat16 else 1e-6  # it is rounded once
    assert torch.allclose(as_images(whole, x).double(), expected, rtol=relative, atol=1e-5)


@pytest.mark.parametrize("pruned", [True, False], ids=["pruned", "whole"])
def test_bfloat16_and_float32_agree(digits_task: CompressionTask, pruned: bool) -> None:
    graph, images = digits_task.graph, digits_task.calibration.images
    dense = CompressionPlan.dense(graph)
    plan = float_plan(graph, random_masks(graph, "evenly", 0)) if pruned else dense
    kept = plan.kept_atoms(graph)
    found = {}
    for dtype in DTYPES:
        modules = pruned_modules(graph, kept)
        samples = calibrate(modules, graph, images, pruned, dtype=dtype)
        found[dtype] = samples, {name: modules[name] for name in graph.folds.values()}
    (exact, norms), (rough, rough_norms) = found[torch.float32], found[torch.bfloat16]
    for before, after in zip(exact, rough, strict=True):
        assert after.dtype == torch.float32
        assert float((after - before).norm() / before.norm()) < 0.05
    for name, norm in norms.items():
        other = rough_norms[name]
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and other.running_mean is not None
        assert variance is not None and other.running_var is not None
        deviation = variance.sqrt() + norm.eps
        assert float(((other.running_mean - mean) / deviation).abs().max()) < 0.03
        assert float((other.running_var.sqrt() / deviation - 1).abs().max()) < 0.03


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", [20, 96])
def test_threads_change_nothing(
    digits_task: CompressionTask, dtype: torch.dtype, images: int
) -> None:
    graph, some = digits_task.graph, digits_task.calibration.images[:images]
    kept = float_plan(graph, random_masks(graph, "evenly", 0)).kept_atoms(graph)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(calibrate(pruned_modules(graph, kept), graph, some, True, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_relu_of_bfloat16_is_exact() -> None:
    x = torch.tensor([-torch.inf, -3.0, -1e-40, -0.0, 0.0, 1e-40, 2.5, torch.inf]).bfloat16()
    expected = x.relu()
    calibration._relu_(x)
    assert torch.equal(x, expected)


def test_operations_without_bfloat16_run_in_float32() -> None:
    """Local response normalisation has no kernel for it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(5), nn.Conv2d(8, 4, 3), nn.Flatten()
    ).eval()
    with pytest.warns(UserWarning, match="local_response_norm|LocalResponseNorm"):
        graph = trace(network, (3, 8, 8))
    images = torch.randn(8, 3, 8, 8)
    exact, near = (
        calibrate(network, graph, images, False, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.allclose(exact[1], near[1], rtol=2e-2, atol=2e-2)
    assert exact[1].std() > 0.1
