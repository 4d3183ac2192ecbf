"""Curves of one run: what the search found over time, and what fine-tuning brought back."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from compress_agents.html_report.chart import Chart, Ticks, place_scales
from compress_agents.html_report.reading import Finetuning, Run
from compress_agents.html_report.statistics import wilson_interval
from compress_agents.html_report.svg import (
    LegendEntry,
    Picture,
    Scale,
    element,
    new_svg,
    percent_label,
    round_steps,
    to_markup,
)
from compress_agents.html_report.words import plural

__all__ = ["accuracy_range", "intervals", "loss_curve", "percent_ticks", "run_curves"]

_ROW, _LABEL, _VALUE, _WIDTH = 38.0, 116.0, 62.0, 400.0


def run_curves(run: Run) -> list[Picture]:
    """All curves that a run has."""
    pictures = [learning_curve(run), intervals(run)]
    if run.finetuning is not None:
        pictures.append(finetuning_curve(run, run.finetuning))
        loss = loss_curve(run.finetuning)
        if loss is not None:
            pictures.append(loss)
    return pictures


def learning_curve(run: Run) -> Picture:
    """Search accuracy over evaluations: every episode's, a running median, and the best so far."""
    report = run.report
    dense, uniform = report["dense_search_accuracy"], report["uniform_search_accuracy"]
    accuracies = [episode.accuracy for episode in run.episodes]
    low, high = accuracy_range(accuracies, [dense, uniform])
    last = max((episode.evaluations for episode in run.episodes), default=1)
    x, y = place_scales((0, max(last, 2)), (low, high))
    images = int(report["num_search_images"])
    chart = Chart(
        x,
        y,
        _number_ticks(0, max(last, 2)),
        percent_ticks(low, high),
        "plans evaluated",
        f"search accuracy, {images:,} images",
        f"Learning curve: after {last} evaluated plans the best has "
        f"{report['search_accuracy']:.2%} on the search split; the dense network {dense:.2%}, "
        f"uniform bits {uniform:.2%}",
    )
    seen = [(e.evaluations, e.accuracy) for e in run.episodes if e.accuracy >= low]
    chart.cloud(seen, "quiet")
    legend = [LegendEntry("dot", "quiet", "a plan")]
    window = max(5, len(accuracies) // 20)
    if len(accuracies) >= 20:
        # Not the mean: single plans that break the network would drown all others.
        views = np.lib.stride_tricks.sliding_window_view(np.array(accuracies), window)
        ends = [episode.evaluations for episode in run.episodes[window - 1 :]]
        chart.line(list(zip(ends, np.median(views, axis=1).tolist(), strict=True)), "second")
        legend.append(LegendEntry("line", "second", f"median of the last {window}"))
    chart.level(dense, "dense dash")
    chart.level(uniform, "uniform dash")
    best = ((episode.evaluations, episode.best_accuracy) for episode in run.episodes)
    chart.steps(_finite(best), "first")
    legend += [
        LegendEntry("line", "first", "best plan so far"),
        LegendEntry("dash", "dense", f"dense network {dense:.2%}"),
        LegendEntry("dash", "uniform", f"uniform bits {uniform:.2%}"),
    ]
    hidden = len(accuracies) - len(seen)
    note = f"Below the picture: {plural(hidden, 'plan')} with less accuracy." if hidden else ""
    return Picture("Learning curve of the search", chart.to_markup(), legend, note)


def finetuning_curve(run: Run, finetuning: Finetuning) -> Picture:
    """Accuracy over training steps, on the search split and on what is trained with."""
    dense = run.report["dense_search_accuracy"]
    found = [(look["step"], look["search_accuracy"]) for look in finetuning.curve]
    trained = _finite((look["step"], look.get("train_accuracy")) for look in finetuning.curve)
    low, high = accuracy_range([y for _, y in (*found, *trained)], [dense])
    last = max(found[-1][0], 1)
    x, y = place_scales((0, last), (low, high))
    chart = Chart(
        x,
        y,
        _number_ticks(0, last),
        percent_ticks(low, high),
        "training steps",
        "accuracy",
        f"Fine-tuning curve: search accuracy goes from {found[0][1]:.2%} to {found[-1][1]:.2%} in "
        f"{last} steps; the dense network has {dense:.2%}",
    )
    legend = [LegendEntry("line", "first", "on the search split")]
    if trained:
        chart.line(trained, "second")
        legend.append(LegendEntry("line", "second", "on training images, augmented"))
    chart.level(dense, "dense dash")
    chart.line(found, "first")
    for step, accuracy in found:
        chart.marker((step, accuracy), "dot", "first", f"step {step}: {accuracy:.2%}")
    legend.append(LegendEntry("dash", "dense", f"dense network, search split {dense:.2%}"))
    stopped = str(finetuning.results.get("stopped") or "")
    return Picture("Accuracy while fine-tuning", chart.to_markup(), legend, stopped)


def loss_curve(finetuning: Finetuning) -> Picture | None:
    """Training loss over steps; None where fewer than two values are known."""
    losses = _finite((look["step"], look.get("train_loss")) for look in finetuning.curve)
    if len(losses) < 2:
        return None
    top = max(loss for _, loss in losses) * 1.05 or 1.0
    x, y = place_scales((0, losses[-1][0]), (0, top))
    steps = round_steps(0, top)
    chart = Chart(
        x,
        y,
        _number_ticks(0, losses[-1][0]),
        [(value, f"{value:.3g}") for value in steps],
        "training steps",
        "training loss, mean since the look before",
        f"Training loss: from {losses[0][1]:.3g} to {losses[-1][1]:.3g}",
    )
    chart.line(losses, "second")
    for step, loss in losses:
        chart.marker((step, loss), "dot", "second", f"step {step}: {loss:.4g}")
    return Picture("Loss while fine-tuning", chart.to_markup())


def intervals(run: Run) -> Picture:
    """Test accuracies with their 95% intervals, one below the other."""
    report = run.report
    images = int(report["num_test_images"])
    rows = [
        ("dense network", report["baseline_test_accuracy"], "dense"),
        ("uniform bits", report["uniform_test_accuracy"], "uniform"),
        ("best plan", report["test_accuracy"], "first"),
    ]
    if run.uniform_finetuning is not None:
        rows.insert(
            2, ("then fine-tuned", run.uniform_finetuning.results["test_accuracy"], "uniform")
        )
    if run.finetuning is not None:
        rows.append(("then fine-tuned", run.finetuning.results["test_accuracy"], "first"))
    ends = [wilson_interval(accuracy, images) for _, accuracy, _ in rows]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    bottom = _ROW * len(rows) + 12
    scale = Scale(low, high, _LABEL, _WIDTH - _VALUE - 8)
    words = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy, _ in rows)
    root = new_svg(_WIDTH, bottom + 46, f"Test accuracy: {words}", "chart")
    for value, text in percent_ticks(low, high, 4):
        place = scale(value)
        element(root, "line", "grid", x1=place, y1=6, x2=place, y2=bottom)
        element(root, "text", "tick", text, x=place, y=bottom + 18, text_anchor="middle")
    dense = scale(rows[0][1])
    element(root, "line", "line dense dash", x1=dense, y1=6, x2=dense, y2=bottom)
    for index, ((name, accuracy, style), (left, right)) in enumerate(zip(rows, ends, strict=True)):
        y = _ROW * (index + 0.5) + 6
        element(root, "text", "label", name, x=4, y=y + 4.5)
        d = f"M{scale(left):.1f} {y:.1f}H{scale(right):.1f}"
        for end in (left, right):
            d += f"M{scale(end):.1f} {y - 5:.1f}v10"
        element(root, "path", f"line {style}", d=d)
        dot = element(root, "circle", f"dot {style}", cx=scale(accuracy), cy=y, r=5.5)
        element(dot, "title", text=f"{name}: {accuracy:.2%}, from {left:.2%} to {right:.2%}")
        element(root, "text", "label strong", f"{accuracy:.2%}", x=_WIDTH - 4, y=y + 4.5,
                text_anchor="end")  # fmt: skip
    middle = (_LABEL + _WIDTH - _VALUE) / 2
    title = f"test accuracy, {images:,} images"
    element(root, "text", "label", title, x=middle, y=bottom + 40, text_anchor="middle")
    note = (
        "Lines are 95% intervals (Wilson). All networks saw the same images, so what is between "
        "two of them is surer than their intervals."
    )
    return Picture("Accuracy on the test split", to_markup(root), note=note)


def accuracy_range(accuracies: list[float], always: list[float]) -> tuple[float, float]:
    """Lowest and highest accuracy to show.

    A few plans that break the network must not press all others into one line: the lowest
    twentieth does not count.

    Args:
        accuracies: of plans, 0 to 1.
        always: accuracies that have to be seen.
    """
    lowest = min([*always, *([float(np.quantile(accuracies, 0.05))] if accuracies else [])])
    highest = max([*always, *accuracies])
    margin = max(0.06 * (highest - lowest), 0.004)
    return max(lowest - margin, -0.5 * margin), min(highest + margin, 1 + 0.5 * margin)


def percent_ticks(low: float, high: float, count: int = 5) -> Ticks:
    """Ticks of an axis of shares."""
    values = [value for value in round_steps(low, high, count) if -1e-9 <= value <= 1 + 1e-9]
    step = values[1] - values[0] if len(values) > 1 else 0.0
    return [(value, percent_label(value, step)) for value in values]


def _number_ticks(low: float, high: float) -> Ticks:
    whole = [value for value in round_steps(low, high) if abs(value - round(value)) < 1e-6]
    return [(value, f"{round(value):,}") for value in whole]


def _finite(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]
