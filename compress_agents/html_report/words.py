"""Words and numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "TIMES",
    "amount",
    "bits_text",
    "compared",
    "duration",
    "kibibytes",
    "metric_word",
    "plural",
    "times_less",
    "when_judged",
]

TIMES = "\u00d7"
"""The multiplication sign."""

_METRICS = {"bops": "BOPs", "macs": "MACs", "params": "parameters"}


def metric_word(report: Mapping[str, Any]) -> str:
    """What the reduction of a report is measured in."""
    metric = str(report["metric"])
    return _METRICS.get(metric, metric)


def plural(count: int, word: str) -> str:
    """A count of things: 1 thread, 2 threads."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def amount(value: float) -> str:
    """A count with three digits and a unit: 12.3 k, 4.56 M, 7.89 G."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            shown = value / scale
            decimals = 0 if shown >= 99.95 else 1 if shown >= 9.995 else 2
            return f"{shown:.{decimals}f} {unit}"
    return f"{value:.0f}"


def kibibytes(value: float) -> str:
    """Bytes in KiB, or in MiB where they are many."""
    if value >= 10 * 2**20:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value / 2**10:,.1f} KiB"


def times_less(value: float, dense: float) -> str:
    """How many times less than dense: 11.8×."""
    ratio = dense / value
    return f"{ratio:.0f}{TIMES}" if ratio >= 99.5 else f"{ratio:.3g}{TIMES}"


def compared(value: float, dense: float) -> str:
    """A cost beside the dense network's: a share where it is not far below, else a factor."""
    return (
        f"{value / dense:.1%} of dense" if value > dense / 2 else f"{times_less(value, dense)} less"
    )


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def bits_text(config: Mapping[str, Any]) -> str:
    """The bit-widths that a search could choose among."""
    bits = config.get("bits")
    return ", ".join(map(str, bits)) if isinstance(bits, list) else ""


def when_judged(config: Mapping[str, Any]) -> str:
    """How far a search trained plans before it judged them; empty where it did not."""
    steps = config.get("finetune_steps")
    return f"after {plural(steps, 'step')} of training" if isinstance(steps, int) and steps else ""
