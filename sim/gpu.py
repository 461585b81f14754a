"""Time of a cascade on a GPU, from the tiles that its kernels run.

A tile keeps each unit of an SM busy for some cycles (tensor cores, special functions, fp32 pipe, shared memory, L2
port); the largest of them is a floor and `unhidden` of the rest adds to it. Tiles make blocks, blocks are placed on the
SMs, and the bytes that must come from HBM run beside them. Every time is at least each of its bounds; at a fixed mapping
it never grows with bandwidth, clock or SMs. Arrays over cases throughout: one prediction is a case of length one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from einsight.einsum.ir import Tensor
from einsight.sim.family import Family
from einsight.sim.grid import Tiles
from einsight.sim.hardware import DTYPE_BYTES, Gpu
from einsight.sim.schedule import ONE, ZERO, Array, Blocks, Flags, makespan
from einsight.sim.traffic import OUTER, Cache, elements, hbm_bytes
from einsight.sim.work import KEY, QUERY, KernelWork, Reuse, Share, Sweep, costs_of

PARTIAL_BYTES = 4
"""Partial results of a split run, and what blocks add up in memory, are fp32."""
MMA_GRANULE = 16
"""Contracted and feature ranks are padded to multiples of 16: the K of every 16-bit tensor-core instruction."""
PADDED = ("E", "F", "R")
WARPS_TO_FILL = 16.0
"""Warps that keep the lanes of an SM busy with dependent operations: four schedulers, results after four cycles."""


@dataclass(frozen=True, slots=True)
class Cases:
    """What varies from case to case; every array has one entry per case.

    sizes      B, G, J, M, N and the feature ranks
    tiles      what the mask leaves to run, per replica of the grid
    widths     bytes per element of every input, output and intermediate
    touched    share of the keys that some query needs
    mask_ops   fp32-pipe operations per score of a masked tile
    windowed   whether a sliding window cuts any key off
    warps      of a block, where not the family's
    visited    tiles that a block walks and tests against a sliding window, where it does not leave them out; per replica
    idle_parts parts of a split run, per block, that lie before the window and end at once
    operand_rows  query rows that one reading of a key tile from shared memory serves, where not the family's
    shared_by  blocks of a cluster that load each key tile from L2 together
    groups, stages   of a given mapping (`Mapping`): how a block fills its own gaps
    stored     bytes per element of the cache that new keys are written to, where that is not what the kernel reads
    """

    sizes: Mapping[str, Array]
    block_m: Array
    block_n: Array
    splits: Array
    blocks_per_sm: Array
    persistent: Flags
    pack: Flags
    warm: Flags
    tiles: Tiles
    widths: Mapping[str, float]
    dtype: str
    touched: Array
    mask_ops: float
    operand_rows: Array | None = None
    shared_by: Array | None = None
    windowed: Flags | bool = False
    idle_parts: Array | float = 0.0
    visited: Tiles | None = None
    warps: Array | None = None
    stored: float | None = None
    groups: float = 1.0
    stages: int | None = None


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel: its time and what each resource alone would need, in seconds; traffic in bytes; `busy` in cycles per SM."""

    name: str
    time_s: Array
    bounds_s: Mapping[str, Array]
    hbm_bytes: Array
    l2_bytes: Array
    shared_bytes: Array
    operations: Mapping[str, Array]


