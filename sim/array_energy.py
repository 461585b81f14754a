"""Energy of a run by component: operators, registers, buffer, DRAM."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from einsight.sim.array_case import Case
from einsight.sim.array_traffic import Move


def energies(case: Case, moved: Iterable[Move]) -> dict[str, float]:
    """pJ by component: `2-D array`, `1-D array` (their operators), `registers`, `buffer`, `DRAM`."""
    moved = tuple(moved)
    technology = case.array.technology
    read, write = (
        technology.buffer_access_pj(access, case.array.buffer_bytes.value, case.array.buffer_row_bytes.value)
        for access in ("read", "write")
    )
    row = case.array.buffer_row_bytes.value
    reads = sum(m.buffer_reads * case.widths[m.tensor] for m in moved)
    writes = sum(m.buffer_writes * case.widths[m.tensor] for m in moved)
    if "wrap" in case.replicate:
        produced = {m.tensor for m in moved if m.tensor == m.einsum and m.buffer_writes}
        wraps = (w for w in case.design.artifact.wraps if w.tensor in produced)
        reads += sum(wrapped_words(case, w.tensor, w.tile) * case.widths[w.tensor] for w in wraps)
    dram = sum((m.dram_reads + m.dram_writes) * case.widths[m.tensor] for m in moved)
    return {
        "2-D array": operators(case, "2d"),
        "1-D array": operators(case, "1d"),
        "registers": registers(case),
        "buffer": (read * reads + write * writes) / row,
        "DRAM": technology.dram_pj_per_byte.value * dram,
    }


def operators(case: Case, unit: str) -> float:
    """Energy of every application on one array."""
    lost = case.design.artifact.energy_left_out if "energy left out" in case.replicate else ()
    return sum(
        n * case.array.energy_pj(unit, klass)
        for stage in case.flow.on(unit)
        for klass, n in case.applications(stage)
        if klass not in lost
    )


def registers(case: Case) -> float:
    """Every circuit that works reads its operands from the element's registers and writes its result there.

    The published model counts the registers of a single element, so that those of the 2-D array vanish and of the 1-D
    array what crosses from the other one remains.
    """
    t, artifact = case.array.technology, case.design.artifact
    if "registers" in case.replicate:
        reads = float(sum(map(case.words, artifact.vector_reads)) - sum(map(case.words, artifact.vector_less)))
        writes = float(sum(map(case.words, artifact.vector_writes)))
    else:
        operations = sum(
            n * sum(case.array.grid(stage.unit).costs[klass].circuits.values())
            for stage in case.flow.stages
            for klass, n in case.applications(stage)
        )
        reads, writes = operations * t.reads_per_operation.value, operations * t.writes_per_operation.value
    return reads * t.register_read_pj.value + writes * t.register_write_pj.value


def wrapped_words(case: Case, tensor: str, tile: tuple[str, ...]) -> float:
    """Buffer reads that 64-bit overflow adds: reads are updates less tiles times words per tile, which the published
    tool computes as ((words^2 * tiles) mod 2^64) / words."""
    sizes = {**case.sizes, "ROWS": case.block_rows}
    words = prod(sizes[name] for name in tile)
    tiles = case.words(tensor) // words
    return tiles * words - (words * words * tiles % 2**64) / words
