"""The generated documentation is up to date, and the measuring scripts run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import environment_pages, networks
from benchmarks.network_list import LISTED


def test_committed_pages_are_what_the_registry_gives() -> None:
    pages = environment_pages.pages()
    folder = environment_pages.FOLDER
    assert {path.name for path in folder.iterdir()} == set(pages)
    for name, text in pages.items():
        command = "run: python -m benchmarks.environment_pages"
        assert (folder / name).read_text() == text, f"{name} is out of date; {command}"


def test_networks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "figures.json", tmp_path / "page.md"
    networks.main(
        ["resnet20", "--repeats", "1", "--json", str(files[0]), "--markdown", str(files[1])]
    )
    (figures,) = json.loads(files[0].read_text())
    assert figures["layers"] == 20
    assert figures["groups"] == 12
    assert figures["macs"] == 40_551_040
    assert 0 < figures["prune_ms"] < 1000
    assert "| resnet20 | 32x32  | 20" in files[1].read_text()
    assert "40.55" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        networks.main(["resnet21"])


@pytest.mark.slow
def test_networks_are_traced_pruned_and_observed_fast_enough() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processor time is measured
    found = {
        name: networks.measure(LISTED[name], repeats=9)
        for name in ("resnet20", "resnet56", "resnet110", "resnet50_imagenet")
    }
    torch.set_num_threads(threads)
    assert found["resnet110"].trace_ms < 2000
    assert found["resnet50_imagenet"].trace_ms < 2000
    assert found["resnet56"].prune_ms < 30
    small, large = found["resnet20"], found["resnet110"]
    for step in ("trace_ms", "prune_ms", "observe_ms"):  # linear, with room for a busy machine
        assert getattr(large, step) / getattr(small, step) < 2 * large.layers / small.layers
