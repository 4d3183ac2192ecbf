"""A chart: two axes, and what is drawn between them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from compress_agents.html_report.svg import Scale, element, new_svg, to_markup

__all__ = ["Chart", "Ticks", "place_scales"]

Ticks = Sequence[tuple[float, str]]
"""Values and what is written at them."""

WIDTH, HEIGHT = 400.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 16.0, 30.0, 48.0
_RADIUS = 4.5


def place_scales(x: tuple[float, float], y: tuple[float, float]) -> tuple[Scale, Scale]:
    """Linear scales over the area between the axes, for lowest and highest values."""
    return (
        Scale(x[0], x[1], _LEFT, WIDTH - _RIGHT),
        Scale(y[0], y[1], HEIGHT - _BOTTOM, _TOP),
    )


class Chart:
    """A chart to draw into. Points are pairs of values.

    Args:
        x: scale of the horizontal axis.
        y: scale of the vertical axis.
        x_ticks: its ticks.
        y_ticks: its ticks.
        x_title: what the horizontal axis shows.
        y_title: what the vertical axis shows.
        label: the chart in words, for those who do not see it.
    """

    def __init__(
        self,
        x: Scale,
        y: Scale,
        x_ticks: Ticks,
        y_ticks: Ticks,
        x_title: str,
        y_title: str,
        label: str,
    ) -> None:
        self.x, self.y = x, y
        self.root = new_svg(WIDTH, HEIGHT, label, "chart")
        bottom = HEIGHT - _BOTTOM
        for value, text in y_ticks:
            place = y(value)
            self._line(_LEFT, place, WIDTH - _RIGHT, place, "grid")
            element(self.root, "text", "tick", text, x=_LEFT - 7, y=place + 4.5, text_anchor="end")
        for value, text in x_ticks:
            place = x(value)
            self._line(place, bottom, place, bottom + 5, "axis")
            element(self.root, "text", "tick", text, x=place, y=bottom + 20, text_anchor="middle")
        self._line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis")
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        element(self.root, "text", "label", x_title, x=middle, y=HEIGHT - 8, text_anchor="middle")
        element(self.root, "text", "label", y_title, x=4, y=16)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Straight lines from point to point."""
        places = [self._place(point) for point in points]
        element(self.root, "path", f"line {style}", d=_path(places))

    def steps(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line that stays at a value until the next point."""
        places: list[tuple[float, float]] = []
        for point in points:
            x, y = self._place(point)
            if places:
                places.append((x, places[-1][1]))
            places.append((x, y))
        element(self.root, "path", f"line {style}", d=_path(places))

    def level(self, y: float, style: str) -> None:
        """A line across at a value."""
        self._line(_LEFT, self.y(y), WIDTH - _RIGHT, self.y(y), f"line {style}")

    def cloud(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Many small dots, as one path: pages with thousands of them stay small."""
        places = dict.fromkeys(f"M{x:.1f} {y:.1f}h0" for x, y in map(self._place, points))
        element(self.root, "path", f"cloud {style}", d="".join(places))

    def marker(
        self,
        point: tuple[float, float],
        shape: str,
        style: str,
        title: str,
        shift: float = 0.0,
    ) -> None:
        """A dot or diamond, or a hollow ring or kite, that says what it is when pointed at.

        Args:
            point: where it is.
            shape: `"dot"`, `"diamond"`, `"ring"` or `"kite"`.
            style: class of the page's style sheet.
            title: what it says.
            shift: pixels to the right of its place.
        """
        x, y = self._place(point)
        x += shift
        style = f"{'dot' if shape in ('dot', 'diamond') else 'ring'} {style}"
        if shape in ("dot", "ring"):
            made = element(self.root, "circle", style, cx=x, cy=y, r=_RADIUS)
        else:
            r = 1.3 * _RADIUS
            d = f"M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z"
            made = element(self.root, "path", style, d=d)
        element(made, "title", text=title)

    def interval(self, x: float, ends: tuple[float, float], style: str, shift: float = 0.0) -> None:
        """A vertical line from one value to another, with caps, `shift` pixels to the right."""
        place, low, high = self.x(x) + shift, self.y(ends[0]), self.y(ends[1])
        caps = f"M{place:.1f} {low:.1f}V{high:.1f}"
        for end in (low, high):
            caps += f"M{place - 4:.1f} {end:.1f}h8"
        element(self.root, "path", f"line thin {style}", d=caps)

    def shifts(self, values: Sequence[float], gap: float = 11.0) -> list[float]:
        """How far to shift what stands at these values of x, so that nothing hides another.

        Args:
            values: places on the horizontal axis.
            gap: pixels between neighbours.

        Returns:
            Pixels for every value; things that stand close to each other are spread around their
            middle.
        """
        places = [self.x(value) for value in values]
        order = sorted(range(len(places)), key=places.__getitem__)
        found = [0.0] * len(places)
        while order:
            crowd = [order.pop(0)]
            while order and places[order[0]] - places[crowd[-1]] < gap:
                crowd.append(order.pop(0))
            middle = sum(places[index] for index in crowd) / len(crowd)
            for number, index in enumerate(crowd):
                wanted = middle + gap * (number - (len(crowd) - 1) / 2)
                found[index] = wanted - places[index] if len(crowd) > 1 else 0.0
        return found

    def to_markup(self) -> Markup:
        """The chart as a part of a page."""
        return to_markup(self.root)

    def _place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point is; points out of range lie on the edge."""
        x = min(max(self.x(point[0]), _LEFT), WIDTH - _RIGHT)
        return x, min(max(self.y(point[1]), _TOP), HEIGHT - _BOTTOM)

    def _line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        element(self.root, "line", style, x1=x1, y1=y1, x2=x2, y2=y2)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
