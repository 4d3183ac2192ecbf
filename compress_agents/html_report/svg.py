"""Pictures as SVG elements: text is escaped by the library, colours are classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

__all__ = [
    "LegendEntry",
    "Picture",
    "Scale",
    "element",
    "new_svg",
    "percent_label",
    "round_steps",
    "to_markup",
]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a picture's legend.

    Attributes:
        shape: `"line"`, `"dash"`, `"dot"`, `"ring"`, `"diamond"`, `"kite"`, `"square"` or `"box"`.
        style: class of the page's style sheet, for the colour.
        text: what it stands for.
    """

    shape: str
    style: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture with what belongs around it.

    Attributes:
        title: its heading.
        svg: the drawing.
        legend: entries of the legend.
        note: a sentence below, or empty.
    """

    title: str
    svg: Markup
    legend: Sequence[LegendEntry] = ()
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """From values to places in a picture.

    Attributes:
        low: value at `start`.
        high: value at `end`; above `low`.
        start: place in pixels.
        end: place in pixels.
        transform: a rising function that values go through first.
    """

    low: float
    high: float
    start: float
    end: float
    transform: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """Where a value is."""
        low, high = self.transform(self.low), self.transform(self.high)
        share = (self.transform(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)


def new_svg(width: float, height: float, label: str, style: str = "") -> ElementTree.Element:
    """An empty picture.

    Args:
        width: in pixels, as is the height.
        height: of the picture.
        label: what it shows, in words, for those who do not see it.
        style: class of the page's style sheet.
    """
    box = f"0 0 {_number(width)} {_number(height)}"
    root = ElementTree.Element("svg", {"viewBox": box, "role": "img", "aria-label": label})
    root.set("width", _number(width))
    root.set("height", _number(height))
    if style:
        root.set("class", style)
    return root


def element(
    parent: ElementTree.Element, tag: str, style: str = "", text: str = "", **attributes: object
) -> ElementTree.Element:
    """Add an element.

    Args:
        parent: where to.
        tag: its name.
        style: its class.
        text: its text.
        **attributes: numbers are rounded to a tenth; an underscore stands for a hyphen.
    """
    made = ElementTree.SubElement(parent, tag)
    if style:
        made.set("class", style)
    for name, value in attributes.items():
        words = _number(value) if isinstance(value, (int, float)) else str(value)
        made.set(name.replace("_", "-"), words)
    if text:
        made.text = text
    return made


def to_markup(root: ElementTree.Element) -> Markup:
    """The picture as a part of a page."""
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def round_steps(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from `low` to `high`, about `count`, a step of 1, 2 or 5 times ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [number * step for number in range(first, last + 1)]


def percent_label(value: float, step: float) -> str:
    """A share as a percentage, with as many decimals as steps of this size need."""
    decimals = max(0, math.ceil(-math.log10(100 * step) - 1e-6)) if step > 0 else 2
    return f"{value:.{decimals}%}"


def _number(value: object) -> str:
    assert isinstance(value, (int, float))
    return f"{value:.1f}".removesuffix(".0")
