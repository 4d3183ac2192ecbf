import json
import shutil
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import compress_env
from compress_env.calibration import calibrate
from compress_env.compression import compress
from compress_env.data import load_splits
from compress_env.evaluation import evaluate_network
from compress_env.evaluation.finetuned import FinetunedEngine
from compress_env.finetune import CHECKPOINT_FILE, CURVE_FILE, finetune
from compress_env.finetune_options import FinetuneOptions
from compress_env.layer_graph import trace
from compress_env.lsq import FakeQuantize, LearnedStep, finished, learnable
from compress_env.networks import build_network
from compress_env.plan import CompressionPlan
from compress_env.pruning import prune
from compress_env.quantized_training import QuantizedTraining, TrainingImages, folded_copy
from compress_env.task import CompressionTask
from compress_env.training_parts import read_checkpoint

ALL_BITS = (2, 3, 4, 5, 6, 7, 8, 32)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_plan(graph, seed, keep=0.7, name=""):
    """Random channels, and every bit-width somewhere; 32 bits for one of the two and for both."""
    rng = np.random.default_rng(seed)
    kept = []
    for group in graph.groups:
        mask = rng.random(group.size) < keep
        mask[rng.integers(group.size)] = True
        kept.append(mask)
    bits = rng.choice(ALL_BITS, (2, len(graph.layers)))
    bits[:, 1] = 32
    return CompressionPlan.of(graph, kept, bits[0], bits[1], name)


def uniform_plan(task, bits, keep=1.0):
    graph = task.graph
    kept = [np.arange(group.size) < group.size * keep for group in graph.groups]
    widths = np.full(len(graph.layers), bits)
    return CompressionPlan.of(graph, kept, widths, widths, task.network_name)


def tiny_network():
    # Dropout and BatchNorm, so that there is random and running state to restore.
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 10),
    )  # fmt: skip


@pytest.fixture
def tiny():
    return CompressionTask(tiny_network(), "digits", search_images=300)


# -- quantizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "low", "high"), [(False, 0, 15), (False, -7, 7), (True, -3, 3)])
def test_gradients_of_the_quantizer_are_those_of_the_paper(rows, low, high):
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, 3).mul_(3).contiguous(memory_format=torch.channels_last)
    scale = torch.rand(6, 1, 1, 1).add_(0.2) if rows else torch.tensor(0.4)
    weight = torch.randn(6, 5, 4, 3).contiguous(memory_format=torch.channels_last)

    def paper(x, scale):
        """Equations 1 to 3, by automatic differentiation, with rounding as a constant."""
        levels = x / scale
        inside = (levels > low) & (levels < high)
        rounded = levels + (levels.round() - levels).detach()
        return torch.where(inside, rounded, levels.detach().clamp(low, high).round()) * scale

    found, expected = [], []
    for function, results in ((paper, expected), (None, found)):
        x_own, scale_own = x.clone().requires_grad_(), scale.clone().requires_grad_()
        if function is None:
            y = FakeQuantize.apply(x_own, scale_own, low, high)
        else:
            y = function(x_own, scale_own)
        (y * weight).sum().backward()
        results.extend([y.detach(), x_own.grad, scale_own.grad])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_learned_scale_moves_as_in_the_paper():
    # 2 images of 4 values, codes 0 to 3: a step changes the scale by rate * gradient / sqrt(4 * 3).
    step = LearnedStep(torch.tensor(0.5), 0, 3)
    x = torch.tensor([[0.6, 1.0, 9.0, -1.0], [0.2, 0.0, 0.5, 1.3]])
    step(x).sum().backward()
    with torch.no_grad():
        step.relative -= 0.01 * step.relative.grad
    # Codes minus levels inside, the code outside: (1 - 1.2) + 0 + 3 + 0, (0 - 0.4) + 0 + 0 + 0.4.
    gradient = -0.2 + 3 - 0.4 + 0.4
    assert step.scale.item() == pytest.approx(0.5 - 0.01 * gradient / 12**0.5, rel=1e-5)


