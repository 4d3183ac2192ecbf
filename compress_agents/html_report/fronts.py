"""Accuracy against reduction, over all runs that are comparable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from compress_agents.html_report.chart import Chart, Ticks, place_scales
from compress_agents.html_report.curves import accuracy_range, percent_ticks
from compress_agents.html_report.reading import Run
from compress_agents.html_report.statistics import pareto_front, wilson_interval
from compress_agents.html_report.svg import LegendEntry, Picture, Scale
from compress_agents.html_report.words import metric_word, plural, when_judged

__all__ = ["comparable", "outcome_front", "run_style", "search_front"]

_STYLES = 8


def comparable(runs: Sequence[Run]) -> list[list[int]]:
    """Places of the runs that belong into one picture.

    They have the same network, data set and metric, and trained plans as far before judging them.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(runs):
        report = run.report
        subject = report["network"], report["dataset"], report["metric"]
        groups.setdefault((*subject, when_judged(run.config)), []).append(place)
    return list(groups.values())


def run_style(place: int) -> str:
    """The class for the colour of a run, by its place on the page."""
    return f"run{place % _STYLES}"


def search_front(runs: Sequence[Run], places: Sequence[int]) -> Picture:
    """Search accuracy of every evaluated plan against its reduction, and the front over all.

    Args:
        runs: all runs of the page.
        places: those to draw, which are comparable.
    """
    drawn = [(place, runs[place]) for place in places]
    episodes = [episode for _, run in drawn for episode in run.episodes]
    dense = {run.report["dense_search_accuracy"] for _, run in drawn}
    uniform = {
        (run.report["uniform_reduction"], run.report["uniform_search_accuracy"]) for _, run in drawn
    }
    low, high = accuracy_range([e.accuracy for e in episodes], [*dense, *(y for _, y in uniform)])
    front = pareto_front((episode.reduction, episode.accuracy) for episode in episodes)
    reductions = [*(episode.reduction for episode in episodes), *(x for x, _ in uniform)]
    what = f"search accuracy {when_judged(drawn[0][1].config)}".rstrip()
    chart = _chart(drawn[0][1], reductions, (low, high), what, (
        f"{what.capitalize()} against reduction of {len(episodes)} plans of {len(drawn)} runs; "
        f"{len(front)} of them are on the front"
    ))  # fmt: skip
    for accuracy in sorted(dense):
        chart.level(accuracy, "dense dash")
    legend = [LegendEntry("dash", "dense", "dense network")]
    for place, run in drawn:
        seen = [(e.reduction, e.accuracy) for e in run.episodes if e.accuracy >= low]
        chart.cloud(seen, run_style(place))
        legend.append(LegendEntry("dot", run_style(place), f"plans of {run.name}"))
    if len(front) > 1:
        # Between two plans of the front nothing better than the next one is known.
        corners = [front[-1]]
        for point in front[-2::-1]:
            corners += [(point[0], corners[-1][1]), point]
        chart.line([point for point in corners], "ink")
    for reduction, accuracy in front:
        chart.marker(
            (reduction, accuracy),
            "ring",
            "ink",
            f"reduction {reduction:.3%}, accuracy {accuracy:.2%}",
        )
    legend.append(LegendEntry("ring", "ink", "front over all of them"))
    for point in sorted(uniform):
        chart.marker(
            point, "diamond", "uniform", f"uniform bits: reduction {point[0]:.3%}, {point[1]:.2%}"
        )
    legend.append(LegendEntry("diamond", "uniform", "uniform bits"))
    hidden = sum(episode.accuracy < low for episode in episodes)
    note = f"Below the picture: {plural(hidden, 'plan')} with less accuracy." if hidden else ""
    return Picture("Front: all evaluated plans", chart.to_markup(), legend, note)


