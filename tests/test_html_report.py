"""The page about runs: what is on it, what it refuses, and that text from files stays text."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE, hostile_copy, make_runs
from torch import nn
from typer.testing import CliRunner

from benchmarks.network_list import LISTED
from compress_agents.cli import app
from compress_agents.html_report import make_page, read_run, write_page
from compress_agents.html_report.chart import Chart, place_scales
from compress_agents.html_report.fronts import comparable
from compress_agents.html_report.network_graph import assign_lanes, network_rows
from compress_agents.html_report.page import bits_colours
from compress_agents.html_report.statistics import pareto_front, wilson_interval
from compress_agents.html_report.svg import percent_label, round_steps
from compress_agents.html_report.words import TIMES
from compress_agents.runs import RunFolder, write_json
from compress_env.layer_graph import trace

runner = CliRunner()


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_runs(tmp_path_factory.getbasetemp())


def refused(*words: object) -> str:
    """The one line that a refused command prints."""
    result = runner.invoke(app, ["report", *map(str, words)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    return line


def test_the_page_of_a_run_holds_its_figures(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = runs[0], tmp_path / "deep" / "page.html"
    result = runner.invoke(app, ["report", str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    page = Page(out.read_text())
    report = json.loads((run / "report.json").read_text())
    tuned = json.loads((run / "finetuned" / "finetune.json").read_text())
    low, high = wilson_interval(report["test_accuracy"], report["num_test_images"])
    for words in (
        f"{report['test_accuracy']:.2%} {low:.1%} to {high:.1%}",
        f"{report['uniform_test_accuracy']:.2%}",
        f"{report['baseline_test_accuracy']:.2%}",
        f"{tuned['results']['test_accuracy']:.2%}",
        f"{report['search_accuracy']:.2%}",
        f"{report['reduction']:.2%}",
        f"{report['size_bits'] / 8192:,.1f} KiB",
        report["command"],
        "compress-agents finetune it --steps 4",
        "compress-agents latency it --threads 2",
        *(f"{name} {version}" for name, version in report["versions"].items()),
        *("Learning curve of the search", "Accuracy while fine-tuning", "Front: all evaluated"),
        *("layer3.2.conv2", "3.25", "onnxruntime 1.0", "finetuned/compressed.safetensors"),
        "best plan, fine-tuned",
    ):
        assert words in page.text, words
    assert page.tags.count("h1") == 1


def test_figures_of_plans_that_were_trained_before_they_were_judged_say_so(
    runs: tuple[Path, Path],
) -> None:
    plain, trained = read_run(runs[1]), read_run(runs[1])
    object.__setattr__(trained, "config", {**trained.config, "finetune_steps": 20})
    text = Page(make_page([trained])).text
    for words in ("uniform bits,", "best plan,", "test accuracy"):
        assert f"{words} after 20 steps of training" in text
    assert "test accuracy without fine-tuning" not in text
    assert "of training" not in Page(make_page([plain])).text


def test_plans_that_were_trained_are_on_no_front_with_others(runs: tuple[Path, Path]) -> None:
    plain, trained, longer = (read_run(runs[1]) for _ in range(3))
    for run, steps in ((trained, 20), (longer, 60)):
        object.__setattr__(run, "config", {**run.config, "finetune_steps": steps})
    older = read_run(runs[1])  # of before there was the option
    object.__setattr__(older, "config", {**older.config})
    older.config.pop("finetune_steps")
    assert comparable([plain, trained, longer, older, trained]) == [[0, 3], [1, 4], [2]]
    text = Page(make_page([plain, trained])).text
    assert text.count("Front: all evaluated plans") == 2 and "Front: what" not in text
    assert "search accuracy after 20 steps of training" in text
    text = Page(make_page([trained, trained])).text
    assert "uniform bits, after 20 steps of training:" in text and "not trained" not in text


def test_nothing_is_fetched(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_page(runs, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert {"script", "img", "iframe", "object", "image", "use"}.isdisjoint(page.tags)
    assert page.tags.count("link") == 1
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith("#") or value == "data:,", (name, value)
        assert not name.startswith("on")
    assert "url(" not in (tmp_path / "page.html").read_text()
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_text_of_files_stays_text(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_page([hostile_copy(runs[0], tmp_path), runs[1]], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert {"script", "img"}.isdisjoint(page.tags)
    assert page.text.count(HOSTILE) >= 9


def test_runs_are_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = write_page([runs[0], runs[1], runs[0]], tmp_path / "page.html")
    assert [run.path for run in found] == list(runs)  # the one named twice is there once
    page = Page((tmp_path / "page.html").read_text())
    assert "2 runs compared" in page.text
    assert "Front: what the runs ended with" in page.text
    assert page.text.count("not done") == 1 and "has not been fine-tuned" in page.text
    other = read_run(runs[1])
    object.__setattr__(other, "report", {**other.report, "dataset": "another"})
    assert comparable([found[0], other, found[1]]) == [[0, 2], [1]]
    assert make_page([found[0], other]).count("Front: what") == 0


def test_what_cannot_be_shown_is_said_in_a_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "page.html"
    assert "no_such_run" in refused("no_such_run", "--out", out)
    assert ".html" in refused(runs[0], "--out", runs[0] / "report.json")
    shutil.copytree(runs[0], run)
    (run / "report.json").unlink()
    assert "has not ended" in refused(runs[1], run, "--out", out)
    for name, content in (
        ("report.json", "{}"),
        ("report.json", '{"reduction": NaN}'),
        ("best_plan.json", '{"format": 1, "groups": {}, "layers": {}}'),
        ("episodes.csv", "evaluations,accuracy\n1,0.5\n"),
        ("finetuned/finetune.json", '{"options": {}, "results": {}, "curve": [1]}'),
        ("finetuned/compressed.safetensors", "nonsense"),
        ("latency.json", '{"rows": 3}'),
    ):
        shutil.rmtree(run)
        shutil.copytree(runs[0], run)
        (run / name).write_text(content)
        assert str(run) in refused(run, "--out", out), name
    assert not out.exists()


def test_an_earlier_report_is_shown_with_the_data_at_hand(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    report = folder.read_report() or {}
    del report["input_shape"]
    write_json(folder.report, report)
    assert network_rows(read_run(folder.path).graph) == network_rows(read_run(runs[0]).graph)


@given(st.integers(1, 2000), st.data())
def test_intervals_are_wilsons(images: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, images))
    p, z = right / images, 1.959963984540054
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(
        p * (1 - p) / images + z * z / (4 * images * images)
    )  # fmt: skip
    assert wilson_interval(p, images) == pytest.approx((middle - half, middle + half), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_a_front_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        others = [other for other in points if other != point]
        return any(other[0] >= point[0] and other[1] >= point[1] for other in others)

    assert pareto_front(points) == sorted({point for point in points if not beaten(point)})


def test_ticks_are_round() -> None:
    assert round_steps(0, 400) == [0, 100, 200, 300, 400]
    assert round_steps(0.87, 1.0) == pytest.approx([0.9, 0.95, 1.0])
    assert [percent_label(0.5, step) for step in (0.1, 0.01, 0.005, 5e-5)] == [
        *("50%", "50%", "50.0%", "50.000%"),
    ]


def test_what_stands_close_is_spread_around_its_middle() -> None:
    x, y = place_scales((0, 1), (0, 1))
    chart = Chart(x, y, [], [], "", "", "")
    values = [0.5, 0.1, 0.501, 0.499]
    places = [x(v) + s for v, s in zip(values, chart.shifts(values, 10), strict=True)]
    assert places == pytest.approx([x(0.5), x(0.1), x(0.5) + 10, x(0.5) - 10])


# -- the graph of the network --------------------------------------------------------------------


class Branches(nn.Module):
    """A concatenation of two branches, then a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.left = nn.Conv2d(4, 2, 1)
        self.right = nn.Conv2d(4, 2, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        y = torch.cat([self.left(x), self.right(x).relu()], 1)
        return self.last(y) + x


def test_rows_and_lanes_of_a_small_network() -> None:
    rows = network_rows(trace(Branches(), (3, 8, 8)))
    assert [(row.kind, row.sources, row.symbol) for row in rows] == [
        ("input", (), ""),
        ("layer", (0,), ""),
        ("layer", (1,), ""),
        ("layer", (1,), ""),
        ("join", (2, 3), "‖"),
        ("layer", (4,), ""),
        ("join", (1, 5), "+"),
        ("output", (6,), ""),
    ]
    lanes = [(lane.source, lane.readers, lane.place) for lane in assign_lanes(rows)]
    assert lanes == [(1, (3, 6), 1), (2, (4,), 0)]


@pytest.mark.parametrize(
    "name", ["resnet20", "shufflenet_v2", "densenet121", "googlenet", "mobilenet_v3_small"]
)
def test_the_picture_has_the_edges_of_the_layer_graph(name: str) -> None:
    size = LISTED[name].small_image_size
    graph = trace(LISTED[name].build(), (3, size, size))
    rows = network_rows(graph)
    makers: list[set[int]] = []  # layers whose outputs a row hands on
    edges = set()
    for row in rows:
        operands = [makers[source] for source in row.sources if makers[source]]
        read = set().union(*operands)
        if row.kind == "layer":
            edges |= {(maker, row.layer) for maker in read}
        if row.symbol in ("+", TIMES):  # the layer graph has the latest layer of each operand
            read = {max(operand) for operand in operands}
        makers.append({row.layer} if row.kind == "layer" else read)
    assert edges == {(int(a), int(b)) for a, b in graph.flow_edges.T}
    # Every edge is drawn once, and no two lanes lie on each other.
    lanes = assign_lanes(rows)
    drawn = [(lane.source, reader) for lane in lanes for reader in lane.readers]
    drawn += [(i - 1, i) for i, row in enumerate(rows) if i - 1 in row.sources]
    assert sorted(drawn) == sorted((s, i) for i, row in enumerate(rows) for s in row.sources)
    taken = np.zeros((len(lanes) + 1, len(rows)), dtype=int)
    for lane in lanes:
        taken[lane.place, lane.source : lane.readers[-1]] += 1
    assert taken.max(initial=0) <= 1


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, as WCAG 2 has it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_can_be_seen() -> None:
    for _, colour, ink in bits_colours():
        assert contrast(colour, ink) >= 4.5
    css = (files("compress_agents.html_report") / "page.css").read_text()
    blocks = css.split("@media (prefers-color-scheme: dark)")
    for block in (blocks[0], blocks[1].split("}")[0]):
        pairs = (part.split(":") for part in block.split("{")[-1].split(";") if ":" in part)
        colours = {name.strip(): value.strip() for name, value in pairs}
        for text in ("--ink", "--soft", "--accent"):
            assert contrast(colours[text], colours["--card"]) >= 4.5, text
            assert contrast(colours[text], colours["--paper"]) >= 4.5, text
        for line in (
            "first",
            "second",
            "dense",
            "uniform",
            "quiet",
            *(f"run{i}" for i in range(8)),
        ):
            assert contrast(colours[f"--{line}"], colours["--card"]) >= 3, line
