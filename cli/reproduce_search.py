"""`einsight reproduce fusemax --search`: one workload on arrays of many shapes and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, whole
from einsight.reports.fusemax import BATCH, Model, length
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import load_array
from einsight.sim.array_search import Point, front, search
from einsight.sim.units import format_si, format_time
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads

DEFAULT_LENGTH = "16K"


def workloads(file: Path | None, models: Sequence[Model], lengths: Sequence[str]) -> list[Workload]:
    """The workloads of a file, or the models' attention at the lengths."""
    if file is not None:
        return list(load_workloads(file))
    return [
        Workload.attention(batch=BATCH, heads=m.heads, seq_q=length(s), head_dim=m.head_dim, name=f"{m.name} {s}")
        for m in models for s in lengths or [DEFAULT_LENGTH]
    ]  # fmt: skip


def run(
    tasks: Sequence[Workload], targets: Sequence[str], on: str | None, shapes: str, buffers: str, plot: Path | None,
    ports: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prints the points that no other beats in latency, area and energy, and draws all of them."""
    if len(tasks) != 1 or len(targets) != 1:
        raise CommandError("--search", f"{len(tasks)} workloads and {len(targets)} designs",
                           "one of each, such as --model BERT --seq 16K --design binding")  # fmt: skip
    (workload,), (target,) = tasks, targets
    profile, _, design = target.partition(":")
    array = load_array(on or profile)
    sizes = [float(whole(text, "--buffers")) for text in buffers.split(",")]
    points, refused = search(workload, array, load_design(design), _shapes(shapes), sizes, ports)
    if not points:
        raise CommandError("--search", f"no array that can run {workload.name}", f"one that can: {refused[0]}")
    best = front(points)
    title = f"{workload.name} on {array.name}:{design}"
    if plot is not None:
        from einsight.reports.figures import arrays_figure, save  # matplotlib: half a second, only for a picture

        save(arrays_figure(points, best, title), plot)
    if as_json:
        return print_json({"workload": workload.name, "points": [_as_json(p, best) for p in points], "refused": refused})
    rows = [_row(p) for p in best]
    columns = ("array", "latency", "area", "energy", "2-D", "1-D")
    print_table(f"{title}: best of {len(points)} arrays", columns, rows, right=columns[1:])
    print_lines(f"  refused: {reason}" for reason in refused)


def _shapes(text: str) -> list[tuple[int, int]]:
    """`64,128x256` as rows and columns."""
    found = []
    for word in text.split(","):
        sides = [whole(side, "--shapes") for side in word.lower().split("x")]
        if len(sides) > 2:
            raise CommandError("--shapes", word, "a side or rows x columns, such as 128 or 128x256")
        found.append((sides[0], sides[-1]))
    return found


def _row(point: Point) -> tuple[str, ...]:
    latency, area, energy = point.costs
    busy = (f"{100 * point.run.busy[unit]:.1f} %" for unit in ("2d", "1d"))
    label = f"{point.shape}, {point.array.buffer_bytes.text}"
    return label, format_time(latency), f"{area * 1e-6:.4g} mm^2", format_si(energy * 1e-12, "J"), *busy


def _as_json(point: Point, best: Sequence[Point]) -> dict[str, object]:
    latency, area, energy = point.costs
    rows, columns = point.array.array_2d.sides
    return {
        "rows": rows, "columns": columns, "buffer_bytes": point.array.buffer_bytes.value, "latency_s": latency,
        "area_um2": area, "energy_pj": energy, "util_2d": point.run.busy["2d"], "util_1d": point.run.busy["1d"],
        "best": any(point is b for b in best),
    }  # fmt: skip
