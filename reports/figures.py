"""Every picture: the only file that knows matplotlib. No global state; the same figure is the same file twice."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from einsight.reports.compare import Comparison
from einsight.reports.roofline import Point, Roofline
from einsight.sim.gna_advice import Choice
from einsight.sim.schedule import Array
from einsight.sim.sweep import Curve
from einsight.sim.units import format_si

if TYPE_CHECKING:
    from einsight.sim.array_search import Point as ArrayPoint

MEMORY_STYLE = {"HBM": ("#1f5a99", "o"), "L2": ("#2b8a5a", "s"), "shared memory": ("#a05a00", "^")}
OTHER_STYLE = ("#555555", "D")
TEXT = {"svg.fonttype": "none", "font.size": 9}  # text stays text: small files, searchable pages
PANEL_INCHES = (6.4, 4.6)
LEGEND_LINE_INCHES = 0.17
SHOWN_RATIOS = (1 / 32, 4.0)  # predicted over measured: what a picture of a comparison shows


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
    """One panel per target, log axes: FLOP per byte against FLOP/s; below each its workloads."""
    if not rooflines:
        raise PictureError("no GPU among the targets; a roofline is drawn for GPUs")
    with matplotlib.rc_context(TEXT):
        columns = min(2, len(rooflines))
        rows = -(-len(rooflines) // columns)
        width, height = PANEL_INCHES
        height += LEGEND_LINE_INCHES * max(len(r.points) for r in rooflines)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, roof in zip(axes, rooflines, strict=False):
            _draw(ax, roof)
        for ax in axes[len(rooflines) :]:
            ax.set_axis_off()
    return figure


def sweep_figure(curves: Sequence[Curve]) -> Figure:
    """Time against the swept size, one line per target, log axes."""
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        ax = figure.subplots()
        for curve in curves:
            ax.plot(curve.axis.values, curve.time_s, marker=".", label=f"{curve.target}, {curve.family}")
        ax.set(xscale="log", yscale="log", xlabel=curves[0].axis.size, ylabel="time, s")
        ax.grid(which="major", color="#dddddd", linewidth=0.5)
        ax.legend(fontsize=8)
    return figure


def gna_figure(choices: Sequence[Choice], target: str) -> Figure:
    """Predicted speedup over dense attention against the bound by FLOPs, log axes; filled: fully block-sparse.

    Points of one window share their bound; the numbers beside them are strides, the last one of each window named.
    """
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        ax = figure.subplots()
        shared = [float(np.prod(c.stride)) for c in choices]
        one_window = len({c.window for c in choices}) == 1
        x = shared if one_window else [c.flop_speedup for c in choices]
        colour = "#1f5a99"
        faces = [colour if c.fully_block_sparse else "white" for c in choices]
        ax.scatter(x, [c.speedup_total for c in choices], c=faces, edgecolors=colour, zorder=3, label="with permuting")
        bound = [c.flop_speedup for c in choices]
        ax.plot(*zip(*sorted(zip(x, bound, strict=True)), strict=True), "--", color="#777777", label="bound by FLOPs")
        ax.plot(x, [c.tile_speedup_max for c in choices], "_", color="#a05a00", markersize=10, label="bound by worst tile")
        for place, c in zip(x, choices, strict=True):
            ax.annotate("x".join(map(str, c.stride)), (place, c.speedup_total), xytext=(5, -9), fontsize=6,
                        textcoords="offset points")  # fmt: skip
        what = "queries that share a window" if one_window else "speedup bound by FLOPs"
        ax.set(xscale="log", yscale="log", xlabel=what, ylabel="speedup over dense attention",
               title=f"{target}; filled: fully block-sparse")  # fmt: skip
        ax.grid(which="major", color="#dddddd", linewidth=0.5)
        ax.legend(fontsize=8)
    return figure


def _draw(ax: Axes, roof: Roofline) -> None:
    low, high = _span(roof)
    x = np.geomspace(low, high, 200)
    for r in roof.roofs:
        colour, _ = MEMORY_STYLE.get(r.memory, OTHER_STYLE)
        ax.plot(x, np.minimum(r.bytes_per_s * x, roof.peak_flops_per_s), color=colour,
                label=f"{r.memory}, {format_si(r.bytes_per_s, 'B/s')}")  # fmt: skip
    for place, c in enumerate(sorted(roof.ceilings, key=lambda c: c.flops_per_s)):
        ax.axhline(c.flops_per_s, color="#777777", linewidth=0.8, linestyle="--")
        end, align, shift = ((low, "left", 3), (high, "right", -3))[place % 2]  # neighbours never share a side
        ax.annotate(f"{c.title}: {format_si(c.flops_per_s, 'FLOP/s')}", (end, c.flops_per_s), xytext=(shift, 2),
                    textcoords="offset points", ha=align, fontsize=7, color="#444444")  # fmt: skip
    for number, point in enumerate(roof.points, 1):
        _draw_point(ax, number, point)
    heights = [c.flops_per_s for c in roof.ceilings] + [p.flops_per_s for p in roof.points]
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(heights) / 30, max(heights) * 3), title=roof.title,
           xlabel="matmul FLOP per byte of the memory", ylabel="matmul FLOP/s")  # fmt: skip
    ax.grid(which="major", color="#dddddd", linewidth=0.5)
    ax.add_artist(ax.legend(loc="lower right", fontsize=7, framealpha=0.9))
    marks = [Line2D([], [], linestyle="", label=f"{k}  {p.workload} ({p.bound})") for k, p in enumerate(roof.points, 1)]
    if marks:
        ax.legend(handles=marks, loc="upper left", bbox_to_anchor=(0, -0.13), fontsize=7, frameon=False, handlelength=0)


def _draw_point(ax: Axes, number: int, point: Point) -> None:
    """One mark per memory, all at the height of the workload's FLOP/s and joined; the list below names the number."""
    ends = sorted(point.intensity.values())
    ax.plot(ends, [point.flops_per_s] * len(ends), color="#333333", linewidth=0.8, zorder=2)
    for memory, intensity in point.intensity.items():
        colour, mark = MEMORY_STYLE.get(memory, OTHER_STYLE)
        ax.plot([intensity], [point.flops_per_s], mark, color=colour, markersize=6, markeredgecolor="white", zorder=3)
    ax.annotate(str(number), (ends[-1], point.flops_per_s), xytext=(6, -3), textcoords="offset points", fontsize=8)


