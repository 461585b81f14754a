"""The spatial-array model: cycles, traffic, time, utilisation, energy and area of one workload on one array and design.

Cycles come from the cascade's counts, evaluated with every spread rank in blocks; energy from the same counts at the
points that exist. FuseMax (MICRO 2024), its ablations and FLAT (ASPLOS 2023) are designs; see docs/spatial-arrays.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einsight.einsum.sizes import partitions
from einsight.sim.array_case import ARTIFACT, BINARY_BANDWIDTH, Case, IllegalArray, check_functions
from einsight.sim.array_design import Design, Residency
from einsight.sim.array_energy import energies
from einsight.sim.array_flow import CHUNK, INNER, flow
from einsight.sim.array_hardware import Array
from einsight.sim.array_mapping import fit
from einsight.sim.array_schedule import Epoch, epochs
from einsight.sim.array_traffic import Move, moves
from einsight.sim.hardware import DTYPE_BYTES
from einsight.sim.work import KEY, QUERY
from einsight.sim.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a workload costs. Times in seconds, traffic in bytes, energy in pJ, area in um^2.

    cycles       of each Einsum on its array, idle elements included
    busy         element cycles with something to do over those of all elements in the whole time, per unit
    busy_by      the same for each Einsum
    bounds_s     what each resource alone would need
    fill_cycles  cycles in which the pipeline fills and drains, part of the time
    """

    case: Case
    cycles: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    moves: tuple[Move, ...]
    time_s: float
    bounds_s: Mapping[str, float]
    fill_cycles: float
    busy: Mapping[str, float]
    busy_by: Mapping[str, float]
    energy_pj: Mapping[str, float]
    areas_um2: Mapping[str, float]

    @property
    def dram_bytes(self) -> float:
        return sum((m.dram_reads + m.dram_writes) * self.case.widths[m.tensor] for m in self.moves)

    @property
    def buffer_bytes(self) -> float:
        return sum((m.buffer_reads + m.buffer_writes) * self.case.widths[m.tensor] for m in self.moves)


def run(
    workload: Workload, array: Array, design: Design, *, replicate: frozenset[str] = frozenset(),
    limit_buffer: bool = False,
) -> Run:  # fmt: skip
    """The workload on the array by the design.

    replicate     switches of `ARTIFACT`: what published numbers contain beside the model
    limit_buffer  let the buffer's ports limit the speed, too (a profile can ask for it as well)

    Raises IllegalArray with the reason where it cannot run.
    """
    case = case_of(workload, array, design, replicate, limit_buffer or array.limit_buffer)
    e, m, n = (case.sizes.get(r, 0) for r in ("E", QUERY, KEY))
    alike = m == n and case.sizes["J"] == 1 and case.sizes.get("F") == e and case.mask.is_dense
    alike = alike and workload.cascade == design.cascade and not workload.bias
    known = design.found_by_search(array, e, n) if alike else None
    candidates: tuple[Residency, ...] = (known,) if known else design.residencies
    found: list[Run] = []
    reason = IllegalArray(f"design {design.name} has no mapping")
    for residency in candidates:
        try:
            found.append(_evaluate(fit(case, residency)))
        except IllegalArray as error:
            reason = error
    if not found:
        raise reason
    return min(found, key=lambda r: (r.time_s, r.dram_bytes))


