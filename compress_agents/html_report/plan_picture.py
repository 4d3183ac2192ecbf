"""The plan on the graph of the network: channels and bits of every layer, in the data's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from compress_agents.html_report.network_graph import Lane, Row, assign_lanes, network_rows
from compress_agents.html_report.svg import LegendEntry, Picture, element, new_svg, to_markup
from compress_agents.html_report.words import TIMES, amount
from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import Layer, LayerGraph
from compress_env.plan import FLOAT_BITS, CompressionPlan

__all__ = ["LayerFigures", "layer_figures", "plan_picture"]

_HEIGHTS = {"input": 30.0, "layer": 26.0, "join": 22.0, "output": 30.0}
_HEAD = 26.0
_LANE, _CELL, _NODE_HEIGHT, _JOIN_RADIUS = 11.0, 27.0, 18.0, 8.0
_BAR, _COST_BAR, _LETTER = 76.0, 230.0, 7.8


@dataclass(frozen=True)
class LayerFigures:
    """What a plan does to a layer.

    Attributes:
        name: the layer's.
        operation: what it is, in words.
        in_channels: of the dense network.
        out_channels: of the dense network.
        kept_in: channels that it still reads.
        kept_out: channels that it still makes.
        weight_bits: 2 to 8, or 32.
        activation_bits: of its input, likewise.
        dense_macs: MACs in the dense network, for one image.
        macs: MACs that are left.
        bops_share: of the plan's BOPs, 0 to 1.
        coupled: other layers whose channels can only go together with some of its own.
    """

    name: str
    operation: str
    in_channels: int
    out_channels: int
    kept_in: int
    kept_out: int
    weight_bits: int
    activation_bits: int
    dense_macs: int
    macs: int
    bops_share: float
    coupled: tuple[str, ...]


def layer_figures(graph: LayerGraph, plan: CompressionPlan) -> list[LayerFigures]:
    """The figures of every layer, in the order of the layer graph."""
    kept = plan.kept_atoms(graph)
    macs = ComplexityModel(graph).layer_macs(kept)
    bops = macs * plan.weight_bits * plan.activation_bits
    coupled: list[set[int]] = [set() for _ in graph.layers]
    for group in graph.groups:
        for index in group.layers:
            coupled[index].update(group.layers)
    return [
        LayerFigures(
            name=layer.name,
            operation=_operation(layer),
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            kept_in=int(kept[layer.in_atoms].sum()),
            kept_out=int(kept[layer.out_atoms].sum()),
            weight_bits=int(plan.weight_bits[index]),
            activation_bits=int(plan.activation_bits[index]),
            dense_macs=layer.macs,
            macs=int(macs[index]),
            bops_share=float(bops[index] / bops.sum()),
            coupled=tuple(graph.layers[other].name for other in sorted(coupled[index] - {index})),
        )
        for index, layer in enumerate(graph.layers)
    ]


def plan_picture(graph: LayerGraph, plan: CompressionPlan) -> Picture:
    """Draw a plan.

    Args:
        graph: the layer graph.
        plan: a plan for it.
    """
    rows, figures = network_rows(graph), layer_figures(graph, plan)
    lanes = assign_lanes(rows)
    drawing = _Drawing(rows, lanes, figures)
    drawing.lines()
    drawing.nodes(graph)
    widths = {*plan.weight_bits.tolist(), *plan.activation_bits.tolist()}
    legend = [
        LegendEntry(
            "square", f"bits{bits}", "32 bits (float)" if bits == FLOAT_BITS else f"{bits} bits"
        )
        for bits in sorted(widths)
    ]
    legend.append(LegendEntry("box", "kept", "kept"))
    legend.append(LegendEntry("box", "gone", "removed"))
    joins = dict.fromkeys(f"{row.symbol} {row.title}" for row in rows if row.kind == "join")
    note = (
        "Data flows downwards; lines on the left pass layers by, as residual connections do. W and "
        "A are the bits of a layer's weights and of its input. The length of the bar of channels "
        "goes with the square root of their number."
    )
    if joins:
        note += f" Circles join values: {', '.join(joins)}."
    return Picture("The plan, layer by layer", to_markup(drawing.root), legend, note)


class _Drawing:
    """The picture while it is drawn.

    Args:
        rows: of the network.
        lanes: for what skips rows.
        figures: of its layers.
    """

    def __init__(
        self, rows: Sequence[Row], lanes: Sequence[Lane], figures: Sequence[LayerFigures]
    ) -> None:
        self.rows, self.lanes, self.figures = rows, lanes, figures
        places = 1 + max((lane.place for lane in lanes), default=-1)
        self.spine = 8 + _LANE * places + 8 + _CELL
        self.bar = self.spine + _CELL + 10
        counts = max(len(f"{layer.kept_out}/{layer.out_channels}") for layer in figures)
        self.count = self.bar + _BAR + 6 + _LETTER * counts
        self.name = self.count + 10
        self.operation = self.name + _LETTER * max(12, *(len(f.name) for f in figures)) + 10
        operations = max(len(layer.operation) for layer in figures)
        self.macs = self.operation + _LETTER * max(operations, 9) + 10
        self.bops = self.macs + _COST_BAR + 76
        width = self.bops + _COST_BAR + 60
        self.middles = []
        top = _HEAD
        for row in rows:
            self.middles.append(top + _HEIGHTS[row.kind] / 2)
            top += _HEIGHTS[row.kind]
        kept = sum(layer.kept_out for layer in figures)
        dense = sum(layer.out_channels for layer in figures)
        self.root = new_svg(
            width,
            top + 4,
            f"The network as a graph of {len(figures)} layers; the plan keeps {kept} of {dense} "
            "output channels. The same figures are in the table of layers below.",
            "plan",
        )
        for x, text in (
            (self.spine - _CELL / 2, "W"),
            (self.spine + _CELL / 2, "A"),
        ):
            element(self.root, "text", "head", text, x=x, y=16, text_anchor="middle")
        for x, text in (
            (self.bar, "channels made"),
            (self.name, "layer"),
            (self.operation, "operation"),
            (self.macs, "MACs left"),
            (self.bops, "share of BOPs"),
        ):
            element(self.root, "text", "head", text, x=x, y=16)

    def lines(self) -> None:
        """The data flow: from row to row, and past rows in lanes."""
        for index, row in enumerate(self.rows):
            if index - 1 in row.sources:
                start = self.middles[index - 1] + self._half_height(index - 1)
                self._line(f"M{self.spine:.1f} {start:.1f}V{self._top(index):.1f}")
        for lane in self.lanes:
            x = self.spine - _CELL - 8 - _LANE * lane.place
            start = self.middles[lane.source] + 4
            path = f"M{self._left(lane.source):.1f} {start:.1f}H{x + 5:.1f}"
            path += f"Q{x:.1f} {start:.1f} {x:.1f} {start + 5:.1f}"
            path += f"V{self.middles[lane.readers[-1]] - 9:.1f}"
            for reader in lane.readers:
                end = self.middles[reader] - 4
                path += f"M{x:.1f} {end - 5:.1f}Q{x:.1f} {end:.1f} {x + 5:.1f} {end:.1f}"
                path += f"H{self._left(reader) - 4:.1f}"
            self._line(path, "skip")
            for reader in lane.readers:
                tip, end = self._left(reader), self.middles[reader] - 4
                triangle = f"M{tip:.1f} {end:.1f}l-6 -3.5v7z"
                element(self.root, "path", "arrow", d=triangle)

    def nodes(self, graph: LayerGraph) -> None:
        """Layers with their figures, joins, the input and the output."""
        for index, row in enumerate(self.rows):
            y = self.middles[index]
            if row.kind == "layer":
                self._layer(self.figures[row.layer], y)
            elif row.kind == "join":
                node = element(self.root, "g", "join")
                element(node, "title", text=f"{row.title} of {len(row.sources)} values")
                element(node, "circle", cx=self.spine, cy=y, r=_JOIN_RADIUS)
                element(node, "text", text=row.symbol, x=self.spine, y=y + 5, text_anchor="middle")
            else:
                shape = TIMES.join(map(str, graph.input_shape))
                text = f"image, {shape}" if row.kind == "input" else "output"
                element(self.root, "circle", "end", cx=self.spine, cy=y, r=5)
                element(self.root, "text", "quiet-text", text, x=self.bar, y=y + 4.5)

    def _layer(self, layer: LayerFigures, y: float) -> None:
        row = element(self.root, "g", "layer")
        element(row, "title", text=describe(layer))
        top = y - _NODE_HEIGHT / 2
        width = self.bops + _COST_BAR + 56 - self.bar
        element(row, "rect", "touch", x=self.bar - 4, y=y - 12, width=width, height=24)
        for x, bits in (
            (self.spine - _CELL, layer.weight_bits),
            (self.spine, layer.activation_bits),
        ):
            cell = f"cell bits{bits}"
            element(row, "rect", cell, x=x, y=top, width=_CELL, height=_NODE_HEIGHT)
            element(
                row, "text", f"on-bits{bits}", str(bits), x=x + _CELL / 2, y=y + 4.5,
                text_anchor="middle",
            )  # fmt: skip
        widest = max(figures.out_channels for figures in self.figures)
        # Areas of squares, not lengths, or narrow layers would vanish beside wide ones.
        dense = max(6.0, _BAR * (layer.out_channels / widest) ** 0.5)
        share = layer.kept_out / layer.out_channels
        self._bar(row, self.bar, y, dense, dense * share)
        count = f"{layer.kept_out}/{layer.out_channels}"
        style = "label strong" if layer.kept_out < layer.out_channels else "label"
        element(row, "text", style, count, x=self.count, y=y + 4.5, text_anchor="end")
        element(row, "text", "label", layer.name, x=self.name, y=y + 4.5)
        element(row, "text", "label", layer.operation, x=self.operation, y=y + 4.5)
        most = max(figures.dense_macs for figures in self.figures)
        self._bar(
            row, self.macs, y, _COST_BAR * layer.dense_macs / most, _COST_BAR * layer.macs / most
        )
        text = amount(layer.macs)
        element(row, "text", "label", text, x=self.macs + _COST_BAR + 8, y=y + 4.5)
        most_share = max(figures.bops_share for figures in self.figures)
        self._bar(row, self.bops, y, 0.0, _COST_BAR * layer.bops_share / most_share)
        share_text = f"{layer.bops_share:.1%}"
        element(row, "text", "label", share_text, x=self.bops + _COST_BAR + 8, y=y + 4.5)

    def _bar(self, parent: Element, x: float, y: float, full: float, part: float) -> None:
        if full:
            element(parent, "rect", "gone", x=x, y=y - 6, width=full, height=12)
        element(parent, "rect", "kept", x=x, y=y - 6, width=part, height=12)

    def _half_height(self, index: int) -> float:
        return {"layer": _NODE_HEIGHT / 2, "join": _JOIN_RADIUS}.get(self.rows[index].kind, 5.0)

    def _top(self, index: int) -> float:
        return self.middles[index] - self._half_height(index)

    def _left(self, index: int) -> float:
        half_width = {"layer": _CELL, "join": _JOIN_RADIUS}.get(self.rows[index].kind, 5.0)
        return self.spine - half_width

    def _line(self, path: str, style: str = "") -> None:
        element(self.root, "path", f"flow {style}".strip(), d=path)


def describe(layer: LayerFigures) -> str:
    """A layer's figures in words."""
    words = (
        f"{layer.name}: {layer.operation}; reads {layer.kept_in} of {layer.in_channels} channels, "
        f"makes {layer.kept_out} of {layer.out_channels}; weights {layer.weight_bits} bits, "
        f"input {layer.activation_bits} bits; {amount(layer.macs)} of "
        f"{amount(layer.dense_macs)} MACs, {layer.bops_share:.1%} of the plan's BOPs"
    )
    if not layer.coupled:
        return words
    others = ", ".join(layer.coupled[:6]) + (", ..." if len(layer.coupled) > 6 else "")
    return f"{words}. Channels are removed together with those of {others}"


def _operation(layer: Layer) -> str:
    if layer.kind == "linear":
        return "linear"
    words = f"{layer.kernel[0]}{TIMES}{layer.kernel[1]}"
    if layer.kind == "depthwise":
        words += " depthwise"
    elif layer.kind == "grouped":
        words += f", {layer.groups} groups"
    if max(layer.stride) > 1:
        words += f", stride {layer.stride[0]}"
    return words
