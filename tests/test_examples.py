"""Every example runs as it stands; the one that trains without a library learns."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))

SMALL = {
    "1_random_actions": (["--steps", "1"], r"random 1 .*\n\nThe best of them, reward 0\.9"),
    "2_sb3_ppo": (["--steps", "32"], r"32 steps: mean reward 0\..*\nwithout noise: accuracy 0\.9"),
    "3_ppo_in_one_file": (["--steps", "8"], r"     1      8 .*\n\nmean reward .*\nbest plan"),
    "4_torchrl": (["--steps", "32"], r"edges +\(3, 120\)  torch.int32(.*\n)+    32  "),
    "6_own_network_and_images": (
        ["--plans", "2", "--epochs", "2"],
        r"dense .*%.*\ncompressed .*%.*\n.*the one that was saved: True",
    ),
    "7_own_reward_and_observation": (["--plans", "1"], r"   0 +\d+\.\d+% +9\d\.\d+%\n\nbest by"),
}
"""Arguments that make an example short, and what it has to print."""

NEEDS = {"4_torchrl": "torchrl"}
# RLlib pins another Gymnasium, and starting Ray takes longer than all the others together.
NOT_HERE = {"5_rllib"}


def run(name: str, arguments: list[str], folder: Path) -> str:
    """What an example prints, called as a user would from a folder of theirs."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_every_example_is_tried_and_listed() -> None:
    names = {path.stem for path in EXAMPLES}
    assert names == set(SMALL) | NOT_HERE
    table = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.py\)", table)) == names


@pytest.mark.parametrize("name", SMALL)
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    arguments, expected = SMALL[name]
    assert re.search(expected, run(name, arguments, tmp_path))
    assert not list(tmp_path.iterdir())  # nothing is left behind unless asked for


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_docstring_gives_the_command(path: Path) -> None:
    assert f"\n    python examples/{path.name}\n" in path.read_text().split('"""')[1]


@pytest.mark.slow
def test_ppo_in_one_file_learns(tmp_path: Path) -> None:
    printed = run("3_ppo_in_one_file", [], tmp_path)
    first, last = re.search(r"first update (\S+), of the last (\S+)", printed).groups()
    assert float(last) > float(first) + 0.05


@pytest.mark.slow
def test_rllib_runs(tmp_path: Path) -> None:
    """Where Ray is installed: an environment of its own, see docs/rl_stacks.md."""
    pytest.importorskip("ray.rllib", exc_type=ImportError)
    assert importlib.import_module("ray").__version__
    assert re.search(r"\n +\d\d  +0\.\d+", run("5_rllib", ["--steps", "32"], tmp_path))