def test_channels_that_have_faded_away_learn_like_others():
    # As weight decay leaves them behind; the square of the smallest is zero in float32.
    scales = torch.tensor([0.5, 1e-5, 1e-10, 1e-25])
    step = LearnedStep(scales, -7, 7)
    x = scales[:, None] * torch.tensor([-2.2, 3.4, 9.0])
    y = step(x)
    torch.testing.assert_close(y, scales[:, None] * torch.tensor([-2.0, 3.0, 7.0]))
    y.sum().backward()
    # (-2 + 2.2) + (3 - 3.4) + 7, by the scale and the weight of its gradient.
    expected = 6.8 / (scales[:3] * (3 * 7) ** 0.5)
    torch.testing.assert_close(step.relative.grad[:3], expected)
    assert step.relative.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v1", "mobilenet_v2"])
def test_training_starts_at_exactly_what_the_plan_means(name):
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    graph = trace(build_network(name, 10))
    plan = random_plan(graph, seed=2)
    kept = plan.kept_atoms(graph)
    small = prune(graph, kept)
    samples = calibrate(small, graph, images, True)
    start = finished(learnable(small, graph, plan, samples), graph).state_dict()
    expected = compress(graph, plan, images).state_dict()
    assert start.keys() == expected.keys()
    assert all(torch.equal(start[key], expected[key]) for key in expected)


# -- training ------------------------------------------------------------------------------------


def test_accuracy_is_recovered_kept_and_loaded_to_the_bit(tmp_path, monkeypatch):
    measured = []

    def evaluate(network, *images):
        measured.append(evaluate_network(network, *images))
        return measured[-1]

    monkeypatch.setattr("compress_env.finetune.evaluate_network", evaluate)
    task = CompressionTask("resnet20", "digits")
    plan = uniform_plan(task, bits=3, keep=0.8)
    options = FinetuneOptions(epochs=5, checkpoint_steps=1000)
    results = finetune(task, plan, options, tmp_path, metadata={"command": "as typed"})
    assert results["search_accuracy_before"] < 0.7
    assert results["search_accuracy"] > 0.93
    assert results["steps"] == 5 * (897 // 128)
    record = json.loads((tmp_path / CURVE_FILE).read_text())
    assert record["results"] == results
    assert [point["step"] for point in record["curve"]] == [0, 7, 14, 21, 28, 35]
    assert record["curve"][-1]["search_accuracy"] == results["search_accuracy"]

    loaded = compress_env.load_compressed(tmp_path)
    tested = evaluate_network(loaded, task.splits.test, task.splits)
    assert tested.accuracy == results["test_accuracy"]
    assert torch.equal(tested.logits, measured[-1].logits)
    assert evaluate_network(loaded, task.splits.search, task.splits).accuracy == pytest.approx(
        results["search_accuracy"]
    )
    # A 3-bit network of 64% of the weights: what is beyond that are scales and names.
    dense_bytes = 4 * sum(value.numel() for value in task.network.state_dict().values())
    assert (tmp_path / "compressed.safetensors").stat().st_size < dense_bytes / 10


def test_interrupted_and_resumed_is_the_same_as_uninterrupted(tiny, tmp_path, monkeypatch):
    plan = random_plan(tiny.graph, 0)
    options = FinetuneOptions(steps=24, checkpoint_steps=5, batch_size=64)
    whole = finetune(tiny, plan, options, tmp_path / "whole")
    out = tmp_path / "resumed"

    step = QuantizedTraining.step

    def interrupted(training):
        if training.steps == 12:
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(QuantizedTraining, "step", interrupted)
        finetune(tiny, plan, options, out)
    assert not (out / "compressed.safetensors").exists()
    with pytest.raises(ValueError, match="resume must be set"):
        finetune(tiny, plan, options, out)
    with pytest.raises(ValueError, match="another training: plan is"):
        finetune(tiny, random_plan(tiny.graph, 1), options, out, resume=True)
    resumed = finetune(tiny, plan, options, out, resume=True)

    timed = {"wall_seconds", "images_per_second"}
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }
    first, second = (
        compress_env.load_compressed(tmp_path / name, tiny_network()).state_dict()
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    # Once finished, there is nothing left to do.
    assert finetune(tiny, plan, options, out, resume=True) == resumed
    assert not (out / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("state", [[], 3, torch.ones(2), {"options": [1]}, {"steps": 3}])
def test_a_checkpoint_that_holds_something_else_is_named(tmp_path, state):
    path = tmp_path / CHECKPOINT_FILE
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"^resume: {path} is not the state of a training"):
        read_checkpoint(path, {"plan": 1}, resume=True)


def test_divergence_is_reported_and_the_best_network_kept(tiny, tmp_path):
    plan = uniform_plan(tiny, 4)
    with pytest.warns(RuntimeWarning, match="learning_rate 100000.0 is too high"):
        results = finetune(tiny, plan, FinetuneOptions(learning_rate=1e5, epochs=4), tmp_path)
    assert "the network of step 0 is kept" in results["stopped"].lower()
    assert results["search_accuracy"] == results["search_accuracy_before"]
    assert results["test_accuracy"] == results["test_accuracy_before"]
    assert results["epochs"] == 0 and 0 < results["images_per_second"] < 1e6
    loaded = compress_env.load_compressed(tmp_path, tiny_network())
    expected = compress(tiny.graph, plan, tiny.calibration.images).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("learning_rate", "why"), [(1e3, "the accuracy was"), (1e38, "outputs were no numbers")]
)
def test_a_network_lost_in_the_last_step_is_not_kept(tmp_path, learning_rate, why):
    task = CompressionTask("resnet20", "digits", search_images=200)
    options = FinetuneOptions(learning_rate=learning_rate, steps=1)
    with pytest.warns(RuntimeWarning, match=f"is too high: {why}"):
        results = finetune(task, uniform_plan(task, 6), options, tmp_path)
    assert results["search_accuracy"] == results["search_accuracy_before"]
    assert (results["steps"], results["epochs"]) == (0, 0.0)
    assert 0 < results["images_per_second"] < 1e6