def case_of(
    workload: Workload, array: Array, design: Design, replicate: frozenset[str], limit_buffer: bool
) -> Case:
    """The workload's flow and sizes on this array; raises IllegalArray."""
    if unknown := replicate - ARTIFACT:
        raise ValueError(f"no switch {', '.join(sorted(unknown))}; there are {', '.join(sorted(ARTIFACT))}")
    if not workload.canonical_mask.is_dense:
        workload.composed()  # refuses a mask that the cascade cannot carry
    cascade = workload.composed(masked=False)
    if cascade.rank(QUERY) is None:
        raise IllegalArray(f"design {design.name} holds rows of queries; cascade {cascade.name} walks one sequence in chunks")
    array = array.with_vector_units(design.vector_units)
    seen = flow(cascade, design.array_2d)
    check_functions(seen, array, design)
    dtypes = {t: workload.dtype_of(t) for t in seen.data}
    for tensor, dtype in dtypes.items():
        if dtype not in array.dtypes:
            raise IllegalArray(f"{array.name} computes in {', '.join(array.dtypes)}; {tensor} is {dtype}")
    sizes = workload.rank_sizes
    sizes[INNER] = min(array.array_2d.sides[0], sizes[KEY])
    sizes[CHUNK] = -(-sizes[KEY] // sizes[INNER])
    for whole, outer, inner in partitions(seen.cascade):
        if whole == KEY:  # the array cuts the keys by its rows, whatever the cascade calls the chunks
            sizes |= {outer: sizes[CHUNK], inner: sizes[INNER]}
        elif inner in sizes:
            sizes[outer] = -(-sizes[whole] // sizes[inner])
        else:
            raise IllegalArray(f"cascade {cascade.name} cuts {whole}; give the workload the size {inner.lower()}")
    widths = {t: DTYPE_BYTES[d] for t, d in dtypes.items()}
    return Case(array, design, seen, sizes, widths, workload.canonical_mask, design.residencies[0], replicate, limit_buffer)


def _evaluate(case: Case) -> Run:
    cycles = {s.name: case.cycles(s) for s in case.flow.stages}
    made = epochs(case.flow, cycles, case.design.schedule)
    moved = moves(case)
    fill = _fill(case, made)
    time, bounds = _time(case, made, moved, fill)
    slots = {u: case.array.grid(u).elements * case.array.clock_hz.value * time for u in ("2d", "1d")}
    done = {s.name: case.element_cycles(s) for s in case.flow.stages}
    busy = {u: sum(done[s.name] for s in case.flow.on(u)) / slots[u] for u in slots}
    by = {s.name: done[s.name] / slots[s.unit] for s in case.flow.stages}
    return Run(
        case, cycles, made, moved, time, bounds, fill, busy, by, energies(case, moved), case.array.areas_um2()
    )  # fmt: skip


def _time(case: Case, made: tuple[Epoch, ...], moved: tuple[Move, ...], fill: float) -> tuple[float, dict[str, float]]:
    """(seconds, seconds by resource). Phases follow one another; each takes as long as its slowest resource."""
    clock = case.array.clock_hz.value
    phases: list[tuple[Epoch, ...]] = [(e,) for e in made] if case.design.schedule.rule == "phases" else [made]
    total, bounds = 0.0, dict.fromkeys(_RESOURCES, 0.0)
    for phase in phases:
        names = {n for e in phase for n in e.einsums}
        here = [m for m in moved if m.einsum in names]
        compute = (sum(e.length for e in phase) + fill) / clock
        memory = sum((m.dram_reads + m.dram_writes) * case.widths[m.tensor] for m in here) / _bandwidth(case)
        ports = _buffer_seconds(case, here)
        total += max(compute, memory, ports)
        for name, seconds in zip(_RESOURCES, (
            sum(e.cycles["2d"] for e in phase) / clock, sum(e.cycles["1d"] for e in phase) / clock, memory, ports,
        ), strict=True):  # fmt: skip
            bounds[name] += seconds
    bounds["schedule"] = sum(e.length for e in made) / clock
    return total, bounds


_RESOURCES = ("2-D array", "1-D array", "DRAM", "buffer")


def _bandwidth(case: Case) -> float:
    scale = BINARY_BANDWIDTH if "binary bandwidth" in case.replicate else 1.0
    return case.array.dram_bytes_per_s.value * scale


def _buffer_seconds(case: Case, moved: list[Move]) -> float:
    """Seconds that the buffer's ports need, one row per port and cycle; 0 when they are not to limit."""
    if not case.limit_buffer:
        return 0.0
    array = case.array
    moved_bytes = sum((m.buffer_reads + m.buffer_writes) * case.widths[m.tensor] for m in moved)
    return moved_bytes / (array.buffer_row_bytes.value * array.buffer_ports.value) / array.clock_hz.value


def _fill(case: Case, made: tuple[Epoch, ...]) -> float:
    """Cycles that fill and drain.

    Exposed: every tile drains through the columns before the next begins. Hidden: once a run, operands travel in and
    results out; and where epochs hold several tiles, all but one of these tiles fill the pipeline first.
    """
    rows, columns = case.array.array_2d.sides
    tiles = -(-case.rows // columns) * case.sizes[CHUNK] * case.live(columns, case.sizes[INNER]).tiles
    tiles *= case.sizes["B"] * case.sizes["G"]
    total = rows * tiles if case.design.schedule.drain == "exposed" else 0.0
    if "no fill" in case.replicate:
        return total
    total += rows + columns
    if case.design.schedule.rule == "pipelined" and tiles:
        total += sum(e.length for e in made) / tiles * (len(made) - 1)
    return total
