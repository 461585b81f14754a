"""A design's mapping made concrete for one workload: query rows per block, and what the buffer cannot hold."""

from __future__ import annotations

from dataclasses import replace

from einsight.sim.array_case import Case, IllegalArray
from einsight.sim.array_design import Residency
from einsight.sim.array_flow import CHUNK, INNER, OUTER, Datum, Stage
from einsight.sim.array_traffic import partials, place
from einsight.sim.units import format_si
from einsight.sim.work import KEY, QUERY


def fit(case: Case, residency: Residency) -> Case:
    """The case with this mapping made concrete: rows per block, and what does not fit. Raises IllegalArray."""
    case = case.with_mapping(residency)
    capacity = case.array.buffer_bytes.value
    if "tiling buffer" in case.replicate and case.design.artifact.tiling_buffer_bytes:
        capacity = min(capacity, case.design.artifact.tiling_buffer_bytes)
    if residency.rows == "fit":
        return _fit_rows(case, capacity)
    if residency.spilled is not None:
        live = residency.spilled if residency.scores == "chip" else _row_spill(case, capacity)
        return case.with_mapping(residency, residency.spilled, live)
    return _fit_block(case, capacity)


def _fit_rows(case: Case, capacity: float) -> Case:
    """As many blocks of columns as fit beside one tile of the keys; what outlives a pass is given up if it must be."""
    columns = case.array.array_2d.sides[1]
    blocks = -(-case.rows // columns)
    for live in (True, False):
        most = int(min(blocks, *(_most_columns(case, phase, capacity, live) for phase in _kernels(case))))
        if most >= 1:
            made = replace(case.residency, rows=_cut(blocks, most) * columns)
            if forced := _published_blocks(case):
                made = replace(made, rows=-(-blocks // forced) * columns)
            return case.with_mapping(made, 0.0, _row_spill(case, capacity) if live else 1.0)
    need = _fixed_bytes(case, case.flow.stages) + columns * _row_bytes(case, case.flow.stages, False)
    raise IllegalArray(
        f"{case.array.name}: the buffer holds {format_si(capacity, 'B')}, and one tile of design {case.design.name} "
        f"({case.sizes[INNER]} keys, {columns} query rows) needs {format_si(need, 'B')}; a larger buffer, smaller "
        f"arrays or a smaller head dimension would fit"
    )


def _published_blocks(case: Case) -> int:
    blocks = case.design.artifact.row_blocks if "row blocks" in case.replicate else None
    return (blocks or {}).get((case.sizes.get("E", 0), case.sizes[KEY]), 0)


def _cut(blocks: int, most: int) -> int:
    """Blocks of columns per block of queries: equal ones, as published; as few as fit where that would double them."""
    equal = next(d for d in range(min(most, blocks), 0, -1) if blocks % d == 0)
    fewest = -(-blocks // most)
    return equal if blocks // equal <= 2 * fewest else -(-blocks // fewest)


def _kernels(case: Case) -> list[tuple[Stage, ...]]:
    """Einsums that share the buffer: all of them, or those of one phase that goes through DRAM."""
    if case.residency.scores == "chip":
        return [case.flow.stages]
    return [found for unit in ("2d", "1d") for found in _runs(case.flow.stages, unit)]


def _runs(stages: tuple[Stage, ...], unit: str) -> list[tuple[Stage, ...]]:
    found: list[list[Stage]] = [[]]
    for stage in stages:
        if stage.unit == unit:
            found[-1].append(stage)
        elif found[-1]:
            found.append([])
    return [tuple(run) for run in found if run]


def _most_columns(case: Case, stages: tuple[Stage, ...], capacity: float, live: bool) -> float:
    per_row = _row_bytes(case, stages, live)
    fixed = _fixed_bytes(case, stages)
    if per_row == 0:
        return float("inf") if fixed <= capacity else 0.0
    return (capacity - fixed) // (case.array.array_2d.sides[1] * per_row)


def _fixed_bytes(case: Case, stages: tuple[Stage, ...]) -> float:
    """One chunk of every operand with keys and no queries, and all of those with neither."""
    total = 0.0
    for tensor in _touched(case, stages):
        if QUERY in tensor.ranks or (tensor.role != "input" and KEY in tensor.ranks and not case.flow.changes_units(tensor)):
            continue
        inner = tensor.ranks - OUTER - {KEY, CHUNK}
        total += case.extent(inner) * (case.sizes[INNER] if KEY in tensor.ranks else 1) * case.widths[tensor.name]
    return total


def _row_bytes(case: Case, stages: tuple[Stage, ...], live: bool) -> float:
    """What one row of queries keeps in the buffer: operands, state, sums under way, tiles that change arrays, and, with
    `live`, what outlives a pass (whole rows, one at a time)."""
    total, alive = 0.0, 0.0
    for tensor in _touched(case, stages):
        if QUERY not in tensor.ranks:
            continue
        inner = case.extent(tensor.ranks - OUTER - {QUERY, KEY, CHUNK}) * case.widths[tensor.name]
        producer = case.flow.producer(tensor.name)
        if tensor.over_pairs:
            if producer is None:
                total += inner * case.sizes[INNER]
            elif _outlives(case, tensor, stages):
                alive = max(alive, inner * case.sizes[KEY])
            elif case.flow.changes_units(tensor) and case.residency.scores == "chip":
                total += inner * case.sizes[INNER]
        elif producer is None or tensor.carried or (partials(case, producer) and producer in stages):
            total += inner
    return total + (alive if live and case.design.lanes == "query" else 0.0)


def _touched(case: Case, stages: tuple[Stage, ...]) -> list[Datum]:
    names = dict.fromkeys(t for s in stages for t in (*s.reads, s.name))
    return [case.flow.data[n] for n in names]


def _outlives(case: Case, tensor: Datum, stages: tuple[Stage, ...]) -> bool:
    """Whether another pass of these Einsums reads it."""
    producer = case.flow.producer(tensor.name)
    loops = {s.loop for s in stages if tensor.name in s.reads} | ({producer.loop} if producer else set())
    return len(loops) > 1


def _row_spill(case: Case, capacity: float) -> float:
    """Share of a row of what outlives a pass that the buffer cannot hold, where lanes take the keys of one row."""
    if case.design.lanes == "query" or not any(s.loop > 1 for s in case.flow.on("1d")):
        return 0.0
    row = case.sizes[KEY] * max(case.widths.values())
    return 1.0 - min(1.0, capacity / row)


def _fit_block(case: Case, capacity: float) -> Case:
    """Scores of a block of queries beside double-buffered operands; the share that does not fit is spilled."""
    held = 0.0
    side = max(case.array.array_2d.sides)
    for tensor in case.flow.data.values():
        if tensor.over_pairs or tensor.role == "inner":
            continue
        where = case.residency.outputs if tensor.role == "output" else place(case, tensor, case.flow.readers(tensor.name))
        inner = case.extent(tensor.ranks - OUTER - {QUERY, KEY}) * case.widths[tensor.name]
        rows = case.block_rows if QUERY in tensor.ranks else case.sizes[KEY] if KEY in tensor.ranks else 1
        held += 2 * inner * (rows if where == "whole" else side)
    if held > capacity:
        raise IllegalArray(
            f"{case.array.name}: the buffer holds {format_si(capacity, 'B')}, and the operands of one block of design "
            f"{case.design.name} ({case.block_rows} query rows) need {format_si(held, 'B')}"
        )
    if case.residency.scores == "memory":
        return case.with_mapping(case.residency, 0.0, _row_spill(case, capacity))
    wide = any(_outlives(case, t, case.flow.stages) for t in case.flow.data.values() if t.over_pairs)
    scores = case.block_rows * case.sizes[KEY if wide else INNER] * max(case.widths.values())
    lost = max(0.0, 1.0 - capacity / (held + scores))
    return case.with_mapping(case.residency, lost, lost)
