"""Time of neighborhood attention on a GPU: its tiles through the common GPU model, and the permutation of its tokens.

A masked tile costs its unmasked cycles, plus the mask's operations on every score (two comparisons per masked dimension,
the join folded into them as predicate operands; one comparison with the end of the keys; one select), plus the stall of
the kernel's `mask_cycles`. The extra therefore grows with the number of masked dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from einsight.einsum import library
from einsight.einsum.compose import compose
from einsight.sim.cases import Cases
from einsight.sim.family import Family, load_family
from einsight.sim.gna_bounds import block_sparsity
from einsight.sim.gna_kernel import GnaKernel
from einsight.sim.gna_tiles import GnaTiles, Shape, count_tiles, padded_shape
from einsight.sim.gpu import kernel_time
from einsight.sim.grid import Tiles
from einsight.sim.hardware import DTYPE_BYTES, Architecture, Gpu
from einsight.sim.mapping import occupancy, shared_bytes
from einsight.sim.mask import Gna
from einsight.sim.plan import Plan, key_bytes, plan, row_bytes
from einsight.sim.schedule import Array

CASCADE = "one_pass"
"""The cascade of every fused neighborhood attention kernel: softmax attention in one pass over the keys."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Neighborhood attention of `batch` grids with `heads` heads of `head_dim` (queries, keys and values alike)."""

    gna: Gna
    batch: int = 1
    heads: int = 1
    head_dim: int = 64
    dtype: str = "fp16"


@dataclass(frozen=True, slots=True)
class GnaTime:
    """Seconds on one target.

    time_s    the attention kernel alone, without launch from the host: a profiler's row
    permute_s the copies that permute tokens
    dense_s   dense self attention of the same sizes by the vendor's library
    bounds_s  what each resource alone would need for the attention kernel
    """

    time_s: float
    permute_s: float
    dense_s: float
    bounds_s: dict[str, float]
    low_s: float
    high_s: float

    @property
    def total_s(self) -> float:
        return self.time_s + self.permute_s

    @property
    def speedup(self) -> float:
        return self.dense_s / self.time_s

    @property
    def speedup_total(self) -> float:
        return self.dense_s / self.total_s


@dataclass(frozen=True, slots=True)
class RunTiles:
    """What a kernel runs, per batch and head; arrays over cases. `_masked`: how many of them run the mask.

    masked_dimensions  dimensions that the mask looks at, in the mean over masked tiles
    streamed           share of the keys that a block streams
    """

    blocks: Array
    total: Array
    masked: Array
    most: Array
    most_masked: Array
    fewest: Array
    fewest_masked: Array
    masked_dimensions: Array
    streamed: Array


def predict_gna(problem: Problem, gpu: Gpu, kernel: GnaKernel, q_tile: Shape, kv_tile: Shape, tiling: str) -> GnaTime:
    """The times of one problem with one pair of tile shapes."""
    gna = problem.gna
    family = load_family(kernel.family)
    tiles, sparse = count_tiles(gna, q_tile, kv_tile, tiling), block_sparsity(gna, q_tile, kv_tile, tiling).fully
    run = run_tiles(kernel, gna, tiles, sparse)
    found = attention_times(problem, gpu, kernel, family, int(np.prod(q_tile)), int(np.prod(kv_tile)), run)
    fitted, _ = family.on(gpu, "prefill", problem.dtype, problem.dtype)
    time, width = float(found.time_s[0]), fitted.constant("interval")
    bounds = {name: float(np.ravel(value)[0]) for name, value in found.bounds_s.items()}
    permute = permute_seconds(problem, gpu, kernel, q_tile, kv_tile)
    dense = dense_seconds(problem, gpu, load_family(kernel.dense))
    return GnaTime(time, permute, dense, bounds, time / (1 + width), time * (1 + width))


def run_tiles(kernel: GnaKernel, gna: Gna, tiles: GnaTiles, fully_block_sparse: bool) -> RunTiles:
    """One case, as arrays of length one."""
    masked, most, fewest, dims = tiles.total, tiles.most, tiles.fewest, float(masked_dimensions(gna))
    if kernel.masks == "cut":
        masked, most, fewest = tiles.masked, tiles.most - tiles.most_full, tiles.fewest - tiles.fewest_full
        dims = sum(k * n for k, n in enumerate(tiles.by_masked_dimensions)) / max(masked, 1)
    elif fully_block_sparse:
        masked = most = fewest = 0
    streamed = tiles.total / (tiles.q_tiles * tiles.dense)
    row = (tiles.q_tiles, tiles.total, masked, tiles.most, most, tiles.fewest, fewest, dims, streamed)
    return RunTiles(*(np.array([float(x)]) for x in row))


def masked_dimensions(gna: Gna) -> int:
    """Dimensions whose window is not the whole dimension: those that a mask must look at."""
    return sum(w * d < n or c for n, w, d, c in zip(gna.layout, gna.window, gna.dilation, gna.causal, strict=True))


@dataclass(frozen=True, slots=True)
class AttentionTimes:
    time_s: Array
    bounds_s: dict[str, Array]


