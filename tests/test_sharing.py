"""Several environments: what they share is in memory once, and they do what one would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from benchmarks.memory import SampledEngine, growth, growth_per_step
from compress_agents import environments
from compress_agents.config import TrainingConfig
from compress_agents.environments import make_environment, make_vector_environment
from compress_agents.sharing import load_shared, save_shared
from compress_env import task
from compress_env.env import JointPruneQuantEnv

CONFIG = TrainingConfig(target_reduction=0.984, search_images=300, calibration_images=64)
SHARE_BYTES = 64 * 300 * 3 * 4  # 300 images of 8x8 in float32


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 3, 16, 16, generator=generator)
    conv = nn.Conv2d(16, 32, 5)
    saved = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "turned": images.permute(3, 1, 0, 2),
        "every other": images[::2, 1:],
        "spread": images[:, :1].expand(20, 50, 16, 16),
        "half": images.to(torch.bfloat16),
        "yes or no": images > 0,
        "one value": torch.tensor(3.0),
        "array": images.numpy()[:, :, ::-1],
        "fixed array": np.arange(2000),
        "layer": conv,
        "the same layer": conv,
        "function": lambda x: x + 1,
    }
    saved["fixed array"].flags.writeable = False
    save_shared(saved, tmp_path)
    loaded = load_shared(tmp_path)
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[name], value), name
            assert loaded[name].stride() == value.stride(), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(loaded[name], value), name
            assert loaded[name].flags.writeable == value.flags.writeable, name
    assert loaded["layer"] is loaded["the same layer"]
    assert torch.equal(loaded["layer"].weight, conv.weight) and loaded["layer"].weight.requires_grad
    assert loaded["function"](1) == 2


def test_writing_to_a_map_changes_nothing_for_others(tmp_path: Path) -> None:
    save_shared([torch.zeros(10_000)], tmp_path)
    first, second = load_shared(tmp_path)[0], load_shared(tmp_path)[0]
    first.fill_(1.0)
    assert not second.any() and not load_shared(tmp_path)[0].any()
    assert (tmp_path / "object").stat().st_size < 10_000 < (tmp_path / "arrays").stat().st_size


@pytest.fixture(scope="module")
def first() -> JointPruneQuantEnv:
    return make_environment(CONFIG)


@pytest.fixture(scope="module")
def two(first: JointPruneQuantEnv) -> Iterator[SubprocVecEnv]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "_cores", lambda: 2)
        vector = make_vector_environment(first, 2)
    assert isinstance(vector, SubprocVecEnv)
    yield vector
    vector.close()


def maps(process: int) -> dict[tuple[str, str], dict[str, int]]:
    """The files that a process maps privately, by name and inode, with what of them is where."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    entry: dict[str, int] = {}
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            entry = found.setdefault((words[5] if len(words) > 5 else "", words[4]), {})
        elif len(words) == 3 and words[2] == "kB":
            entry[words[0]] = entry.get(words[0], 0) + 1024 * int(words[1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_environments_map_the_same_file_and_copy_little_of_it(two: SubprocVecEnv) -> None:
    two.reset()
    two.step(np.zeros((2, *(two.action_space.shape or ())), np.float32))
    mapped = [
        {key: sizes for key, sizes in maps(process.pid or 0).items() if key[0].endswith("/arrays")}
        for process in two.processes
    ]
    assert len(mapped[0]) == 1 and mapped[0].keys() == mapped[1].keys()
    for sizes in (next(iter(each.values())) for each in mapped):
        assert sizes["Rss:"] >= SHARE_BYTES
        assert sizes["Private_Dirty:"] == 0


def test_they_do_what_one_environment_does(first: JointPruneQuantEnv, two: SubprocVecEnv) -> None:
    alone = make_vector_environment(first, 1)
    size = (two.action_space.shape or ())[0]
    actions = np.random.default_rng(0).normal(0, 0.3, (3, 2, size)).astype(np.float32)
    for name, values in alone.reset().items():
        np.testing.assert_array_equal(two.reset()[name], np.repeat(values, 2, axis=0))
    for pair in actions:
        observations, rewards, dones, infos = two.step(pair)
        for index, action in enumerate(pair):
            observation, reward, done, info = alone.step(action[None])
            assert reward[0] == np.float32(rewards[index]) and done[0] == dones[index]
            assert info[0]["accuracy"] == infos[index]["accuracy"]
            assert info[0]["plan"].key() == infos[index]["plan"].key()
            for name, values in observation.items():
                np.testing.assert_array_equal(observations[name][index], values[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_a_share_of_one_core_is_one_thread(two: SubprocVecEnv) -> None:
    def threads() -> list[int]:
        return [len(list(Path(f"/proc/{p.pid}/task").iterdir())) for p in two.processes]

    two.reset()
    before = threads()
    two.step(np.full((2, *(two.action_space.shape or ())), 0.1, np.float32))
    assert threads() == before


def test_files_are_gone_once_they_are_mapped(
    first: JointPruneQuantEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vector = make_vector_environment(first, 2)
    try:
        assert not list(tmp_path.iterdir())
    finally:
        vector.close()


def test_test_images_are_taken_in_parts(
    first: JointPruneQuantEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = first.decoder.plan(first.decoder.base)
    whole = first.task.test(plan)
    monkeypatch.setattr(task, "_TEST_BYTES", 100 * 4 * 3 * 8 * 8)
    parts = first.task.test(plan)
    assert len(parts.logits) == len(parts.labels) == 360
    assert torch.equal(parts.predictions, whole.predictions)
    assert torch.equal(parts.labels, whole.labels)


@pytest.mark.slow
def test_many_steps_need_no_more_memory() -> None:
    engine = partial(SampledEngine, cache_bytes=1 << 22)
    # The evaluator's own cache is full after some 2,600 plans.
    found = growth(12_000, engine=engine)
    assert growth_per_step(found) < 500


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_control_c_ends_all_processes_in_peace(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Tests that a shell runs in the background ignore the signal, and hand that on.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from compress_agents.cli import main; main()"
    )
    command = [sys.executable, "-c", start, "train", "--num-envs", "2"]
    command += ["--search-images", "64", "--evaluations", "100000", "--run-dir", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not (run / "agent.zip").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Interrupted" in errors and "Traceback" not in errors and "leaked" not in errors
