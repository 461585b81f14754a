"""Arrays of other shapes: one workload over sides and buffers, and the points that no other beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from einsight.sim.array import Run, run
from einsight.sim.array_case import IllegalArray
from einsight.sim.array_design import Design
from einsight.sim.array_hardware import Array
from einsight.sim.hardware import Quantity
from einsight.sim.units import format_si
from einsight.sim.workload import Workload

WORD_BYTES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One array and what the workload costs on it. Seconds, um^2, pJ."""

    array: Array
    run: Run

    @property
    def costs(self) -> tuple[float, float, float]:
        """(latency, area, energy)"""
        return self.run.time_s, sum(self.run.areas_um2.values()), sum(self.run.energy_pj.values())

    @property
    def shape(self) -> str:
        rows, columns = self.array.array_2d.sides
        return f"{rows}x{columns}"


def resized(
    array: Array, shape: int | tuple[int, int], buffer_bytes: float, registers_2d: int | None = None,
    registers_1d: int | None = None,
) -> Array:  # fmt: skip
    """The array with `shape` elements (a side, or rows and columns), a lane per column, another buffer with one word
    per column in a row, and, if given, other register files."""
    rows, columns = (shape, shape) if isinstance(shape, int) else shape
    grid = array.array_2d
    return replace(
        array,
        name=f"{array.name} {rows}x{columns}",
        buffer_bytes=_chosen(buffer_bytes, _capacity(buffer_bytes)),
        buffer_row_bytes=_chosen(WORD_BYTES * columns, f"{WORD_BYTES * columns} B"),
        array_2d=replace(
            grid, rows=_chosen(rows), columns=_chosen(columns), registers=_other(grid.registers, registers_2d)
        ),
        array_1d=replace(
            array.array_1d, columns=_chosen(columns), registers=_other(array.array_1d.registers, registers_1d)
        ),
    )


def _chosen(value: float, text: str = "") -> Quantity:
    return Quantity(float(value), text or f"{value:g}", "assumed", "chosen by the search over arrays")


def _other(old: Quantity, value: int | None) -> Quantity:
    return old if value is None else _chosen(value)


def _capacity(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value % size == 0:
            return f"{value / size:g} {unit}"
    return format_si(value, "B")


def search(
    workload: Workload, array: Array, design: Design, shapes: Iterable[int | tuple[int, int]],
    buffers: Sequence[float], limit_buffer: bool = False,
) -> tuple[tuple[Point, ...], tuple[str, ...]]:  # fmt: skip
    """(every array that can run the workload, the reasons of those that cannot)."""
    found, refused = [], []
    for shape in shapes:
        for capacity in buffers:
            made = resized(array, shape, capacity)
            try:
                found.append(Point(made, run(workload, made, design, limit_buffer=limit_buffer)))
            except IllegalArray as error:
                refused.append(str(error))
    return tuple(found), tuple(refused)


def front(points: Sequence[Point], costs: int = 3) -> tuple[Point, ...]:
    """The points that no other beats in the first `costs` of latency, area, energy; by latency."""
    def beaten(p: Point) -> bool:
        mine = p.costs[:costs]
        others = (q.costs[:costs] for q in points if q is not p)
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    return tuple(sorted((p for p in points if not beaten(p)), key=lambda p: p.costs))