def _span(roof: Roofline) -> tuple[float, float]:
    """From a decade left of the leftmost point or ridge to a decade right of the rightmost."""
    ridges = [roof.peak_flops_per_s / r.bytes_per_s for r in roof.roofs]
    marks = ridges + [i for p in roof.points for i in p.intensity.values()]
    return min(marks) / 10, max(marks) * 10


def convergence_figure(title: str, curves: Mapping[str, Array]) -> Figure:
    """Percent of the optimum over the number of evaluations, one line per search method."""
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        ax = figure.subplots()
        for name, curve in curves.items():
            ax.plot(range(1, len(curve) + 1), curve, label=name, linewidth=1.4)
        ax.set(title=title, xlabel="evaluations", ylabel="best found, % of the optimum (mean over seeds)")
        ax.set_ylim(top=101)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right")
    return figure


def comparison_figure(compared: Comparison) -> Figure:
    """Predicted over measured time against measured time, one panel for the model and one for the plain roofline.

    Every judged row counts; a cell is darker the more rows lie in it. 1 is right, 0.5 half the measured time; what is
    beyond `SHOWN_RATIOS` stands at the edge.
    """
    judged = compared.judged
    if not judged.any():
        raise PictureError("no row of at least 15 us with a prediction; there is nothing to draw")
    measured = compared.measured_s[judged]
    ours, plain = (np.asarray(t[judged] / measured) for t in (compared.predicted_s, compared.roofline_s))
    first, last = float(np.log10(measured.min())), float(np.log10(measured.max()))
    extent = (first, max(last, first + 0.1), *np.log10(SHOWN_RATIOS).tolist())
    with matplotlib.rc_context(TEXT):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(1.5 * width, height), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, ratio, title in zip(panels, (ours, plain), ("einsight", "plain roofline"), strict=True):
            ax.hexbin(measured, np.clip(ratio, *SHOWN_RATIOS), xscale="log", yscale="log", gridsize=48, bins="log",
                      mincnt=1, cmap="viridis_r", extent=extent, linewidths=0.1)  # fmt: skip
            error = 100.0 * float(np.abs(ratio - 1.0).mean())
            ax.axhline(1.0, color="#333333", linewidth=0.8)
            ax.set(title=f"{title}: {error:.1f} % mean error over {len(ratio)} cases", xlabel="measured time, s")
            ax.grid(which="major", color="#dddddd", linewidth=0.5)
        panels[0].set_ylabel("predicted / measured")
    return figure


