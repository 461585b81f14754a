"""What one tile, and one block around its tiles, keeps busy on one SM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from einsight.einsum.ir import Tensor
from einsight.sim.cases import MMA_GRANULE, Cases, fetched_sizes, held_rows
from einsight.sim.family import Family
from einsight.sim.hardware import DTYPE_BYTES, Gpu
from einsight.sim.schedule import ONE, ZERO, Array
from einsight.sim.traffic import elements
from einsight.sim.work import KEY, QUERY, KernelWork, Reuse, Share, Sweep, costs_of

PARTIAL_BYTES = 4
"""Partial results of a split run, and what blocks add up in memory, are fp32."""
PADDED = ("E", "F", "R")
LOAD_CYCLES = 600.0
"""From asking for a tile to using it, assumed: one load takes some 260 cycles from L2 and some 480 from HBM (A100 and H100,
Luo et al. 2024, arXiv 2402.13499), and those of a tile leave one after the other."""


@dataclass(frozen=True, slots=True)
class TileCost:
    """Cycles of one tile on one SM: `peak` per unit at its full rate, `alone` for a lone block, `widest` the busiest unit."""

    peak: Mapping[str, Array]
    alone: Array
    widest: Array
    stream_bytes: Array
    shared_bytes: Array


def tile_cost(sweep: Sweep, at: Mapping[str, Array], cases: Cases, gpu: Gpu, family: Family) -> TileCost:
    """What one tile of a traversal costs; `at`: sizes of a tile (`tile_sizes`). The largest unit is a floor, and `unhidden`
    of the rest adds to it."""
    arch, wide = gpu.architecture, _widened(at, family)
    peak = arithmetic_cycles(sweep.share, wide, cases, gpu)
    if family.products == "vector":
        lanes = sweep.share.matmul().at(wide) / arch.vector_ops_per_cycle.value
        peak |= {"tensor cores": ZERO * lanes, "fp32 pipe": peak["fp32 pipe"] + lanes / family.constant("mma_efficiency")}
    converted = at[QUERY] * at[KEY] * sweep.reuse.converted
    peak["fp32 pipe"] = peak["fp32 pipe"] + family.constant("vector_per_score") * converted / arch.vector_ops_per_cycle.value
    widening = _conversion(sweep, wide, cases, family) / arch.vector_ops_per_cycle.value
    peak["fp32 pipe"] = peak["fp32 pipe"] + widening
    operands = [t for t in sweep.streams if QUERY not in t.ranks]
    own = [t for t in sweep.streams if QUERY in t.ranks]  # one score reads each of their elements
    shared = bytes_of(operands, wide, cases) * (1.0 + _readings(cases, family)) + 2.0 * bytes_of(own, wide, cases)
    shared = shared + _reused_bytes(sweep.reuse, at, cases, family)
    peak["shared memory"] = shared / arch.shared_bytes_per_cycle.value
    added = sum((elements(t, at) for t in sweep.sums), ZERO) * 2.0 * PARTIAL_BYTES  # an atomic addition reads and writes
    added = added + bytes_of(sweep.writes, at, cases)
    held = fetched_sizes(at, cases)
    loaded = bytes_of(operands, held, cases) / _sharing(cases)
    loaded = loaded + bytes_of(own, held, cases) + added
    peak["L2"] = loaded / arch.l2_bytes_per_cycle.value
    real = {**peak, "tensor cores": peak["tensor cores"] / family.constant("mma_efficiency")}
    widest = reduce(np.maximum, real.values())
    in_turn = reduce(np.maximum, ({**real, "fp32 pipe": real["fp32 pipe"] - widening}).values()) + widening
    widest = widest + family.constant("convert_unhidden") * (in_turn - widest)
    alone = widest + family.constant("unhidden") * (sum(real.values(), ZERO) - widest)
    return TileCost(peak, alone, widest, loaded, shared)


def _sharing(cases: Cases) -> Array:
    """Blocks of a cluster that load a key tile together: of one head, so no more than it has."""
    return ONE if cases.shared_by is None else np.minimum(cases.shared_by, np.maximum(cases.tiles.blocks, 1.0))


def lone_cycles(tile: TileCost, cases: Cases) -> Array:
    """Cycles of one tile when no other block fills the gaps: groups of warps fill each other's, and loads that were not
    asked for early enough are waited for."""
    busy = np.maximum(tile.alone / cases.groups, tile.widest)
    # A buffer is asked for again when its tile ends: each load and the tile after it have the time of `stages` tiles.
    return busy if cases.stages is None else np.maximum(busy, (LOAD_CYCLES + busy) / cases.stages)


def bytes_of(tensors: Iterable[Tensor], at: Mapping[str, Array], cases: Cases) -> Array:
    """Bytes of some tensors at the sizes `at`."""
    return sum((elements(t, at) * cases.widths[t.name] for t in tensors), ZERO)


def _reused_bytes(reuse: Reuse, at: Mapping[str, Array], cases: Cases, family: Family) -> Array:
    """Bytes of shared memory, per tile, beyond those of streamed tensors that one product each reads."""
    rows, columns = (np.ceil(tile / family.operand_rows) for tile in (cases.block_m, cases.block_n))
    scores = [t for t in reuse.across if KEY in t.ranks]
    passed = bytes_of((*scores, *dict.fromkeys(scores)), at, cases)
    held = bytes_of((t for t in reuse.across if KEY not in t.ranks), at, cases) * columns
    return bytes_of(reuse.again, at, cases) * rows + passed + held


def _conversion(sweep: Sweep, at: Mapping[str, Array], cases: Cases, family: Family) -> Array:
    """Operations that turn cached elements narrower than the operands into operands, once per reading of the tile."""
    narrow = [t for t in sweep.streams if KEY in t.ranks and cases.widths[t.name] < DTYPE_BYTES[cases.dtype]]
    read = sum((elements(t, at) for t in narrow), ZERO) * _readings(cases, family)
    return family.constant("convert_per_element") * read


def _readings(cases: Cases, family: Family) -> Array:
    """Times that a block's warps read each key tile from shared memory: once per group of rows that one reading serves."""
    return np.ceil(cases.block_m / (family.operand_rows if cases.operand_rows is None else cases.operand_rows))


