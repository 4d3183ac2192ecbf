"""Quantizers on numbers that can be checked by hand, and against an exhaustive search."""

from __future__ import annotations

import pytest
import torch
from samples import mixed_plan
from small_networks import TinyClassifier
from torch import nn

from compress_env.calibration import calibrate
from compress_env.compression import compress
from compress_env.evaluation import FastEngine
from compress_env.layer_graph import trace
from compress_env.lsq import finished, learnable
from compress_env.pruning import prune
from compress_env.quantization import (
    QuantizedLayer,
    activation_scales,
    highest_level,
    quantize,
    quantize_weights,
    sample_values,
)


@pytest.mark.parametrize(
    ("bits", "signed", "level"),
    [(2, True, 1), (2, False, 3), (4, True, 7), (4, False, 15), (8, True, 127), (8, False, 255)],
)
def test_levels(bits: int, signed: bool, level: int) -> None:
    assert highest_level(bits, signed) == level


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be from 2 to 8"):
        highest_level(bits)


def test_codes_by_hand() -> None:
    x = torch.tensor([-9.0, -1.0, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 3.4, 9.0])
    scale = torch.tensor(0.5)
    # Over 0.5: -18 -2 -1.5 -0.5 0 0.5 1.5 2.5 6.8 18; halves go to even.
    assert quantize(x, scale, -7, 7).tolist() == [-7, -2, -2, 0, 0, 0, 2, 2, 7, 7]
    assert quantize(x, scale, 0, 15).tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 7, 15]


def test_weights_on_the_grid_come_back_exactly() -> None:
    codes = torch.tensor([[7.0, -3, 0, 1], [1, -1, 1, -1], [0, 0, 0, 0]])
    weight = codes * torch.tensor([[0.1], [0.02], [1.0]])
    found, scale = quantize_weights(weight, 4)
    assert torch.equal(found[0], codes[0])
    assert torch.allclose(found * scale[:, None], weight, atol=1e-7)
    assert bool((scale > 0).all())


def test_what_is_next_to_zero_has_no_infinite_scales() -> None:
    for bits in (2, 8):
        for size in (1e-36, 1e-37, 1e-40, 1e-44):
            weight = torch.tensor([[0.5, -0.3, 0.2], [size, -size, 0.0]])
            codes, scales = quantize_weights(weight, bits)
            assert codes[1].tolist() == [0, 0, 0]
            expected = quantize_weights(weight[:1], bits)  # the other channel is none the worse
            assert torch.equal(codes[:1], expected[0]) and torch.equal(scales[:1], expected[1])
            scale = activation_scales([weight[1].abs()], [2**bits - 1])
            assert torch.cat([scales, scale]).reciprocal().isfinite().all()


