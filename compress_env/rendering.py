"""A plan for people: a table of layers, and a picture of kept channels and bits."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import LayerGraph
from compress_env.plan import FLOAT_BITS, CompressionPlan

BITS_COLOURS = {
    2: (68, 1, 84), 3: (65, 68, 135), 4: (42, 120, 142), 5: (34, 168, 132),
    6: (122, 209, 81), 7: (189, 223, 38), 8: (253, 231, 37), 32: (200, 200, 200),
}  # fmt: skip
"""Red, green and blue of every bit-width, 0 to 255; white is legible on those up to 4 bits."""

_KEPT, _GONE, _INK, _PAPER = (38, 84, 124), (226, 229, 233), (32, 36, 40), (255, 255, 255)


def layer_table(graph: LayerGraph, costs: ComplexityModel, plan: CompressionPlan) -> str:
    """A table with a line per layer: channels, bits, and shares of MACs and BOPs."""
    kept = plan.kept_atoms(graph)
    macs = costs.layer_macs(kept)
    bops = macs * plan.weight_bits * plan.activation_bits
    width = max(5, *(len(layer.name) for layer in graph.layers))
    lines = [
        f"{'layer':<{width}}  {'in':>9}  {'out':>9}  {'w bits':>6}  {'a bits':>6}"
        f"  {'MACs':>7}  {'BOPs':>7}"
    ]
    for index, layer in enumerate(graph.layers):
        inputs = f"{int(kept[layer.in_atoms].sum())}/{layer.in_channels}"
        outputs = f"{int(kept[layer.out_atoms].sum())}/{layer.out_channels}"
        lines.append(
            f"{layer.name:<{width}}  {inputs:>9}  {outputs:>9}  {plan.weight_bits[index]:>6}"
            f"  {plan.activation_bits[index]:>6}  {macs[index] / macs.sum():>7.1%}"
            f"  {bops[index] / bops.sum():>7.1%}"
        )
    cost = costs.count(kept, plan.weight_bits, plan.activation_bits)
    saved = 1 - cost.bops / costs.dense.bops
    lines.append(
        f"MACs {cost.macs / 1e6:.2f} M, parameters {cost.params / 1e3:.1f} k, "
        f"{cost.size_bits / 8 / 1024:.1f} KiB, BOPs reduction {saved:.2%}"
    )
    return "\n".join(lines)


def draw_plan(graph: LayerGraph, plan: CompressionPlan, row: int = 18) -> np.ndarray:
    """Draw a plan: a row per layer, a bar of kept channels, and its two bit-widths in colour.

    Args:
        graph: the layer graph.
        plan: a plan for it.
        row: height of a row in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    font = ImageFont.load_default(size=row * 0.62)
    names = [layer.name for layer in graph.layers]
    label = max(60, int(max(font.getlength(name) for name in names)) + 14)
    bar, cell = 260, 34
    width, height = label + bar + 92 + 2 * cell + 24, row * (len(names) + 2) + 12
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    kept = plan.kept_atoms(graph)
    widest = max(layer.out_channels for layer in graph.layers)
    text_y = row * 0.1
    left = label + bar + 80
    draw.text((label, 4 + text_y), "output channels: kept, removed", _INK, font)
    draw.text((left + 6, 4 + text_y), "w", _INK, font)
    draw.text((left + cell + 10, 4 + text_y), "a bits", _INK, font)
    for index, layer in enumerate(graph.layers):
        top = 4 + row * (index + 1)
        count = int(kept[layer.out_atoms].sum())
        full = max(4, round(bar * np.sqrt(layer.out_channels / widest)))
        part = round(full * count / layer.out_channels)
        draw.text((6, top + text_y), layer.name, _INK, font)
        draw.rectangle((label, top + 2, label + full, top + row - 3), fill=_GONE)
        draw.rectangle((label, top + 2, label + part, top + row - 3), fill=_KEPT)
        draw.text((label + bar + 8, top + text_y), f"{count}/{layer.out_channels}", _INK, font)
        for place, bits in enumerate((plan.weight_bits[index], plan.activation_bits[index])):
            x = left + place * (cell + 4)
            draw.rectangle((x, top + 1, x + cell, top + row - 2), fill=BITS_COLOURS[int(bits)])
            ink = _PAPER if bits <= 4 else _INK
            word = "fp32" if bits == FLOAT_BITS else str(int(bits))
            draw.text((x + (cell - font.getlength(word)) / 2, top + text_y), word, ink, font)
    return np.asarray(image)