def kernel_time(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    """Time of one kernel on `gpu`. Sizes in elements, results in seconds and bytes."""
    if work.grid == "einsum":
        return _streaming(work, cases, gpu, family)
    return _tiled(work, cases, gpu, family)


# -- fused kernels ---------------------------------------------------------------------------------------------------


def _tiled(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    extents = grid_extents(work, cases)
    replicas = _product([x for rank, x in extents if rank in OUTER])
    tiles = _key_tiles(cases) if work.grid == "key" else cases.tiles
    count = tiles.blocks * replicas * cases.splits
    slots = gpu.sms.value * np.maximum(1.0, np.minimum(cases.blocks_per_sm, np.ceil(count / gpu.sms.value)))

    at = tile_sizes(cases, family)
    swept = [_tile(sweep, at, cases, gpu, family) for sweep in work.sweeps]
    edges = np.where(cases.windowed, family.constant("window_per_score"), 0.0)
    mask_ops: Array = cases.mask_ops + family.constant("mask_per_score") + edges
    masking = mask_ops * cases.block_m * cases.block_n / gpu.architecture.vector_ops_per_cycle.value * len(swept)
    once = _block_cycles(work, at, cases, gpu, family)
    test_ops, tested = family.constant("test_per_score"), cases.visited

    def blocks(shared_by: Array) -> Blocks:
        """Cycles of the blocks while `shared_by` of them run on an SM."""
        per_tile = sum((np.maximum(_lone(t, cases), shared_by * t.widest) for t in swept), ZERO)
        per_tile = per_tile + family.constant("tile_cycles") * len(swept)
        fixed, masked = family.constant("block_cycles") + shared_by * once, shared_by * masking
        fixed = fixed + np.where(cases.splits > 1, family.constant("part_cycles"), 0.0)
        busy = np.maximum(shared_by, WARPS_TO_FILL / (family.warps if cases.warps is None else cases.warps))
        test = busy * test_ops * cases.block_m * cases.block_n / gpu.architecture.vector_ops_per_cycle.value

        def block(total: Array, border: Array, tested: Array) -> Array:
            run = np.ceil(total / cases.splits) * per_tile + np.ceil(border / cases.splits) * masked
            return fixed + run + test * tested

        longest = block(tiles.longest, tiles.longest_masked, ZERO if tested is None else tested.longest)
        shortest = block(tiles.shortest, tiles.shortest_masked, ZERO if tested is None else tested.shortest)
        total = tiles.blocks * cases.splits * fixed + tiles.total * per_tile + tiles.masked * masked
        total = replicas * (total + test * (ZERO if tested is None else tested.total))
        return Blocks(np.clip(total, count * shortest, count * longest), longest, shortest)

    cycles = makespan(count, blocks, gpu.sms.value, cases.blocks_per_sm, cases.persistent)
    idle = family.constant("exit_cycles") * tiles.blocks * cases.idle_parts
    cycles = cycles + idle * replicas / slots
    return _assemble(work, cases, gpu, family, swept, extents, replicas, tiles, cycles, blocks(ONE).longest, slots)


LOAD_CYCLES = 600.0
"""From asking for a tile to using it, assumed: one load takes some 260 cycles from L2 and some 480 from HBM (A100 and H100,
Luo et al. 2024, arXiv 2402.13499), and those of a tile leave one after the other."""


def _lone(tile: _TileCost, cases: Cases) -> Array:
    """Cycles of one tile when no other block fills the gaps: groups of warps fill each other's, and loads that were not
    asked for early enough are waited for."""
    busy = np.maximum(tile.alone / cases.groups, tile.widest)
    ahead = ZERO if cases.stages is None else np.maximum(0.0, LOAD_CYCLES - (cases.stages - 1) * busy)
    return busy + ahead


@dataclass(frozen=True, slots=True)
class _TileCost:
    """Cycles of one tile on one SM: `peak` per unit at its full rate, `alone` for a lone block, `widest` the busiest unit."""

    peak: Mapping[str, Array]
    alone: Array
    widest: Array
    stream_bytes: Array
    shared_bytes: Array


def _tile(sweep: Sweep, at: Mapping[str, Array], cases: Cases, gpu: Gpu, family: Family) -> _TileCost:
    arch, wide = gpu.architecture, _widened(at, family)
    peak = _unit_cycles(sweep.share, wide, cases, gpu)
    if family.products == "vector":
        lanes = sweep.share.matmul().at(wide) / arch.vector_ops_per_cycle.value
        peak |= {"tensor cores": ZERO * lanes, "fp32 pipe": peak["fp32 pipe"] + lanes / family.constant("mma_efficiency")}
    converted = at[QUERY] * at[KEY] * sweep.reuse.converted
    peak["fp32 pipe"] = peak["fp32 pipe"] + family.constant("vector_per_score") * converted / arch.vector_ops_per_cycle.value
    peak["fp32 pipe"] = peak["fp32 pipe"] + _conversion(sweep, wide, cases, family) / arch.vector_ops_per_cycle.value
    operands = [t for t in sweep.streams if QUERY not in t.ranks]
    own = [t for t in sweep.streams if QUERY in t.ranks]  # one score reads each of their elements
    shared = _bytes(operands, wide, cases) * (1.0 + _readings(cases, family)) + 2.0 * _bytes(own, wide, cases)
    shared = shared + _reused_bytes(sweep.reuse, at, cases, family)
    peak["shared memory"] = shared / arch.shared_bytes_per_cycle.value
    added = sum((elements(t, at) for t in sweep.sums), ZERO) * 2.0 * PARTIAL_BYTES  # an atomic addition reads and writes
    added = added + _bytes(sweep.writes, at, cases)
    held = fetched_sizes(at, cases)
    loaded = _bytes(operands, held, cases) / (1.0 if cases.shared_by is None else cases.shared_by)
    loaded = loaded + _bytes(own, held, cases) + added
    peak["L2"] = loaded / arch.l2_bytes_per_cycle.value
    real = {**peak, "tensor cores": peak["tensor cores"] / family.constant("mma_efficiency")}
    widest = reduce(np.maximum, real.values())
    alone = widest + family.constant("unhidden") * (sum(real.values(), ZERO) - widest)
    return _TileCost(peak, alone, widest, loaded, shared)


def _bytes(tensors: Iterable[Tensor], at: Mapping[str, Array], cases: Cases) -> Array:
    """Bytes of some tensors at the sizes `at`."""
    return sum((elements(t, at) * cases.widths[t.name] for t in tensors), ZERO)


def _reused_bytes(reuse: Reuse, at: Mapping[str, Array], cases: Cases, family: Family) -> Array:
    """Bytes of shared memory, per tile, beyond those of streamed tensors that one product each reads."""
    rows, columns = (np.ceil(tile / family.operand_rows) for tile in (cases.block_m, cases.block_n))
    scores = [t for t in reuse.across if KEY in t.ranks]
    passed = _bytes((*scores, *dict.fromkeys(scores)), at, cases)
    held = _bytes((t for t in reuse.across if KEY not in t.ranks), at, cases) * columns
    return _bytes(reuse.again, at, cases) * rows + passed + held


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


def _unit_cycles(share: Share, at: Mapping[str, Array], cases: Cases, gpu: Gpu) -> dict[str, Array]:
    """Cycles per SM at full rate of the arithmetic of some Einsums at the sizes `at`."""
    arch, costs = gpu.architecture, costs_of(gpu.architecture.operators)
    padded = {r: np.ceil(v / MMA_GRANULE) * MMA_GRANULE if r in PADDED else v for r, v in at.items()}
    return {
        "tensor cores": 2.0 * share.matmul().at(padded) / gpu.tensor_flops_per_cycle[cases.dtype].value,
        "special functions": share.unit(costs, "special").at(at) / arch.special_ops_per_cycle.value,
        "fp32 pipe": share.unit(costs, "vector").at(at) / arch.vector_ops_per_cycle.value,
    }


def _block_cycles(work: KernelWork, at: Mapping[str, Array], cases: Cases, gpu: Gpu, family: Family) -> Array:
    """Once per block: resident tensors in, results out, and the Einsums outside the sweeps, one after the other."""
    moved = _row_bytes(work, at, cases, family)
    once = _unit_cycles(work.block, at, cases, gpu)
    reduced = family.constant("row_cycles") * cases.block_m
    return moved / family.constant("block_bytes_per_cycle") + reduced + sum(once.values(), ZERO)


def _row_bytes(work: KernelWork, at: Mapping[str, Array], cases: Cases, family: Family) -> Array:
    """Bytes of the resident tensors and results of one block: of all of its rows, or of those that hold a query."""
    rows = np.minimum(at[QUERY], _held_rows(cases)) if family.moves == "held" else at[QUERY]
    there = {**at, QUERY: rows, f"{QUERY}0": rows}
    return sum((elements(t, there) * cases.widths[t.name] for t in (*work.residents, *work.outputs)), ZERO)


def grid_extents(work: KernelWork, cases: Cases) -> list[tuple[str, Array]]:
    """The grid's dimensions, slowest first. Packed query heads share a block, so `J` has extent 1 there."""
    s = cases.sizes
    j = ONE if work.grid == "key" else np.where(cases.pack, 1.0, s["J"])
    rows = ONE if work.grid == "key" else cases.tiles.blocks
    return [("B", s["B"]), ("G", s["G"]), ("J", j), (QUERY, rows)]


def _key_tiles(cases: Cases) -> Tiles:
    """The grid of a kernel that only walks keys: one block per head, every key tile, no mask."""
    total = np.ceil(cases.sizes[KEY] / cases.block_n)
    none = np.zeros_like(total)
    return Tiles(np.ones_like(total), total, none, total, none, total, none)


def tile_sizes(cases: Cases, family: Family) -> dict[str, Array]:
    """Sizes at which a formula gives the work of one tile of one head: M = rows, N = block_n, one chunk of each.

    A short problem fills its block only up to the last group of `row_granule` rows that holds a query.
    """
    rows = np.minimum(cases.block_m, np.ceil(_held_rows(cases) / family.row_granule) * family.row_granule)
    at = dict(cases.sizes)
    at |= dict.fromkeys(OUTER, ONE)
    at |= {QUERY: rows, KEY: cases.block_n}
    for rank, tile in ((QUERY, rows), (KEY, cases.block_n)):
        at |= {f"{rank}0": tile, f"{rank}1": ONE}
    return at


def fetched_sizes(at: Mapping[str, Array], cases: Cases) -> dict[str, Array]:
    """The sizes `at` of a tile less the keys past the last one, which no kernel fetches: they are filled with zeros."""
    keys = np.minimum(at[KEY], cases.sizes[KEY])
    return {**at, KEY: keys, f"{KEY}0": keys}


def _held_rows(cases: Cases) -> Array:
    """Query rows that there are for the blocks of one head, or of one KV head where its query heads are packed."""
    return cases.sizes[QUERY] * np.where(cases.pack, cases.sizes["J"], 1.0)


def _assemble(
    work: KernelWork, cases: Cases, gpu: Gpu, family: Family, swept: list[_TileCost], extents: list[tuple[str, Array]],
    replicas: Array, tiles: Tiles, cycles: Array, longest: Array, slots: Array,
) -> KernelTime:  # fmt: skip
    arch, clock, sms = gpu.architecture, gpu.boost_hz.value, gpu.sms.value
    run = tiles.total * replicas
    far = memory_bytes(work, cases, gpu, family, extents, slots)
    near = sum((t.stream_bytes for t in swept), ZERO) * run + _resident_bytes(work, cases, family, replicas, tiles)
    partial = _partial_bytes(work, cases)
    bounds = {
        unit: sum((t.peak[unit] for t in swept), ZERO) * run / sms / clock
        for unit in ("tensor cores", "special functions", "fp32 pipe", "shared memory")
    }
    bounds["L2"] = near / (arch.l2_bytes_per_cycle.value * sms * clock)
    bounds["HBM"] = far / gpu.hbm_bytes_per_s.value
    bounds["longest block"] = longest / clock
    compute, memory = cycles / clock, bounds["HBM"] / family.constant("hbm_fraction")
    time = np.maximum(compute, memory) + family.constant("unhidden_memory") * np.minimum(compute, memory)
    time = np.maximum(time, np.maximum(bounds["L2"], bounds["shared memory"]))
    time = time + _throttle(time, bounds["tensor cores"], cases, gpu) + _copies(work, cases, gpu, family)
    merge = np.where(cases.splits > 1, family.constant("combine_s") + family.constant("split_s") * cases.splits, 0.0)
    merged = family.constant("merge_cycles") * _rows(cases) / (sms * clock)
    merge = merge + np.where(cases.splits > 1, merged, 0.0) + 2.0 * partial / (arch.l2_bytes_per_cycle.value * sms * clock)
    launch = family.constant("launch_s") + family.constant("sequence_s") * cases.sizes["B"]
    launch = launch + (family.constant("uneven_s") if _uneven(work, cases) else 0.0)
    regroups = cases.pack & (cases.sizes["B"] > 1) & (cases.sizes["G"] > 1) & (cases.sizes["J"] > 1)
    launch = launch + np.where(regroups, family.constant("regroup_s"), 0.0)
    launch = launch + 2.0 * family.constant("combine_s") * any(s.sums for s in work.sweeps)  # zeros before, conversion after
    bounds["launch"] = launch + np.where(cases.splits > 1, family.constant("combine_s"), 0.0)
    time = time + merge + launch
    shared = sum((t.shared_bytes for t in swept), ZERO) * run
    return KernelTime(work.name, time, bounds, far, near + 2.0 * partial, shared, {})


THROTTLE_S = 4e-3
"""Run time over which the clock falls from boost to sustained (thermal and power control loops: milliseconds)."""


def _throttle(time: Array, products_s: Array, cases: Cases, gpu: Gpu) -> Array:
    """Extra seconds of a long run whose clock falls: the energy of its tensor-core work, paid at TDP.

    Short runs end before the power control reacts. Grows with the run and with the work, never with a faster device.
    """
    flops = products_s * gpu.tensor_flops_per_s(cases.dtype)
    share = 1.0 / (1.0 + (THROTTLE_S / np.maximum(time, 1e-9)) ** 1.5)
    return gpu.architecture.joule_per_flop(cases.dtype) * flops / gpu.tdp_w.value * share


WRITER_THREADS = 512.0
"""Most threads of a cache writer's block; it has one per element of a token's keys below that."""


def _cached(work: KernelWork) -> list[Tensor]:
    """Streamed tensors that a serving framework keeps in a cache: one row per key, KV head and sequence. Factors and points of
    a bias are none, and a kernel that holds keys and walks queries has no cache."""
    streamed = dict.fromkeys(t for s in work.sweeps for t in s.streams if QUERY not in t.ranks)
    return [t for t in streamed if work.grid != "column" and tuple(r for r in t.ranks if r in OUTER) == ("B", "G")]


def head_width(work: KernelWork, cases: Cases) -> Array:
    """Elements of one key, the widest cached tensor's."""
    return reduce(np.maximum, (elements(t, {**tile_ones(cases), KEY: ONE}) for t in _cached(work)), ONE)


def tile_ones(cases: Cases) -> dict[str, Array]:
    """The sizes of one head and one step: every outer and position rank 1, features as they are."""
    ranks = (*OUTER, QUERY, KEY, f"{QUERY}0", f"{QUERY}1", f"{KEY}0", f"{KEY}1")
    return {**cases.sizes, **dict.fromkeys(ranks, ONE)}


def _uneven(work: KernelWork, cases: Cases) -> bool:
    """Whether a key's streamed tensors (K and V) have different widths, so that one cache layout does not fit both."""
    ones = tile_ones(cases)
    return len({float(np.max(elements(t, ones))) for t in _cached(work)}) > 1


def copied_bytes(work: KernelWork, cases: Cases, family: Family) -> Array:
    """Bytes that a framework's own kernels move around the attention kernel: they read 16-bit activations and write them
    as the cache keeps them."""
    new = np.minimum(cases.sizes[QUERY] / cases.sizes[KEY], 1.0)  # of the keys, those that this call adds
    if work.grid == "column":
        return ZERO
    kept = {t.name: cases.widths[t.name] if cases.stored is None else cases.stored for t in _cached(work)}
    keys = sum((elements(t, cases.sizes) * new * (2.0 + kept[t.name]) for t in _cached(work)), ZERO)
    rows = sum((elements(t, cases.sizes) * (2.0 + cases.widths[t.name]) for t in work.residents if QUERY in t.ranks), ZERO)
    uneven = family.constant("uneven_copy") if _uneven(work, cases) else 0.0
    return (family.constant("kv_copy") + uneven) * keys + family.constant("q_copy") * rows


def _copies(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> Array:
    """Seconds of those kernels: from and to L2 while that holds the bytes, else HBM, and a writer's threads."""
    moved = copied_bytes(work, cases, family)
    near = gpu.architecture.l2_bytes_per_cycle.value * gpu.sms.value * gpu.boost_hz.value
    if work.grid == "column":
        return ZERO
    threads = np.minimum(cases.sizes["G"] * head_width(work, cases), WRITER_THREADS) * cases.sizes["B"] * cases.sizes[QUERY]
    writer = family.constant("token_cycles") * threads / (gpu.sms.value * gpu.boost_hz.value)
    miss = np.where(cases.warm, Cache(gpu.l2_bytes.value, family.constant("l2_usable")).miss(moved), 1.0)
    return writer + moved * ((1.0 - miss) / near + miss / (gpu.hbm_bytes_per_s.value * family.constant("hbm_fraction")))


def _resident_bytes(work: KernelWork, cases: Cases, family: Family, replicas: Array, tiles: Tiles) -> Array:
    at = tile_sizes(cases, family)
    return _row_bytes(work, at, cases, family) * tiles.blocks * replicas * cases.splits


def _partial_bytes(work: KernelWork, cases: Cases) -> Array:
    """What the parts of a split run write for the merge: the running state of every row, once per part."""
    state = sum((elements(t, _one_step(cases.sizes)) for t in work.state), ZERO)
    return np.where(cases.splits > 1, state * PARTIAL_BYTES * cases.splits, 0.0)


def _rows(cases: Cases) -> Array:
    """Rows of all heads that a merge joins."""
    found: Array = reduce(np.multiply, (cases.sizes[r] for r in (*OUTER, QUERY)))
    return found


def _one_step(sizes: Mapping[str, Array]) -> dict[str, Array]:
    """The sizes with the chunked key rank at one chunk: of an iterative tensor only the current step is held."""
    return {**sizes, f"{KEY}1": ONE, f"{KEY}0": sizes[KEY]}


def memory_bytes(
    work: KernelWork, cases: Cases, gpu: Gpu, family: Family, extents: list[tuple[str, Array]], slots: Array
) -> Array:
    """Bytes from and to HBM of one fused kernel."""
    cache = Cache(gpu.l2_bytes.value, family.constant("l2_usable"))
    inputs: dict[Tensor, float] = dict.fromkeys(work.residents, 1.0)
    for sweep in work.sweeps:
        for tensor in sweep.streams:
            inputs[tensor] = inputs.get(tensor, 0.0) + 1.0
    written = (*work.outputs, *(t for s in work.sweeps for t in (*s.writes, *s.sums)))
    out = sum((elements(t, cases.sizes) * cases.widths[t.name] for t in written), ZERO)
    sums = [t for s in work.sweeps for t in s.sums]
    out = out + sum((elements(t, cases.sizes) for t in sums), ZERO) * 2.0 * PARTIAL_BYTES  # set to zero, converted at the end
    whole = out + sum((_whole(t, cases) for t in inputs), ZERO)
    first = np.where(cases.warm, cache.miss(whole), 1.0)
    total = out * first
    keys = np.maximum(cases.sizes[KEY], 1.0)
    overlap = np.maximum(1.0, cases.tiles.total * cases.block_n / (keys * cases.touched))
    for tensor, sweeps in inputs.items():
        keyed = KEY in tensor.ranks
        touched, reach = (cases.touched, cases.tiles.longest * cases.block_n / keys) if keyed else (ONE, ONE)
        width = cases.widths[tensor.name]
        total = total + hbm_bytes(
            tensor, extents, slots, cases.sizes, width, sweeps, touched, overlap, reach, first, cache
        )
    for tensor in sums:
        both = 2.0 * PARTIAL_BYTES
        total = total + hbm_bytes(tensor, extents, slots, cases.sizes, both, 1.0, ONE, overlap, ONE, ZERO, cache)
    return total


def _whole(tensor: Tensor, cases: Cases) -> Array:
    touched = cases.touched if KEY in tensor.ranks else ONE
    return elements(tensor, cases.sizes) * cases.widths[tensor.name] * touched


# -- unfused kernels -------------------------------------------------------------------------------------------------


def _streaming(work: KernelWork, cases: Cases, gpu: Gpu, family: Family) -> KernelTime:
    """One Einsum over its whole iteration space: operands from memory, result to memory, arithmetic beside it."""
    arch, clock, sms = gpu.architecture, gpu.boost_hz.value, gpu.sms.value
    cache = Cache(gpu.l2_bytes.value)
    sizes = whole_sizes(cases)
    moved = sum((elements(t, sizes) * cases.widths[t.name] for t in (*work.residents, *work.outputs)), ZERO)
    far = moved * np.where(cases.warm, cache.miss(moved), 1.0)
    cycles = _unit_cycles(work.block, sizes, cases, gpu)
    bounds = {unit: c / sms / clock for unit, c in cycles.items()}
    bounds["L2"] = moved / (arch.l2_bytes_per_cycle.value * sms * clock)
    bounds["HBM"] = far / gpu.hbm_bytes_per_s.value
    products = bounds["tensor cores"] / family.constant("mma_efficiency")
    compute = reduce(np.maximum, (products, bounds["special functions"], bounds["fp32 pipe"], bounds["L2"]))
    memory = bounds["HBM"] / family.constant("hbm_fraction")
    time = np.maximum(compute, memory) + family.constant("unhidden_memory") * np.minimum(compute, memory)
    bounds["launch"] = np.full_like(time, family.constant("launch_s"))
    return KernelTime(work.name, time + family.constant("launch_s"), bounds, far, moved, moved, {})


def whole_sizes(cases: Cases) -> dict[str, Array]:
    """Sizes of the whole problem, chunked ranks included (chunks of the mapping's tile)."""
    at = dict(cases.sizes)
    for rank, tile in ((QUERY, cases.block_m), (KEY, cases.block_n)):
        at |= {f"{rank}0": tile, f"{rank}1": np.ceil(cases.sizes[rank] / tile)}
    return at


def _product(values: list[Array]) -> Array:
    total: Array = ONE
    for value in values:
        total = total * value
    return total
