"""Time of a cascade on a GPU, from the tiles that its kernels run.

A tile keeps each unit of an SM busy for some cycles (tensor cores, special functions, fp32 pipe, shared memory, L2
port); the largest of them is a floor and `unhidden` of the rest adds to it. Tiles make blocks, blocks are placed on the
SMs, and the bytes that must come from HBM run beside them. Every time is at least each of its bounds; at a fixed mapping
it never grows with bandwidth, clock or SMs. Arrays over cases throughout: one prediction is a case of length one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from einsight.einsum.ir import Tensor
from einsight.sim.cases import Cases, fetched_sizes, one_step, tile_ones, tile_sizes, whole_sizes
from einsight.sim.copies import copy_seconds, uneven
from einsight.sim.family import Family
from einsight.sim.grid import NO_TILES, Tiles
from einsight.sim.hardware import Gpu
from einsight.sim.schedule import ONE, ZERO, Array, Blocks, makespan
from einsight.sim.tile_cost import (
    PARTIAL_BYTES,
    TileCost,
    arithmetic_cycles,
    block_cycles,
    bytes_of,
    lone_cycles,
    row_bytes,
    tile_cost,
)
from einsight.sim.traffic import OUTER, Cache, Grid, elements, fetches
from einsight.sim.work import KEY, QUERY, KernelWork

WARPS_TO_FILL = 16.0
"""Warps that keep the lanes of an SM busy with dependent operations: four schedulers, results after four cycles."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel: its time and what each resource alone would need, in seconds; traffic in bytes."""

    name: str
    time_s: Array
    bounds_s: Mapping[str, Array]
    hbm_bytes: Array
    l2_bytes: Array
    shared_bytes: Array


