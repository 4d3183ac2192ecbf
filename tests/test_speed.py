"""Guards of what makes an evaluation fast: loose ratios of medians, no absolute times.

The rounds of the things compared are interleaved, so other work on the machine slows all of them
down. With pytest-benchmark's own run (`pytest -n 0 tests/test_speed.py`) a table of our evaluation
is printed as well; under several processes the plugin switches itself off, and the ratios hold.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import inner_loop, scaling
from benchmarks.inner_loop import PEER_BATCH, in_batches
from benchmarks.peer_network import PeerNetwork
from benchmarks.subjects import Subject, float_floor, load_subject, uniform_plan
from benchmarks.tables import replace_section
from benchmarks.timing import fit_line, interleaved_seconds
from compress_env.env import JointPruneQuantEnv
from compress_env.evaluation import FastEngine
from compress_env.evaluation.kernels import integer_kernels

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 250
needs_integers = pytest.mark.skipif(
    not integer_kernels().available, reason="this machine has no integer convolution"
)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("resnet20", IMAGES)


@pytest.fixture(scope="module")
def engine(subject: Subject) -> FastEngine:
    return FastEngine(subject.graph, subject.calibration)


@needs_integers
def test_ours_is_several_times_faster_than_the_peers_way(
    subject: Subject, engine: FastEngine, benchmark: Any
) -> None:
    plan = uniform_plan(subject, 6, 0.7)
    peer = PeerNetwork(subject.graph, plan, subject.calibration)
    images = subject.images.contiguous()
    seconds = interleaved_seconds(
        {
            "peer": partial(in_batches, peer, images, PEER_BATCH),
            "ours": partial(engine.logits, plan, subject.images),
        },
        3,
    )
    benchmark.pedantic(engine.logits, (plan, subject.images), rounds=3)
    assert seconds["peer"] > 4 * seconds["ours"]


@needs_integers
def test_integers_are_not_slower_than_floats(subject: Subject, engine: FastEngine) -> None:
    plan = uniform_plan(subject, 6, 0.7)
    floor = float_floor(subject.graph, plan)
    seconds = interleaved_seconds(
        {
            "float": partial(in_batches, floor, subject.images, 50),
            "ours": partial(engine.logits, plan, subject.images),
        },
        5,
    )
    assert seconds["ours"] < 1.1 * seconds["float"]


def test_what_is_around_an_evaluation_is_a_small_share(
    subject: Subject, engine: FastEngine
) -> None:
    env = JointPruneQuantEnv(target_reduction=0.984, search_images=64)
    action = np.full(env.action_space.shape or (), 0.1, np.float32)
    env.reset()
    env.step(action)  # from now on the evaluator knows the plan
    plan = uniform_plan(subject, 6)

    def step() -> None:
        env.reset()
        env.step(action)

    seconds = interleaved_seconds(
        {"step": step, "evaluation": partial(engine.logits, plan, subject.images)}, 7
    )
    assert seconds["step"] < 0.25 * seconds["evaluation"]


def test_a_line_is_found_and_its_worst_point_told() -> None:
    exact = fit_line([1, 2, 4], [5.0, 7.0, 11.0])
    assert exact.offset == pytest.approx(3) and exact.slope == pytest.approx(2)
    assert exact.largest_deviation == pytest.approx(0, abs=1e-9)
    bent = fit_line([1, 2, 3], [1.0, 2.0, 4.5])
    assert bent.largest_deviation > 0.1


def test_a_table_goes_to_its_place_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text((ROOT / "docs" / "speed.md").read_text())
    before = page.read_text()
    for command in (inner_loop, scaling):
        replace_section(page, command.SECTION, "| a table |")
        once = page.read_text()
        replace_section(page, command.SECTION, "| a table |")
        assert page.read_text() == once
    assert once.count("| a table |") == 2
    assert [line for line in once.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]
    with pytest.raises(ValueError, match="begin elsewhere"):
        replace_section(page, "elsewhere", "| a table |")


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        (inner_loop, ["--networks", "resnet21"], "resnet21"),
        (inner_loop, ["--images", "0"], "--images must be at least 1"),
        (inner_loop, ["--markdown", "nowhere.md"], "nowhere.md"),
        (inner_loop, ["--json", "nowhere/rows.json"], "--json must name a file in an existing"),
        (inner_loop, ["--networks", "resnet20", "--weights-dir", "nowhere"], "nowhere"),
        (scaling, ["--depths", "20", "21"], "not 21"),
        (scaling, ["--image-counts", "20"], "--image-counts must have at least 2"),
        (scaling, ["--data-root", "nowhere"], "belong together"),
        (scaling, ["--data-root", "nowhere", "--weights-dir", "."], "data_root nowhere"),
    ],
)
def test_who_mistypes_is_told(
    command: Any, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