def attention_times(
    problem: Problem, gpu: Gpu, kernel: GnaKernel, family: Family, block_m: int, block_n: int, run: RunTiles
) -> AttentionTimes:
    """The attention kernel's time for many masks of one problem with one size of tiles; `family`: the kernel's."""
    arch = gpu.architecture
    stall = kernel.mask_cycles.value * arch.vector_ops_per_cycle.value / (block_m * block_n)  # as operations per score
    divisions = kernel.division_ops.value * (len(problem.gna.layout) - 1)
    ops = (mask_operations(arch, run.masked_dimensions) + divisions) * (1 - kernel.mask_hidden.value) + stall
    tiles = Tiles(run.blocks, run.total, run.masked, run.most, run.most_masked, run.fewest, run.fewest_masked)
    return _times(problem, gpu, family, block_m, block_n, tiles, ops, run.streamed)


def mask_operations(arch: Architecture, dimensions: Array | float) -> Array:
    """fp32-pipe slots per score of a masked tile with `dimensions` masked dimensions."""
    compare, select = (arch.operators[k].get("vector", 0.0) for k in ("cmp", "select"))
    return np.asarray(2 * compare * np.asarray(dimensions) + compare + select)


def dense_seconds(problem: Problem, gpu: Gpu, family: Family) -> float:
    """Dense self attention of the same tokens by a kernel of the family, with the family's own tile."""
    tokens = problem.gna.tokens
    tile = family.tile(problem.head_dim, tokens)
    blocks, steps = float(-(-tokens // tile.block_m)), float(-(-tokens // tile.block_n))
    one = np.ones(1)
    tiles = Tiles(blocks * one, blocks * steps * one, 0 * one, steps * one, 0 * one, steps * one, 0 * one)
    return float(_times(problem, gpu, family, tile.block_m, tile.block_n, tiles, np.zeros(1), one).time_s[0])


def _times(
    problem: Problem, gpu: Gpu, family: Family, block_m: int, block_n: int, tiles: Tiles, mask_ops: Array, streamed: Array
) -> AttentionTimes:
    """The common model's time. `streamed`: share of the keys that a block streams."""
    made = attention_plan(problem.dtype)
    shape = tiles.total.shape
    sizes = {
        "B": problem.batch, "G": problem.heads, "J": 1, "M": problem.gna.tokens, "N": problem.gna.tokens,
        "E": problem.head_dim, "F": problem.head_dim,
    }  # fmt: skip
    full = {name: np.full(shape, float(value)) for name, value in sizes.items()}
    fitted, _ = family.on(gpu, "prefill", made.dtype, made.dtype)
    rows, keys = float(np.ravel(row_bytes(made, full))[0]), float(np.ravel(key_bytes(made, full))[0])
    needs = shared_bytes(np.array(float(block_m)), np.array(float(block_n)), np.array(rows), np.array(keys), family.stages)
    fits = np.maximum(occupancy(gpu.architecture, needs, family.warps, family.registers_per_thread), 1.0)
    cases = Cases(
        sizes=full, block_m=np.full(shape, float(block_m)), block_n=np.full(shape, float(block_n)), splits=np.ones(shape),
        blocks_per_sm=np.full(shape, float(fits)), persistent=np.full(shape, family.schedule == "persistent"),
        pack=np.zeros(shape, dtype=bool), warm=np.zeros(shape, dtype=bool), tiles=tiles, widths=made.widths,
        dtype=made.dtype, touched=_touched(problem, gpu, fitted, streamed), mask_ops=mask_ops,  # type: ignore[arg-type]
    )  # fmt: skip
    found = kernel_time(made.main, cases, gpu, fitted)
    return AttentionTimes(np.broadcast_to(found.time_s, shape), dict(found.bounds_s))


def _touched(problem: Problem, gpu: Gpu, family: Family, streamed: Array) -> Array:
    """The share of a head's keys that its blocks read from HBM in one go: all where they fit into L2; of longer ones
    what neighbouring windows share, since blocks that run together stand side by side and their windows overlap."""
    keys = problem.gna.tokens * problem.head_dim * DTYPE_BYTES[problem.dtype]
    share: Array = np.clip(family.constant("l2_usable") * gpu.l2_bytes.value / keys, streamed, 1.0)
    return share


@lru_cache(maxsize=8)
def attention_plan(dtype: str) -> Plan:
    """The fused plan of softmax attention with these element types."""
    return plan(compose(library.load(CASCADE)), True, {}, dtype)


def permute_seconds(problem: Problem, gpu: Gpu, kernel: GnaKernel, q_tile: Shape, kv_tile: Shape) -> float:
    """Copies of Q, K, V and O, padded, read and written once each: by the rate of the copies, never above memory's.

    Zero where tokens already lie in tile order: one dimension without dilation (or kernels that load tiles as boxes).
    """
    gna = problem.gna
    in_order = len(gna.layout) == 1 and gna.dilation[0] == 1
    if not kernel.permutes or in_order or len(q_tile) < len(gna.layout):
        return 0.0
    per_token = problem.batch * problem.heads * problem.head_dim * DTYPE_BYTES[problem.dtype]
    queries, keys = (float(np.prod(padded_shape(gna, tile))) for tile in (q_tile, kv_tile))
    moved = per_token * (2 * (gna.tokens + queries) + 2 * (gna.tokens + keys))
    rate = min(kernel.permute_rate.value * gpu.sms.value * gpu.boost_hz.value, gpu.hbm_bytes_per_s.value)
    return moved / rate