def test_a_lost_network_is_noticed_where_the_loss_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.finetune._Run._watch", lambda run, started: None)
    task = CompressionTask("resnet20", "digits", search_images=200)
    options = FinetuneOptions(learning_rate=1.0, epochs=2)
    with pytest.warns(RuntimeWarning, match=r"learning_rate 1.0 is too high: the accuracy was"):
        results = finetune(task, uniform_plan(task, 6), options, tmp_path)
    assert results["search_accuracy"] >= 0.97


def test_sixteen_bits_and_the_callers_random_numbers(tiny):
    images = TrainingImages(tiny.splits, tiny.spare, tiny.device)
    options = FinetuneOptions(steps=3, mixed_precision=True, optimizer="adamw")
    teacher = folded_copy(tiny.graph)
    plan = uniform_plan(tiny, 4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    calibration = tiny.calibration.images
    training = QuantizedTraining(tiny.graph, plan, calibration, teacher, images, options)
    losses = torch.stack([training.step()[0] for _ in range(3)])
    assert losses.isfinite().all()
    assert torch.equal(torch.rand(3), expected)
    before = tiny.network(calibration)
    torch.testing.assert_close(teacher(calibration), before, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # a compilation
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_learns_the_same(tiny):
    images = TrainingImages(tiny.splits, tiny.spare, tiny.device)
    teacher, plan = folded_copy(tiny.graph), uniform_plan(tiny, 4)
    losses = []
    for compiled in (False, True):
        options = FinetuneOptions(steps=40, compile=compiled)
        training = QuantizedTraining(
            tiny.graph, plan, tiny.calibration.images, teacher, images, options
        )
        losses.append([float(training.step()[0]) for _ in range(40)])
    # Sums in another order flip codes of values that lie between two, as any noise does.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=5e-3)
    assert np.mean(losses[1][-10:]) == pytest.approx(np.mean(losses[0][-10:]), rel=5e-3)
    assert np.mean(losses[1][-10:]) < np.mean(losses[1][:5]) - 0.01


def test_compiling_without_a_compiler_says_what_is_missing(tiny, monkeypatch):
    def backend(*_):
        raise OSError("no c++ here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=backend))
    options = FinetuneOptions(steps=1, compile=True)
    images = TrainingImages(tiny.splits, tiny.spare, tiny.device)
    training = QuantizedTraining(
        tiny.graph, uniform_plan(tiny, 4), tiny.calibration.images,
        folded_copy(tiny.graph), images, options,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"(?s)compile needs .* C\+\+ compiler.*no c\+\+ here"):
        training.step()


# -- images --------------------------------------------------------------------------------------


def test_training_sees_neither_search_nor_calibration_nor_test_images():
    splits = load_splits("digits")

    def names(images):
        return {bytes(image) for image in np.asarray(images)}

    task = CompressionTask(tiny_network(), splits, search_images=300, calibration_images=40)
    assert len(task.spare) == 540 - 300 - 40
    training = TrainingImages(splits, task.spare, task.device)
    options = FinetuneOptions(batch_size=100, spare_fraction=0.25)
    assert training.sizes(options) == (75, 25)
    assert training.steps_per_epoch(options) == 897 // 75
    used = names(splits.train.images) | names(task.spare.images)
    assert not used & names(splits.test.images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (splits.mean, splits.std))
    for looked_at in (task.search, task.calibration):
        pixels = ((looked_at.images * std + mean) * 255).round().to(torch.uint8)
        assert not used & names(pixels)
    # Every image of the training split once in an epoch.
    seen = torch.cat([training.batch(options, step)[1][:75] for step in range(11)])
    assert len(seen) == 825
    assert training._order(0, 0).unique().numel() == 897


def test_few_spare_images_are_not_seen_too_often():
    splits = load_splits("digits")
    options = FinetuneOptions(batch_size=100)
    few = TrainingImages(splits, splits.search.take(9), torch.device("cpu"))
    assert few.sizes(options) == (91, 9)  # 90 of 987
    many = TrainingImages(
        replace(splits, train=splits.train.take(30)), splits.search, torch.device("cpu")
    )
    assert many.sizes(FinetuneOptions(batch_size=2, spare_fraction=0.9)) == (1, 1)
    none = CompressionTask(tiny_network(), splits).spare
    assert TrainingImages(splits, none, torch.device("cpu")).sizes(options) == (100, 0)


# -- environment ---------------------------------------------------------------------------------


def test_a_task_can_train_for_some_steps_before_it_evaluates():
    plain = CompressionTask("resnet20", "digits", search_images=200)
    plan = uniform_plan(plain, 3, keep=0.8)
    tasks = [CompressionTask("resnet20", "digits", search_images=200, finetune_steps=12)] * 2
    before = plain.evaluator.evaluate(plan).accuracy
    first, second = (task.engine.logits(plan, task.search.images) for task in tasks)
    assert torch.equal(first, second)
    after = float((first.argmax(1) == plain.search.labels).float().mean())
    assert after > before + 0.2
    assert tasks[0].dense_evaluation.accuracy == plain.dense_evaluation.accuracy
    env = compress_env.JointPruneQuantEnv(search_images=50, finetune_steps=2)
    assert isinstance(env.task.engine, FinetunedEngine)
    with pytest.raises(ValueError, match="finetune_steps must be a whole number from 0"):
        CompressionTask("resnet20", "digits", finetune_steps=-1)


def test_everything_but_the_environment_works_without_dgl():
    program = """
import sys
sys.modules["dgl"] = None  # importing it fails
import gymnasium
import compress_env, compress_env.finetune, compress_env.evaluation, compress_env.task
assert "JointPruneQuant-ResNet20-v0" in gymnasium.registry
try:
    compress_env.JointPruneQuantEnv
except ImportError:
    print("no environment")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "no environment"
    assert compress_env.JointPruneQuantEnv.__name__ == "JointPruneQuantEnv"
    assert "JointPruneQuant-v0" in gymnasium.registry
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = compress_env.nothing


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("steps", 0),
        ("learning_rate", float("nan")),
        ("batch_size", 1),
        ("optimizer", "adam"),
        ("weight_decay", -1.0),
        ("distill", 1.5),
        ("temperature", 0.0),
        ("label_smoothing", 1.0),
        ("spare_fraction", 1.0),
        ("checkpoint_steps", 0),
        ("seed", -1),
    ],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be .*, got "):
        FinetuneOptions(**{option: value})