def kernel_time(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    """Time of one kernel on `gpu`. Sizes in elements, results in seconds and bytes."""
    if work.grid == "einsum":
        return _streaming(work, cases, gpu, family)
    return _tiled(work, cases, gpu, family)


# -- fused kernels ---------------------------------------------------------------------------------------------------


def _tiled(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    extents = grid_extents(work, cases, family)
    replicas = _product([x for rank, x in extents if rank in OUTER])
    tiles = _key_tiles(cases) if work.grid == "key" else cases.tiles
    count = tiles.blocks * replicas * cases.splits
    slots = gpu.sms.value * np.maximum(1.0, np.minimum(cases.blocks_per_sm, np.ceil(count / gpu.sms.value)))

    at = tile_sizes(cases, family)
    swept = [tile_cost(sweep, at, cases, gpu, family) for sweep in work.sweeps]
    edges = np.where(cases.windowed, family.constant("window_per_score"), 0.0)
    mask_ops: Array = cases.mask_ops + family.constant("mask_per_score") + edges
    masking = mask_ops * cases.block_m * cases.block_n / gpu.architecture.vector_ops_per_cycle.value * len(swept)
    once = block_cycles(work, at, cases, gpu, family)
    test_ops, tested = family.constant("test_per_score"), cases.visited or NO_TILES
    keys, passed = _passed_over(work, cases, at)

    def blocks(shared_by: Array) -> Blocks:
        """Cycles of the blocks while `shared_by` of them run on an SM."""
        per_tile = sum((np.maximum(lone_cycles(t, cases), shared_by * t.widest) for t in swept), ZERO)
        per_tile = per_tile + family.constant("tile_cycles") * len(swept)
        fixed, masked = family.constant("block_cycles") + shared_by * once, shared_by * masking
        fixed = fixed + np.where(cases.splits > 1, family.constant("part_cycles"), 0.0)
        busy = np.maximum(shared_by, WARPS_TO_FILL / (family.warps if cases.warps is None else cases.warps))
        test = busy * test_ops * cases.block_m * cases.block_n / gpu.architecture.vector_ops_per_cycle.value
        load = shared_by * keys / gpu.architecture.l2_bytes_per_cycle.value

        def block(total: Array, border: Array, tested: Array) -> Array:
            run = np.ceil(total / cases.splits) * per_tile + np.ceil(border / cases.splits) * masked
            return fixed + run + test * tested + load * np.maximum(tested - total, 0.0)

        longest = block(tiles.longest, tiles.longest_masked, tested.longest)
        shortest = block(tiles.shortest, tiles.shortest_masked, tested.shortest)
        total = tiles.blocks * cases.splits * fixed + tiles.total * per_tile + tiles.masked * masked
        total = replicas * (total + test * tested.total + load * passed)
        return Blocks(np.clip(total, count * shortest, count * longest), longest, shortest)

    cycles = makespan(count, blocks, gpu.sms.value, cases.blocks_per_sm, cases.persistent, tiles.blocks)
    idle = family.constant("exit_cycles") * tiles.blocks * cases.idle_parts
    cycles = cycles + idle * replicas / slots
    unused = keys * passed * replicas
    return _assemble(work, cases, gpu, family, swept, extents, replicas, tiles, cycles, blocks(ONE).longest, slots, unused)


def grid_extents(work: KernelWork, cases: Cases, family: Family) -> list[tuple[str, Array]]:
    """The grid's dimensions, slowest first. Packed query heads share a block, so `J` has extent 1 there, and so have those
    of which a kernel that only walks keys makes nothing of their own."""
    extent = dict(cases.sizes)
    if work.grid == "key":
        made = (*work.outputs, *work.state, *(t for s in work.sweeps for t in s.writes))
        extent["J"] = extent["J"] if any("J" in t.ranks for t in made) else ONE
        return [*((rank, extent[rank]) for rank in family.order), (QUERY, ONE)]
    extent["J"] = np.where(cases.pack, 1.0, extent["J"])
    return [*((rank, extent[rank]) for rank in family.order), (QUERY, cases.tiles.blocks)]


def _key_tiles(cases: Cases) -> Tiles:
    """The grid of a kernel that only walks keys: one block per head, every key tile, no mask."""
    total = np.ceil(cases.sizes[KEY] / cases.block_n)
    none = np.zeros_like(total)
    return Tiles(np.ones_like(total), total, none, total, none, total, none)


def _assemble(
    work: KernelWork, cases: Cases, gpu: Gpu, family: Family, swept: list[TileCost], extents: list[tuple[str, Array]],
    replicas: Array, tiles: Tiles, cycles: Array, longest: Array, slots: Array, unused: Array,
) -> KernelTime:  # fmt: skip
    arch, clock, sms = gpu.architecture, gpu.boost_hz.value, gpu.sms.value
    run = tiles.total * replicas
    far = memory_bytes(work, cases, gpu, family, extents, slots)
    near = sum((t.stream_bytes for t in swept), ZERO) * run + _resident_bytes(work, cases, family, replicas, tiles)
    near = near + unused
    partial = _partial_bytes(work, cases)
    bounds = {
        unit: sum((t.peak[unit] for t in swept), ZERO) * run / sms / clock
        for unit in ("tensor cores", "special functions", "fp32 pipe", "shared memory")
    }
    bounds["L2"] = near / (arch.l2_bytes_per_cycle.value * sms * clock)
    bounds["HBM"] = far / gpu.hbm_bytes_per_s.value
    bounds["longest block"] = longest / clock
    compute, memory = cycles / clock, bounds["HBM"] / family.constant("hbm_fraction")
    memory = memory + family.constant("fill_s") * _first(work, cases, gpu, family)
    floor = np.maximum(bounds["L2"], bounds["shared memory"])
    compute = compute + _throttle(np.maximum(np.maximum(compute, memory), floor), bounds["tensor cores"], near, cases, gpu)
    time = np.maximum(compute, memory) + family.constant("unhidden_memory") * np.minimum(compute, memory)
    time = np.maximum(time, floor) + copy_seconds(work, cases, gpu, family)
    merge = np.where(cases.splits > 1, family.constant("combine_s") + family.constant("split_s") * cases.splits, 0.0)
    merged = _merge_cycles(work, cases, family) * _rows(cases) / (sms * clock)
    merge = merge + np.where(cases.splits > 1, merged, 0.0) + 2.0 * partial / (arch.l2_bytes_per_cycle.value * sms * clock)
    launch = family.constant("launch_s") + family.constant("sequence_s") * cases.sizes["B"]
    launch = launch + (family.constant("uneven_s") if uneven(work, cases) else 0.0)
    regroups = cases.pack & (cases.sizes["B"] > 1) & (cases.sizes["G"] > 1) & (cases.sizes["J"] > 1)
    launch = launch + np.where(regroups, family.constant("regroup_s"), 0.0)
    launch = launch + 2.0 * family.constant("combine_s") * any(s.sums for s in work.sweeps)  # zeros before, conversion after
    bounds["launch"] = launch + np.where(cases.splits > 1, family.constant("combine_s"), 0.0)
    time = time + merge + launch
    shared = sum((t.shared_bytes for t in swept), ZERO) * run
    return KernelTime(work.name, time, bounds, far, near + 2.0 * partial, shared)


THROTTLE_S = 4e-3
"""Run time over which the clock falls from boost to sustained (thermal and power control loops: milliseconds)."""


def _throttle(time: Array, products_s: Array, near: Array, cases: Cases, gpu: Gpu) -> Array:
    """Extra seconds of the SMs in a long run whose clock falls: the energy of its products and of its `near` bytes from
    L2, paid at TDP. HBM has a clock of its own.

    Short runs end before the power control reacts. Grows with the run and with the work, never with a faster device.
    """
    flops = products_s * gpu.tensor_flops_per_s(cases.dtype)
    share = 1.0 / (1.0 + (THROTTLE_S / np.maximum(time, 1e-9)) ** 1.5)
    joules = gpu.architecture.joule_per_flop(cases.dtype) * flops + gpu.architecture.joule_per_byte * near
    return joules / gpu.tdp_w.value * share


def _resident_bytes(work: KernelWork, cases: Cases, family: Family, replicas: Array, tiles: Tiles) -> Array:
    at = tile_sizes(cases, family)
    return row_bytes(work, at, cases, family) * tiles.blocks * replicas * cases.splits


def _passed_over(work: KernelWork, cases: Cases, at: Mapping[str, Array]) -> tuple[Array, Array]:
    """(bytes that are loaded before a tile is tested against a window, tiles per replica that fail the test)."""
    if cases.visited is None:
        return ZERO, ZERO
    loaded = sum((bytes_of(s.scored, fetched_sizes(at, cases), cases) for s in work.sweeps), ZERO)
    return loaded, np.maximum(cases.visited.total - cases.tiles.total, 0.0)


def _partial_bytes(work: KernelWork, cases: Cases) -> Array:
    """What the parts of a split run write for the merge: the running state of every row, once per part."""
    state = sum((elements(t, one_step(cases.sizes)) for t in work.state), ZERO)
    return np.where(cases.splits > 1, state * PARTIAL_BYTES * cases.splits, 0.0)


MERGED_AT_ONCE = 1024.0
"""Elements that a merging block holds at once: 128 threads with a 16-byte load of 16-bit results each (FlashInfer)."""


def _merge_cycles(work: KernelWork, cases: Cases, family: Family) -> Array:
    """Cycles of an SM to merge one row of one head, beside its bytes: groups of lanes take a part each, joined in turn."""
    width = reduce(np.maximum, (elements(t, tile_ones(cases)) for t in work.outputs), ONE)
    return family.constant("merge_cycles") * np.maximum(np.ceil(MERGED_AT_ONCE / width), 1.0)


def _rows(cases: Cases) -> Array:
    """Rows of all heads that a merge joins."""
    found: Array = reduce(np.multiply, (cases.sizes[r] for r in (*OUTER, QUERY)))
    return found


def memory_bytes(
    work: KernelWork, cases: Cases, gpu: Gpu, family: Family, extents: list[tuple[str, Array]], slots: Array
) -> Array:
    """Bytes from and to HBM of one fused kernel."""
    cache = Cache(gpu.l2_bytes.value, family.constant("l2_usable"))
    inputs, first = _inputs(work), _first(work, cases, gpu, family)
    written = _written(work)
    sums = [t for s in work.sweeps for t in s.sums]
    total = _results(work, cases) * first
    keys = np.maximum(cases.sizes[KEY], 1.0)
    overlap = np.maximum(1.0, cases.tiles.total * cases.block_n / (keys * cases.touched))
    reach = cases.tiles.longest * cases.block_n / keys
    moved = [(t, PARTIAL_BYTES if t in sums else cases.widths[t.name]) for t in (*inputs, *written)]
    grid = Grid(extents, moved, cases.sizes, cases.touched, reach, overlap, slots)
    for tensor, sweeps in inputs.items():
        total = total + _whole(tensor, cases) * (first + fetches(tensor, sweeps, grid, KEY, cache) - 1.0)
    for tensor in sums:
        both = elements(tensor, cases.sizes) * 2.0 * PARTIAL_BYTES
        total = total + both * (fetches(tensor, 1.0, grid, KEY, cache) - 1.0)
    return total


def _inputs(work: KernelWork) -> dict[Tensor, float]:
    """Every tensor that is read, with the sweeps that read it."""
    inputs: dict[Tensor, float] = dict.fromkeys(work.residents, 1.0)
    for sweep in work.sweeps:
        for tensor in sweep.streams:
            inputs[tensor] = inputs.get(tensor, 0.0) + 1.0
    return inputs


def _written(work: KernelWork) -> tuple[Tensor, ...]:
    return (*work.outputs, *(t for s in work.sweeps for t in (*s.writes, *s.sums)))


def _results(work: KernelWork, cases: Cases) -> Array:
    """Bytes of everything written once; what blocks add up is set to zero before and converted at the end as well."""
    out = sum((elements(t, cases.sizes) * cases.widths[t.name] for t in _written(work)), ZERO)
    return out + sum((elements(t, cases.sizes) for s in work.sweeps for t in s.sums), ZERO) * 2.0 * PARTIAL_BYTES


def _first(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> Array:
    """Share of a first reading that HBM feeds: all of it, or in repeated runs what L2 has lost since the last one."""
    whole = _results(work, cases) + sum((_whole(t, cases) for t in _inputs(work)), ZERO)
    return np.where(cases.warm, Cache(gpu.l2_bytes.value, family.constant("l2_usable")).miss(whole), 1.0)


def _whole(tensor: Tensor, cases: Cases) -> Array:
    """Bytes of a tensor that some block reads: of the keys those that a query needs, and of a tensor with an element per query
    and key, a bias matrix, the tiles that run."""
    touched = cases.touched if KEY in tensor.ranks else ONE
    if KEY in tensor.ranks and QUERY in tensor.ranks:
        steps = np.ceil(cases.sizes[KEY] / cases.block_n)
        touched = np.minimum(touched, cases.tiles.total / np.maximum(cases.tiles.blocks * steps, 1.0))
    return elements(tensor, cases.sizes) * cases.widths[tensor.name] * touched


# -- unfused kernels -------------------------------------------------------------------------------------------------


def _streaming(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    """One Einsum over its whole iteration space: operands from memory, result to memory, arithmetic beside it."""
    arch, clock, sms = gpu.architecture, gpu.boost_hz.value, gpu.sms.value
    cache = Cache(gpu.l2_bytes.value)
    sizes = whole_sizes(cases)
    moved = sum((elements(t, sizes) * cases.widths[t.name] for t in (*work.residents, *work.outputs)), ZERO)
    far = moved * np.where(cases.warm, cache.miss(moved), 1.0)
    cycles = arithmetic_cycles(work.block, sizes, cases, gpu)
    bounds = {unit: c / sms / clock for unit, c in cycles.items()}
    bounds["L2"] = moved / (arch.l2_bytes_per_cycle.value * sms * clock)
    bounds["HBM"] = far / gpu.hbm_bytes_per_s.value
    products = bounds["tensor cores"] / family.constant("mma_efficiency")
    compute = reduce(np.maximum, (products, bounds["special functions"], bounds["fp32 pipe"], bounds["L2"]))
    memory = bounds["HBM"] / family.constant("hbm_fraction")
    time = np.maximum(compute, memory) + family.constant("unhidden_memory") * np.minimum(compute, memory)
    bounds["launch"] = np.full_like(time, family.constant("launch_s"))
    return KernelTime(work.name, time + family.constant("launch_s"), bounds, far, moved, moved)


def _product(values: list[Array]) -> Array:
    total: Array = ONE
    for value in values:
        total = total * value
    return total