def bias_figure(
    singular: Sequence[NDArray[np.float64]], times: Mapping[str, tuple[Sequence[tuple[int, float]], float, float]]
) -> Figure:
    """Singular values of each head over the first, and time by rank with the bias matrix and no bias as lines.

    times   target -> ((rank, seconds), ...), seconds with the matrix, seconds without a bias
    """
    known = [values for values in singular if len(values)]
    panels = bool(known) + bool(times)
    if not panels:
        raise PictureError("an exact form without --target has neither singular values nor times to draw")
    with matplotlib.rc_context(TEXT):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(width * panels, height), layout="constrained")
        axes = list(figure.subplots(1, panels, squeeze=False).flat)
        if known:
            ax = axes.pop(0)
            for values in known:
                ax.plot(np.arange(1, len(values) + 1), values / values[0], linewidth=0.8, color="#1f5a99", alpha=0.6)
            ax.set(yscale="log", xlabel="singular value", ylabel="over the first", title=f"{len(known)} heads")
            ax.grid(which="major", color="#dddddd", linewidth=0.5)
        for ax in axes:
            for place, (target, (curve, dense, none)) in enumerate(times.items()):
                colour = f"C{place}"
                ax.plot([r for r, _ in curve], [t for _, t in curve], marker=".", color=colour, label=f"{target}, factors")
                ax.axhline(dense, color=colour, linestyle="--", linewidth=0.9, label=f"{target}, matrix")
                ax.axhline(none, color=colour, linestyle=":", linewidth=0.9, label=f"{target}, no bias")
            ax.set(xlabel="rank R", ylabel="predicted time, s", title="time by rank", ylim=(0, None))
            ax.grid(which="major", color="#dddddd", linewidth=0.5)
            ax.legend(fontsize=7)
    return figure


def arrays_figure(points: Sequence[ArrayPoint], best: Sequence[ArrayPoint], title: str) -> Figure:
    """Latency against area, log axes, energy as colour; the points that no other beats are ringed and named."""
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        ax = figure.subplots()
        latency, area, energy = (np.array(column) for column in zip(*(p.costs for p in points), strict=True))
        marks = ax.scatter(area * 1e-6, latency, c=energy * 1e-12, norm="log", cmap="viridis", s=28, zorder=2)
        names: dict[str, list[str]] = {}  # arrays of one shape lie close together: one label for all their buffers
        for point in best:
            seconds, um2, _ = point.costs
            ax.scatter([um2 * 1e-6], [seconds], s=90, facecolors="none", edgecolors="#b02020", zorder=3)
            names.setdefault(point.shape, []).append(point.array.buffer_bytes.text)
        for point in {p.shape: p for p in reversed(best)}.values():
            text = f"{point.shape}, {' or '.join(names[point.shape])}"
            place = (point.costs[1] * 1e-6, point.costs[0])
            ax.annotate(text, place, xytext=(8, 5), textcoords="offset points", fontsize=7)
        ax.margins(x=0.25)
        ax.set(xscale="log", yscale="log", xlabel="area, mm\u00b2", ylabel="latency, s", title=title)
        ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        figure.colorbar(marks, ax=ax, label="energy, J")
        return figure
