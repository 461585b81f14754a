"""Every picture: the only file that knows matplotlib. No global state; the same figure is the same file twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from einsight.reports.numbers import si
from einsight.reports.roofline import Point, Roofline

MEMORY_STYLE = {"hbm": ("#1f5a99", "o"), "l2": ("#2b8a5a", "s"), "shared": ("#a05a00", "^")}
OTHER_STYLE = ("#555555", "D")
TEXT = {"svg.fonttype": "none", "font.size": 9}  # text stays text: small files, searchable pages
PANEL_INCHES = (6.4, 4.6)


class PictureError(ValueError):
    """A picture cannot be written as asked."""


def save(figure: Figure, path: Path) -> None:
    """Writes .svg, .png or .pdf, by the file's ending."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise PictureError(f"{path}: expected a file ending in .svg, .png or .pdf, got '{path.suffix}'")
    if path.suffix == ".svg":
        path.write_text(svg(figure, path.stem), encoding="utf-8")
    else:
        figure.savefig(path, dpi=144)


def svg(figure: Figure, salt: str) -> str:
    """The figure as one <svg> element without dates or links; `salt` keeps the ids of several on a page apart."""
    text = io.StringIO()
    with matplotlib.rc_context({**TEXT, "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def roofline_figure(rooflines: Sequence[Roofline]) -> Figure:
    """One panel per target, log axes: FLOP per byte against FLOP/s."""
    with matplotlib.rc_context(TEXT):
        columns = min(2, len(rooflines))
        rows = -(-len(rooflines) // columns)
        figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, roof in zip(axes, rooflines, strict=False):
            _draw(ax, roof)
        for ax in axes[len(rooflines) :]:
            ax.set_axis_off()
    return figure


def _draw(ax: Axes, roof: Roofline) -> None:
    low, high = _span(roof)
    x = np.geomspace(low, high, 200)
    for r in roof.roofs:
        colour, _ = MEMORY_STYLE.get(r.memory, OTHER_STYLE)
        ax.plot(x, np.minimum(r.bytes_per_s * x, roof.peak_flops_per_s), color=colour,
                label=f"{r.title}, {si(r.bytes_per_s, 'B/s')}")  # fmt: skip
    for c in roof.ceilings:
        ax.axhline(c.flops_per_s, color="#777777", linewidth=0.8, linestyle="--")
        ax.annotate(f"{c.title}: {si(c.flops_per_s, 'FLOP/s')}", (low, c.flops_per_s), xytext=(3, 2),
                    textcoords="offset points", fontsize=7, color="#444444")  # fmt: skip
    for number, point in enumerate(roof.points, 1):
        _draw_point(ax, number, point)
    heights = [c.flops_per_s for c in roof.ceilings] + [p.flops_per_s for p in roof.points]
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(heights) / 30, max(heights) * 3), title=roof.title,
           xlabel="matmul FLOP per byte of the memory", ylabel="matmul FLOP/s")  # fmt: skip
    ax.grid(which="major", color="#dddddd", linewidth=0.5)
    ax.legend(loc="lower right", fontsize=7, framealpha=0.9)


def _draw_point(ax: Axes, number: int, point: Point) -> None:
    """One mark per memory, all at the height of the workload's FLOP/s and joined; the legend names the number."""
    ends = sorted(point.intensity.values())
    ax.plot(ends, [point.flops_per_s] * len(ends), color="#333333", linewidth=0.8, zorder=2)
    for memory, intensity in point.intensity.items():
        colour, mark = MEMORY_STYLE.get(memory, OTHER_STYLE)
        ax.plot([intensity], [point.flops_per_s], mark, color=colour, markersize=6, markeredgecolor="white", zorder=3)
    ax.annotate(str(number), (ends[-1], point.flops_per_s), xytext=(6, -3), textcoords="offset points", fontsize=8)
    ax.plot([], [], " ", label=f"{number}  {point.workload} ({point.bound})")


def _span(roof: Roofline) -> tuple[float, float]:
    """From a decade left of the leftmost point or ridge to a decade right of the rightmost."""
    ridges = [roof.peak_flops_per_s / r.bytes_per_s for r in roof.roofs]
    marks = ridges + [i for p in roof.points for i in p.intensity.values()]
    return min(marks) / 10, max(marks) * 10