@pytest.mark.parametrize(("bits", "size"), [(8, 1e-37), (2, 1e-40)])
def test_a_faded_channel_is_one_of_zeros_for_everybody(bits: int, size: float) -> None:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    states, found = [], []
    for scale in (0.0, size):
        network = TinyClassifier().eval()
        with torch.no_grad():
            network.second.weight[1].mul_(scale)[0].zero_()
        graph = trace(network, (3, 8, 8))
        plan = mixed_plan(graph, [bits])
        reference = compress(graph, plan, images)
        small = prune(graph, plan.kept_atoms(graph))
        samples = calibrate(small, graph, images, False)
        trained = finished(learnable(small, graph, plan, samples), graph)
        states += [reference.state_dict(), trained.state_dict()]
        with torch.no_grad():
            found += [FastEngine(graph, images).logits(plan, images), reference(images)]
    for state in states:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())
    for logits in found:
        assert logits.isfinite().all() and torch.equal(logits, found[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_weight_error_is_close_to_the_best_of_a_fine_search(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.cat([torch.randn(8, 144), torch.randn(8, 144).sign() * torch.rand(8, 144) ** 4])
    codes, scale = quantize_weights(weight.view(16, 16, 3, 3), bits)
    assert float(codes.abs().max()) <= 2 ** (bits - 1) - 1
    error = (codes.flatten(1) * scale[:, None] - weight).square().sum(1)
    high = 2 ** (bits - 1) - 1
    best = torch.full((16,), float("inf"))
    for clip in torch.linspace(0.05, 1.0, 400):
        step = clip * weight.abs().amax(1, keepdim=True) / high
        rounded = torch.clamp(torch.round(weight / step), -high, high) * step
        best = torch.minimum(best, (rounded - weight).square().sum(1))
    # A channel alone may be less lucky with its rounding.
    assert float((error / best).mean()) < 1.06
    assert float(error.sum() / best.sum()) < 1.06


@pytest.mark.parametrize("level", [3, 7, 15, 63, 255])
@pytest.mark.parametrize("kind", ["half normal", "exponential", "spike and outliers", "zeros"])
def test_activation_error_is_close_to_the_best_of_a_fine_search(kind: str, level: int) -> None:
    torch.manual_seed(0)
    values = {
        "half normal": torch.randn(20000).relu(),
        "exponential": torch.empty(20000).exponential_(),
        "spike and outliers": torch.cat([torch.rand(19990), 8 + torch.rand(10)]),
        "zeros": torch.zeros(100),
    }[kind]
    other = torch.rand(500) * 100  # another tensor in the same call must not matter
    scale = activation_scales([other, values], [level, level])[1]
    assert float(scale) > 0
    error = float((quantize(values, scale, 0, level) * scale - values).square().sum())
    best = float("inf")
    for clip in torch.linspace(0.2, 1.0, 300):  # no more than four fifths are ever clipped
        step = clip * values.max().clamp(min=1) / level
        rounded = torch.clamp(torch.round(values / step), 0, level) * step
        best = min(best, float((rounded - values).square().sum()))
    assert error <= 1.06 * best + 1e-12


def test_samples_are_magnitudes_spread_over_all_channels() -> None:
    x = -torch.arange(64.0).view(1, 64, 1, 1).expand(8, 64, 16, 16)
    sampled = sample_values(x, 4096)
    assert 2000 < len(sampled) <= 8192
    counts = torch.bincount(sampled.long(), minlength=64)
    assert int(counts.min()) > 0
    assert float(counts.float().std() / counts.float().mean()) < 0.2
    assert len(sample_values(x[:, :, :1, :1], 4096)) == 512  # few values: all of them


def test_quantized_convolution_by_hand() -> None:
    layer = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.7, -0.3]).view(2, 1, 1, 1))
        layer.bias.copy_(torch.tensor([1.0, 2.0]))
    factor, offset = torch.tensor([2.0, 10.0]), torch.tensor([0.5, 0.0])
    # Inputs in steps of 0.25 up to 15 steps; one weight per channel, hence codes 7 and -7 with
    # scales 0.1 and 0.3 / 7; BatchNorm times (2, 10), plus (0.5, 0), also on the bias.
    module = QuantizedLayer(layer, 4, 4, torch.tensor(0.25), True, factor, offset)
    x = torch.tensor([-1.0, 0.3, 1.0, 99.0]).view(1, 1, 2, 2)  # codes 0, 1, 4, 15
    codes = torch.tensor([0.0, 1, 4, 15]) * 0.25
    expected = torch.stack([(codes * 0.7 + 1) * 2 + 0.5, (codes * -0.3 + 2) * 10]).view(1, 2, 2, 2)
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_integer_sums_are_exact_where_float32_is_not() -> None:
    # 4,096 inputs * 255 * 127 is above 2**24: a float32 sum would depend on the order.
    layer = nn.Linear(4096, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(127.0)
        layer.weight[0, :1] = 1.0
    module = QuantizedLayer(layer, 8, 8, torch.tensor(1.0), True)
    codes = module.layer.weight.detach().double()
    x = torch.full((1, 4096), 255.0)
    x[0, ::2] = 254.0
    exact = float((codes * x.double()).sum()) * float(module.weight_scale)
    assert float(module(x).detach()) == pytest.approx(exact, rel=1e-7)
    assert module.needs_double
