"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Two test processes share two cores: more threads only get in each other's way. This counts for the
# processes that tests start, too, and has to be said before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that `benchmarks` can be imported from anywhere

from compress_env.task import CompressionTask  # noqa: E402

torch.set_num_threads(1)

# The same examples at every run: a failure here is a failure everywhere. Most examples are seeds,
# which cannot be made simpler.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests the time that a training of VGG-16 takes on one busy core."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def digits_task() -> CompressionTask:
    """ResNet-20 on the digits, as the environments have it by default. Not to be changed."""
    return CompressionTask()
