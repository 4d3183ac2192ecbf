"""The papers' table: paired intervals by hand, and one row from search to page on small images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import papers
from benchmarks.paper_rows import ROWS, PaperRow
from benchmarks.paper_tables import paired_difference
from compress_env.datasets.digits import load_digits
from compress_env.networks.weights import default_weights, read_metadata


def test_paired_difference_by_hand() -> None:
    difference, low, high = paired_difference(12, 7, 1000)
    assert difference == pytest.approx(0.005)
    # b = 12.5, c = 7.5, n = 1002: middle 5/1002, reach 1.96 * sqrt(20 - 25/1002) / 1002.
    assert (low, high) == pytest.approx((0.004990 - 0.008743, 0.004990 + 0.008743), abs=2e-6)
    assert paired_difference(7, 12, 1000)[1:] == pytest.approx((-high, -low))


def test_rows_have_folders_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_command_chooses_its_own_row() -> None:
    for row in ROWS:
        assert papers.chosen_rows(row.command().split()[-1]) == [row]
    assert len(papers.chosen_rows("resnet56")) > 1


@pytest.fixture
def source(tmp_path: Path) -> papers.Source:
    splits = load_digits(None, 0, None)
    for name, part in (("train", splits.train), ("val", splits.search), ("test", splits.test)):
        for index in range(130):
            folder = tmp_path / "digits" / name / str(part.labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.moveaxis(part.images[index], 0, 2)).save(folder / f"{index}.png")
    weights = tmp_path / "weights"
    weights.mkdir()
    file = default_weights("resnet20", "digits")
    assert file is not None
    (weights / "resnet20-digits.safetensors").symlink_to(file)
    return papers.Source(str(tmp_path / "digits"), weights, tmp_path / "runs", tmp_path / "plans")


def test_a_row_from_plan_to_page(source: papers.Source, tmp_path: Path, monkeypatch) -> None:
    row = PaperRow("resnet20", "W4A4", epochs=1, bits=4)
    searched = PaperRow("resnet20", "uniform bits", epochs=1, target_reduction=0.984)
    monkeypatch.setattr(papers, "ROWS", (row, searched))
    out, page = tmp_path / "papers.csv", tmp_path / "results.md"
    arguments = ["--csv", str(out), "--page", str(page)]
    data = ["--data-root", source.data_root, "--weights-dir", str(source.weights_dir)]
    data += ["--plans", str(source.plans)]
    monkeypatch.setattr("sys.argv", ["papers", *arguments, *data, "--runs", str(source.runs)])
    papers.main()
    first = out.read_text()
    measured = {"engine": "e", "batch_size": 1, "file": "dense", "milliseconds": 1.25, "ratio": 1.0}
    (tmp_path / "papers_latency").mkdir()
    (tmp_path / "papers_latency" / f"{row.name}.json").write_text(
        json.dumps(
            {
                "rows": [{**measured, "file_bytes": 2048}],
                "versions": {"e": "1.0"},
                "threads": 2,
                "repeats": 50,
            }
        )
    )
    papers.main()  # everything is there: nothing changes
    assert out.read_text() == first
    told, found = list(csv.DictReader(out.open()))
    assert (told["method"], found["method"]) == ("W4A4", "uniform bits")
    assert float(found["reduction"]) >= 0.984 > float(told["reduction"]) > 0.98
    for entry in (told, found):
        right, dense = float(entry["test_accuracy"]), float(entry["dense_test_accuracy"])
        count = int(entry["num_test_images"])
        more = int(entry["only_compressed_right"]) - int(entry["only_dense_right"])
        assert right - dense == pytest.approx(more / count, abs=1e-6)
    file = source.runs / row.name / "finetuned" / "compressed.safetensors"
    assert read_metadata(file)["command"] == row.command()
    text = page.read_text()
    assert "e 1.0; 2 threads, medians of 50 rounds." in text and "1.25" in text
    assert "dense, 32 bits" in text and "W4A4" in text and found["command"] in text
    for picture in ("results-curves.svg", "results-differences.svg"):
        assert (tmp_path / picture).read_text().count("<svg") == 1 and picture in text


def test_the_plan_of_told_bits(source: papers.Source) -> None:
    row = replace(ROWS[0], bits=3)
    graph = source.task(row).graph
    plan = row.uniform_plan(graph)
    assert plan.weight_bits.tolist() == [8, *[3] * (len(graph.layers) - 2), 8]