def outcome_front(runs: Sequence[Run], places: Sequence[int]) -> Picture:
    """Test accuracy of every run's plan against its reduction, with 95% intervals.

    Args:
        runs: all runs of the page.
        places: those to draw, which are comparable.
    """
    drawn = [(place, runs[place]) for place in places]
    dense = {run.report["baseline_test_accuracy"] for _, run in drawn}
    after = {place: _final_accuracy(run) for place, run in drawn}
    spans = {p: wilson_interval(after[p], int(run.report["num_test_images"])) for p, run in drawn}
    uniform = {
        (run.report["uniform_reduction"], run.report["uniform_test_accuracy"]) for _, run in drawn
    }
    before = [run.report["test_accuracy"] for _, run in drawn]
    ends = [end for span in spans.values() for end in span]
    lowest = min([*dense, *ends, *before, *(y for _, y in uniform)])
    low, high = accuracy_range([], [lowest, max([*dense, *ends, *before])])
    reductions = [*(run.report["reduction"] for _, run in drawn), *(x for x, _ in uniform)]
    best = pareto_front((run.report["reduction"], after[place]) for place, run in drawn)
    chart = _chart(drawn[0][1], reductions, (low, high), "test accuracy", (
        f"Test accuracy of {len(drawn)} runs against reduction, with 95% intervals"
    ))  # fmt: skip
    for accuracy in sorted(dense):
        chart.level(accuracy, "dense dash")
    if len(best) > 1:
        chart.line(best, "ink thin")
    when = when_judged(drawn[0][1].config) or "not trained"
    for point in sorted(uniform):
        chart.marker(point, "kite", "uniform", f"uniform bits, {when}: {point[1]:.2%}")
    trained_uniform = _trained_uniform(run for _, run in drawn)
    for point in trained_uniform:
        chart.marker(point, "diamond", "uniform", f"uniform bits, fine-tuned: {point[1]:.2%}")
    legend = [
        LegendEntry("dash", "dense", "dense network"),
        LegendEntry("kite", "uniform", "uniform bits"),
    ]
    if trained_uniform:
        legend.append(LegendEntry("diamond", "uniform", "uniform bits, fine-tuned"))
    shifts = chart.shifts([run.report["reduction"] for _, run in drawn])
    for (place, run), shift in zip(drawn, shifts, strict=True):
        style, reduction = run_style(place), run.report["reduction"]
        chart.interval(reduction, spans[place], style, shift)
        if run.finetuning is not None:
            earlier = run.report["test_accuracy"]
            words = f"{run.name}, before fine-tuning: {earlier:.2%}"
            chart.marker((reduction, earlier), "ring", style, words, shift)
        words = f"{run.name}: {after[place]:.2%} at {reduction:.3%}"
        chart.marker((reduction, after[place]), "dot", style, words, shift)
        legend.append(LegendEntry("dot", style, run.name))
    if any(run.finetuning is not None for _, run in drawn):
        legend.append(LegendEntry("ring", "ink", "before fine-tuning"))
    if len(best) > 1:
        legend.append(LegendEntry("line", "ink", "front"))
    note = "Lines are 95% intervals (Wilson)."
    if any(shifts):
        note += " Runs with about the same reduction stand side by side."
    return Picture("Front: what the runs ended with", chart.to_markup(), legend, note)


def _trained_uniform(runs: Iterable[Run]) -> list[tuple[float, float]]:
    """Reduction and test accuracy of uniform bits after fine-tuning, where a run has them."""
    return [
        (run.report["uniform_reduction"], run.uniform_finetuning.results["test_accuracy"])
        for run in runs
        if run.uniform_finetuning is not None
    ]


def _final_accuracy(run: Run) -> float:
    found = run.report if run.finetuning is None else run.finetuning.results
    return float(found["test_accuracy"])


def _chart(
    run: Run, reductions: Sequence[float], y: tuple[float, float], what: str, label: str
) -> Chart:
    """A chart over reduction: equal steps to the right divide what is left by equal factors."""
    least, most = _widened(reductions)
    x_scale, y_scale = place_scales((least, most), y)
    x_scale = Scale(least, most, x_scale.start, x_scale.end, _orders_removed)
    return Chart(
        x_scale,
        y_scale,
        _reduction_ticks(least, most),
        percent_ticks(*y),
        f"reduction of {metric_word(run.report)}",
        what,
        label,
    )


def _orders_removed(reduction: float) -> float:
    return -math.log10(1 - min(reduction, 1 - 1e-9))


def _widened(reductions: Iterable[float]) -> tuple[float, float]:
    orders = [_orders_removed(reduction) for reduction in reductions]
    least, most = min(orders), max(orders)
    margin = max(0.06 * (most - least), 1e-4)
    return 1 - 10 ** -(least - margin), 1 - 10 ** -(most + margin)


def _reduction_ticks(least: float, most: float) -> Ticks:
    if (1 - least) / (1 - most) < 3:
        return percent_ticks(least, most, 4)
    left = [times * 10.0**-power for power in range(10) for times in (5, 2, 1)]
    ticks = [1 - share for share in left if least <= 1 - share <= most]
    every = -(-len(ticks) // 6)
    return [(value, f"{value:.6%}".rstrip("0%").rstrip(".") + "%") for value in ticks[::every]]