def _widened(at: Mapping[str, Array], family: Family) -> Mapping[str, Array]:
    """The sizes with feature ranks filled up to the next width that the family is compiled for; wider ones stay."""
    if not family.widths:
        return at
    steps = np.array(family.widths, dtype=np.float64)

    def filled(size: Array) -> Array:
        return np.maximum(size, steps[np.minimum(np.searchsorted(steps, size), len(steps) - 1)])

    return {r: filled(v) if r in PADDED else v for r, v in at.items()}


def arithmetic_cycles(share: Share, at: Mapping[str, Array], cases: Cases, gpu: Gpu) -> dict[str, Array]:
    """Cycles per SM at full rate of the arithmetic of some Einsums at the sizes `at`."""
    arch, costs = gpu.architecture, costs_of(gpu.architecture.operators)
    padded = {r: np.ceil(v / MMA_GRANULE) * MMA_GRANULE if r in PADDED else v for r, v in at.items()}
    return {
        "tensor cores": 2.0 * share.matmul().at(padded) / gpu.tensor_flops_per_cycle[cases.dtype].value,
        "special functions": share.unit(costs, "special").at(at) / arch.special_ops_per_cycle.value,
        "fp32 pipe": share.unit(costs, "vector").at(at) / arch.vector_ops_per_cycle.value,
    }


def block_cycles(work: KernelWork, at: Mapping[str, Array], cases: Cases, gpu: Gpu, family: Family) -> Array:
    """Once per block: resident tensors in, results out, and the Einsums outside the sweeps, one after the other."""
    moved = row_bytes(work, at, cases, family) / family.constant("block_bytes_per_cycle")
    once = arithmetic_cycles(work.block, at, cases, gpu)
    made = sum((elements(t, _widened(at, family)) for t in work.outputs), ZERO)
    held = family.constant("row_cycles") * cases.block_m + family.constant("result_cycles") * made
    return moved + held + sum(once.values(), ZERO)


def row_bytes(work: KernelWork, at: Mapping[str, Array], cases: Cases, family: Family) -> Array:
    """Bytes of the resident tensors and results of one block: of all of its rows, or of those that hold a query."""
    rows = np.minimum(at[QUERY], held_rows(cases)) if family.moves == "held" else at[QUERY]
    there = {**at, QUERY: rows, f"{QUERY}0": rows}
    return sum((elements(t, there) * cases.widths[t.name] for t in (*work.residents, *work.outputs)), ZERO)
